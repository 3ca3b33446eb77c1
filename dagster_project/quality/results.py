"""The full results of validations: in the lake, the newest of each table, and what links there.

A result is an object of its own, `_quality/<schema>.<table>/<time>-<run id>.json`; no domain's
objects, and no feed's, lie under that prefix. Great Expectations is not needed to keep or to read
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import orjson

from dagster_project.failures import LakeError
from dagster_project.identity import Table
from dagster_project.lake.store import Lake
from dagster_project.quality.outcome import Partitions
from dagster_project.settings import Settings

#: Where the results lie in the lake. A domain's name begins with a letter.
PREFIX = "_quality"
#: Results that are kept of a table; as a new one comes, older ones are deleted.
KEPT = 30

_TIME = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True, slots=True, order=True)
class Kept:
    """A result that is kept."""

    table: Table
    #: When the validation ended, UTC.
    time: datetime
    run_id: str

    @property
    def key(self) -> str:
        """Its object in the lake; of a table in the order of time."""
        return f"{PREFIX}/{self.table}/{self.time.strftime(_TIME)}-{self.run_id}.json"

    @property
    def page(self) -> str:
        """Its page in the site of all results, known before the site is built."""
        return f"results/{self.table}/{self.run_id}.html"

    @classmethod
    def parse(cls, key: str) -> Kept:
        """The result of an object. Raises LakeError if the key is not one that `keep` gives."""
        try:
            prefix, table, name = key.split("/")
            time, _, run_id = name.removesuffix(".json").partition("-")
            if prefix != PREFIX or not run_id or not name.endswith(".json"):
                raise ValueError
            return cls(
                Table.parse(table), datetime.strptime(time, _TIME).replace(tzinfo=UTC), run_id
            )
        except ValueError:
            raise LakeError(f"{key} is not the key of a kept result") from None


@dataclass(frozen=True, slots=True)
class Document:
    """What is kept of a validation."""

    #: The partitions that were validated, as people read them; empty for a table as a whole.
    partitions: str
    #: Great Expectations' own result, as JSON; personal data masked.
    result: Mapping[str, Any]


def keep(
    lake: Lake, table: Table, run_id: str, partitions: Partitions | None, result: Mapping[str, Any]
) -> str:
    """Keep a validation's result in the lake; its key.

    What the same run found of the table before is replaced, and what is older than the newest KEPT
    is deleted. Raises LakeError (TransientLakeError if the lake is away) if it could not be kept.
    """
    new = Kept(table, datetime.now(UTC), run_id)
    document = {"partitions": str(partitions or ""), "result": result}
    lake.create(new.key, orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS))
    there = _listed(lake, f"{PREFIX}/{table}")
    others = _newest(item for item in there if item.run_id != run_id)
    stay = {new, *others[: KEPT - 1]}
    lake.delete(item.key for item in there if item not in stay)
    return new.key


def kept(lake: Lake) -> dict[Table, list[Kept]]:
    """The results that are kept, by table, the newest first; one a run."""
    tables: dict[Table, list[Kept]] = {}
    for item in _listed(lake, PREFIX):
        tables.setdefault(item.table, []).append(item)
    return {table: _newest(items) for table, items in sorted(tables.items())}


def read(lake: Lake, item: Kept) -> Document:
    """A kept result. Raises LakeError if its object is gone, or is not one."""
    document = lake.read_json(item.key)
    try:
        partitions, result = document["partitions"], document["result"]
        if not {"success", "results", "statistics"} <= result.keys():
            raise KeyError
    except (AttributeError, KeyError, TypeError):
        raise LakeError(
            f"{lake.address(item.key)} is not the result of a validation: delete it"
        ) from None
    return Document(partitions, result)


def docs_link(settings: Settings, key: str) -> str:
    """Where people read the kept result of this key: its page, or else its object in the lake."""
    if settings.docs is None:
        return f"{settings.lake.rstrip('/')}/{key}"
    return f"{settings.docs}/{quote(Kept.parse(key).page)}"


def _listed(lake: Lake, prefix: str) -> list[Kept]:
    """The results under a prefix; what somebody else put there is left alone."""
    found = []
    for item in lake.list(prefix):
        with suppress(LakeError):
            found.append(Kept.parse(item.key))
    return found


def _newest(items: Iterable[Kept]) -> list[Kept]:
    """The newest first; one a run, as a killed writer leaves what it was about to replace."""
    by_run: dict[str, Kept] = {}
    for item in sorted(items, reverse=True):
        by_run.setdefault(item.run_id, item)
    return list(by_run.values())
