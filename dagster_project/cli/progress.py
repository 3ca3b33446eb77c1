"""What a run of the platform shows while it works, and the table at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A domain's next run."""

    run_id: str
    #: What it is about, if it is not about everything.
    part: str = ""
    #: Whether the domain has succeeded once this run has.
    last: bool = True


@dataclass
class DomainProgress:
    """What is known of one domain's runs, which come one after the other."""

    domain: str
    state: str = "waiting"
    #: What the present run is about, if it is one of several.
    part: str = ""
    started: float | None = None
    ended: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    #: Steps of the runs so far, and those that ended.
    planned: int = 0
    done: int = 0
    news: str = ""
    streams: dict[str, int] = field(default_factory=dict)
    #: By run and table.
    loaded: dict[tuple[str, str], int] = field(default_factory=dict)
    received: dict[tuple[str, str], int] = field(default_factory=dict)
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
        """What runs now, in a line; nothing in the moment between two steps."""
        if self.state != "running":
            return self.state
        now = in_words(self.steps, self.domain)
        if now and self.part:
            now = f"{self.part}: {now}"
        return f"{now}  {self.news}" if self.news else now

    def rows(self) -> int:
        """The rows so far, in the lake or already in the warehouse."""
        return max(sum(self.streams.values()), sum(self.received.values()))


_STYLE = {"succeeded": "green", "failed": "bold red", "not run": "red", "running": "cyan"}

#: The step that looks whether the columns of data products changed; Dagster adds a digest.
COLUMNS = "asset_check_"
#: What a step does, by the prefix of its name.
_VERBS = {
    "airbyte_": "sync",
    "load_": "load",
    "expect_": "check",
    "transform_": "build",
    COLUMNS: "compare the columns of",
    "incremental_": "build",
}


def in_words(steps: Iterable[str], domain: str) -> str:
    """The steps of a domain, told shortly: `load users, products; check raw purchases`."""
    objects: dict[str, list[str]] = {}
    for step in steps:
        prefix = next((prefix for prefix in _VERBS if step.startswith(prefix)), "")
        name = step.removeprefix(prefix).removeprefix(f"{domain}_").lstrip("_")
        if prefix == "load_":
            name = name.removeprefix("raw_")
        if prefix == COLUMNS:
            name = "data products"
        objects.setdefault(_VERBS.get(prefix, "run"), []).append(name.replace("raw_", "raw ", 1))
    return "; ".join(f"{verb} {', '.join(names)}" for verb, names in objects.items())


class Display:
    """Progress on a terminal as a table that is drawn anew; elsewhere as lines, one a change."""

    def __init__(
        self, domains: Sequence[DomainProgress] = (), console: Console | None = None
    ) -> None:
        self.domains = domains
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._said: dict[str, str] = {}
        self._began = time.time()

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show progress while it lasts; `summary` takes its place."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            console=self.console, get_renderable=self._table, refresh_per_second=4, transient=True
        ):
            yield

    def note(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False)

    def update(self) -> None:
        """Show what changed; for where there is no terminal."""
        if self.console.is_terminal:
            return
        for progress in self.domains:
            said = progress.doing()
            if said and said != self._said.get(progress.domain):
                self._said[progress.domain] = said
                elapsed = time.time() - self._began
                self.console.print(f"{elapsed:6.1f} s  {progress.domain:10} {said}", markup=False)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("domain", style="bold", min_width=8)
        table.add_column("steps", justify="right", min_width=5)
        table.add_column("rows", justify="right", min_width=7)
        table.add_column("s", justify="right", min_width=4)
        table.add_column("now", overflow="ellipsis", no_wrap=True)
        for progress in self.domains:
            table.add_row(
                progress.domain,
                f"{progress.done}/{progress.planned}" if progress.planned else "",
                f"{progress.rows():,}",
                f"{progress.seconds:.0f}",
                Text(progress.doing(), style=_STYLE.get(progress.state, "")),
            )
        table.add_row("", "", "", f"{time.time() - self._began:.0f}", "")
        return table

    def _width(self, table: Table) -> int:
        """What the table takes if nothing limits it."""
        return self.console.measure(table, options=self.console.options.update(width=999)).maximum

    def summary(self) -> None:
        """The table at the end: a row a domain."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("domain", style="bold", vertical="bottom", no_wrap=True)
        for header in ("streams", "rows\nsynced", "rows\nloaded", "models\nbuilt"):
            table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
        for header in ("checks\npassed", "\nwarned", "\nfailed", "\nseconds"):
            table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
        table.add_column("", no_wrap=True)
        for progress in self.domains:
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
        if self._width(table) > self.console.width:
            table.padding = (0, 1, 0, 0)
        # Where even that does not fit, the terminal folds the lines: a number is never cut.
        table.width = self._width(table)
        self.console.print(table, crop=False)
        for progress in self.domains:
            for error in progress.errors:
                self.console.print(f"{progress.domain}: {error}", markup=False, style="red")
