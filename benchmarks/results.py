"""The table of a benchmark, on the terminal and in RESULTS.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine

RESULTS = Path(__file__).parent / "RESULTS.md"
_HEAD = """# Results

The last results of `make bench`, which writes this file. Ratios are taken within one run, so they
say something on other machines too; seconds do not.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured: figures as they are to be read, and the ratio with its limit."""

    what: str
    figures: str
    ratio: float | None = None
    limit: float | None = None

    @property
    def verdict(self) -> str:
        if self.limit is None or self.ratio is None:
            return ""
        return "within" if self.ratio <= self.limit else "MISSED"


@dataclass(slots=True)
class Benchmark:
    """A benchmark's rows, and what has to be known to read them."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, what: str, figures: str, ratio: float | None = None, limit: float | None = None
    ) -> None:
        self.rows.append(Row(what, figures, ratio, limit))

    def cells(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                row.what,
                row.figures,
                "" if row.ratio is None else f"{row.ratio:.2f}",
                "" if row.limit is None else f"{row.limit:g}",
                row.verdict,
            )
            for row in self.rows
        ]

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(title=self.title, title_justify="left")
        for column in ("", "measured"):
            table.add_column(column)
        for column in ("ratio", "at most"):
            table.add_column(column, justify="right")
        table.add_column("")
        for cells in self.cells():
            table.add_row(*cells)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim")

    def markdown(self) -> str:
        lines = [
            f"## {self.title}",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {machine()}",
            "",
            "| | measured | ratio | at most | |",
            "| --- | --- | ---: | ---: | --- |",
            *(f"| {' | '.join(cells)} |" for cells in self.cells()),
            *(line for note in self.notes for line in ("", note)),
        ]
        return "\n".join(lines) + "\n"

    def keep(self, path: Path = RESULTS) -> None:
        """Put the table in RESULTS.md, in place of this benchmark's former one."""
        text = path.read_text() if path.exists() else _HEAD
        begin, end = f"<!-- {self.name} -->\n", f"<!-- /{self.name} -->\n"
        section = f"{begin}{self.markdown()}{end}"
        former = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if former.search(text):
            text = former.sub(lambda _: section, text)
        else:
            text = f"{text.rstrip()}\n\n{section}"
        path.write_text(text)
