"""What a run of the platform shows while it works, and the table at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclass
class DomainProgress:
    """What is known of one domain's run."""

    domain: str
    run_id: str
    state: str = "waiting"
    started: float | None = None
    ended: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    #: Steps of the plan, and those that ended.
    planned: int = 0
    done: int = 0
    news: str = ""
    streams: dict[str, int] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    built: set[str] = field(default_factory=set)
    up_to_date: set[str] = field(default_factory=set)
    passed: int = 0
    warned: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        if self.started is None:
            return 0.0
        return (self.ended or time.time()) - self.started

    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.ended is not None

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"

    def doing(self) -> str:
        """What runs now, in a line."""
        if self.state != "running":
            return self.state
        now = ", ".join(self.steps) or "starting"
        return f"{now}  {self.news}" if self.news else now


_STYLE = {"succeeded": "green", "failed": "bold red", "not run": "red", "running": "cyan"}


class Display:
    """Progress on a terminal as a table that is drawn anew; elsewhere as lines, one a change."""

    def __init__(self, domains: Sequence[DomainProgress], console: Console | None = None) -> None:
        self._domains = domains
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, 120)
        self._live: Live | None = None
        self._said: dict[str, str] = {}
        self._began = time.time()

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show progress while it lasts."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._table, refresh_per_second=4) as live:
            self._live = live
            yield
        self._live = None

    def note(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False)

    def update(self) -> None:
        """Show what changed; for where there is no terminal."""
        if self.console.is_terminal:
            return
        for progress in self._domains:
            said = progress.doing()
            if said != self._said.get(progress.domain):
                self._said[progress.domain] = said
                elapsed = time.time() - self._began
                self.console.print(f"{elapsed:6.1f} s  {progress.domain:10} {said}", markup=False)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("domain", style="bold")
        table.add_column("steps", justify="right")
        table.add_column("rows", justify="right")
        table.add_column("seconds", justify="right")
        table.add_column("now", overflow="ellipsis", no_wrap=True)
        for progress in self._domains:
            steps = f"{progress.done}/{progress.planned}" if progress.planned else ""
            table.add_row(
                progress.domain,
                steps,
                f"{sum(progress.received.values()):,}",
                f"{progress.seconds:.0f}",
                Text(progress.doing(), style=_STYLE.get(progress.state, "")),
            )
        table.add_row("", "", "", f"{time.time() - self._began:.0f}", Text("", style="dim"))
        return table

    def summary(self) -> None:
        """The table at the end: a row a domain."""
        table = Table(title_justify="left", header_style="bold")
        for column in ("domain", "streams", "synced", "loaded", "models", "passed", "warned"):
            table.add_column(column, justify="left" if column == "domain" else "right")
        table.add_column("failed", justify="right")
        table.add_column("seconds", justify="right")
        table.add_column("")
        for progress in self._domains:
            table.add_row(
                progress.domain,
                str(len(progress.streams)),
                f"{sum(progress.streams.values()):,}",
                f"{sum(progress.loaded.values()):,}",
                str(len(progress.built)),
                str(progress.passed),
                str(len(progress.warned)),
                str(len(progress.failed)),
                f"{progress.seconds:.1f}",
                Text(progress.state, style=_STYLE.get(progress.state, "")),
            )
        self.console.print(table)
        for progress in self._domains:
            for error in progress.errors:
                self.console.print(f"{progress.domain}: {error}", markup=False, style="red")
