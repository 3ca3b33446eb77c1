"""What was told once and is no longer so: entities that are gone, and what was added to others.

A catalog keeps what nobody takes back. So what the records of before tell is compared with what
those of now do; what was taken back once is taken back again each time, for whoever missed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

#: Entities that all environments have together.
_OF_ALL = {"dataProduct", "domain", "tag"}
#: What of these is one environment's: the tables of a data product.
_OF_ONE = "/assets/"


def withdrawn(
    before: Iterable[Record], now: Iterable[Record], speaks_for_all: bool
) -> Iterator[Record]:
    """Records that take back what those of before told, and those of now do not.

    Of what all environments have together, only the one that `speaks_for_all` takes anything back
    but its own tables: what staging has no more may still be production's.

    An entity that is gone is marked removed, which DataHub hides and can undo. An owner, a tag or
    an asset of a data product that is gone is removed from its entity; what people added stays. So
    it is of an entity that is gone: if it returns with another owner, it has not both.
    """
    told, telling = list(before), list(now)
    there = {record["entityUrn"] for record in telling}
    added = {
        (record["entityUrn"], record["aspectName"], operation["path"])
        for record in telling
        for operation in operations(record)
    }
    gone: dict[str, Record] = {}
    for record in told:
        entity = (record["entityUrn"], record["aspectName"])
        paths = [operation["path"] for operation in operations(record)]
        is_ours = speaks_for_all or record["entityType"] not in _OF_ALL
        if not is_ours:
            paths = [path for path in paths if path.startswith(_OF_ONE)]
        if record["entityUrn"] not in there:
            if record["aspectName"] == "status" and is_ours:
                gone[record["entityUrn"]] = {**record, "aspect": {"json": {"removed": True}}}
            # What is hidden keeps its name and its description.
            paths = [path for path in paths if path.count("/") > 1]
        if left := [path for path in paths if (*entity, path) not in added]:
            yield _removing(record, left)
    yield from gone.values()


def takes_back(record: Record) -> bool:
    """Whether the record takes back what another one told."""
    if record["aspectName"] == "status":
        return bool(record["aspect"]["json"]["removed"])
    changes = operations(record)
    return bool(changes) and all(change["op"] == "remove" for change in changes)


def operations(record: Record) -> list[Mapping[str, Any]]:
    """The operations of a JSON patch, plain or with the keys of the arrays that it adds to."""
    if record["changeType"] != "PATCH":
        return []
    patch = record["aspect"]["json"]
    changes: list[Mapping[str, Any]] = patch["patch"] if isinstance(patch, dict) else patch
    return changes


def with_operations(record: Record, changed: Sequence[Mapping[str, Any]]) -> Record:
    """The record with these operations in place of its own."""
    patch = record["aspect"]["json"]
    content = {**patch, "patch": changed} if isinstance(patch, dict) else changed
    return {**record, "aspect": {"json": content}}


def _removing(record: Record, paths: Iterable[str]) -> Record:
    return with_operations(record, [{"op": "remove", "path": p, "value": {}} for p in paths])
