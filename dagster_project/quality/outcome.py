"""What comes of a validation: an outcome an expectation, and the rows that it was about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Rows shown of those that an expectation refuses.
SAMPLE_ROWS = 20
#: What stands in place of a value that is personal data.
MASK = "•••"


@dataclass(frozen=True, slots=True)
class Partitions:
    """The partitions of a table that are validated, by the column that they are ranges of."""

    column: str
    #: In order, ISO dates.
    keys: tuple[str, ...]

    def __str__(self) -> str:
        first, last = self.keys[0], self.keys[-1]
        return first if first == last else f"{first} to {last}"


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation."""

    check: str
    passed: bool
    #: Why it could not be evaluated; empty if it could.
    error: str = ""
    observed: Any = None
    unexpected_count: int | None = None
    unexpected_percent: float | None = None
    #: Rows that it was about.
    rows: int | None = None
    #: Up to SAMPLE_ROWS of the unexpected rows, or values, personal data masked.
    sample: Sequence[Mapping[str, Any]] = ()
    #: Finds the unexpected rows; empty where an expectation is not about rows.
    query: str = ""
    #: The SQL condition of rows that a failed expectation refuses, over the table's columns; empty
    #: where it is not about single rows.
    condition: str = ""
    #: The partitions that fail, with the number of unexpected rows where it is about rows.
    failed: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """A suite's validation."""

    outcomes: Sequence[Outcome]
    #: Great Expectations' own result, as JSON; personal data masked.
    result: Mapping[str, Any]
