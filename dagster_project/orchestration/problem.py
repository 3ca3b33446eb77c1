"""Something that is the matter with a domain, and the file of all that is. Imports no framework."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

#: The tag of runs that a command executes, not Dagster's launcher: which.
STARTED_BY = "mesh/started_by"
#: The tag of a failed run with its id, and the days to blame, where its other days are run again.
#: A run that executes it again has the tag too, and the id says that it is not of that one.
_FAILED_DAYS = "mesh/failed_days"


def failed_days_tag(run_id: str, days: Iterable[str]) -> dict[str, str]:
    """The tag that says which days a run failed for."""
    return {_FAILED_DAYS: f"{run_id} {','.join(sorted(days))}"}


def failed_days(run_id: str, tags: Mapping[str, str]) -> list[str]:
    """The days that the run failed for, if it is known that it did not for its others."""
    of, _, days = tags.get(_FAILED_DAYS, "").partition(" ")
    return days.split(",") if of == run_id else []


class Kind(StrEnum):
    """What sort of problem it is, the worst first."""

    RUN = "run failed"
    CRITICAL = "critical check failed"
    TRIGGER = "sensor or schedule broken"
    STUCK = "delivery stuck"
    CATALOG = "catalog not told"
    REFUSED = "catalog refuses"
    LATE = "late"
    WARNING = "warning check failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person should know of."""

    kind: Kind
    #: With the kind, what it is called as long as it lasts.
    name: str
    what: str
    #: Where in the UI, from its address on.
    path: str
    #: Seconds since the epoch.
    since: float
    #: The ids of runs that it is about.
    runs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind.value}: {self.name}"


def by_key(found: Iterable[Problem]) -> dict[str, Problem]:
    """Problems by what they are called, the worst and oldest first."""
    order = list(Kind)
    ordered = sorted(found, key=lambda p: (order.index(p.kind), p.since, p.name))
    return {problem.key: problem for problem in ordered}


def dump(problems: Iterable[Problem]) -> str:
    """Problems as JSON."""
    return json.dumps([asdict(problem) for problem in problems])


def parse(text: str | None) -> dict[str, Problem]:
    """Problems by what they are called, from what `dump` gave."""
    found = [
        Problem(**{**each, "kind": Kind(each["kind"]), "runs": tuple(each.get("runs", ()))})
        for each in json.loads(text or "[]")
    ]
    return {problem.key: problem for problem in found}


def folder(home: Path) -> Path:
    """Where alerts lie."""
    return home / "alerts"


def keep(home: Path, domain: str, problems: Iterable[Problem]) -> None:
    """Write what is the matter with a domain now to where `standing` reads it."""
    alerts = folder(home)
    alerts.mkdir(parents=True, exist_ok=True)
    beside = alerts / f"{domain}.new"
    beside.write_text(dump(problems))
    beside.replace(alerts / f"{domain}.json")


def standing(home: Path) -> dict[str, list[Problem]]:
    """What was the matter at the last look, by domain."""
    files = sorted(folder(home).glob("*.json"))
    return {path.stem: list(parse(path.read_text()).values()) for path in files}
