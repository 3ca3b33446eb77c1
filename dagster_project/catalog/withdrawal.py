"""What was told once and is no longer so: entities that are gone, and what was added to others.

A catalog keeps what nobody takes back. So what the records of before tell is compared with what
those of now do; what was taken back once is taken back again each time, for whoever missed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]


def withdrawn(before: Iterable[Record], now: Iterable[Record]) -> Iterator[Record]:
    """Records that take back what those of before told, and those of now do not.

    An entity that is gone is marked removed, which DataHub hides and can undo. An owner, a tag or
    an asset of a data product that is gone is removed from its entity; what people added stays. So
    it is of an entity that is gone: if it returns with another owner, it has not both.
    """
    told, telling = list(before), list(now)
    there = {record["entityUrn"] for record in telling}
    added = {
        (record["entityUrn"], record["aspectName"], operation["path"])
        for record in telling
        for operation in _operations(record)
    }
    gone: dict[str, Record] = {}
    for record in told:
        entity = (record["entityUrn"], record["aspectName"])
        paths = [operation["path"] for operation in _operations(record)]
        if record["entityUrn"] not in there:
            if record["aspectName"] == "status":
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
    operations = _operations(record)
    return bool(operations) and all(operation["op"] == "remove" for operation in operations)


def _operations(record: Record) -> list[Mapping[str, Any]]:
    """Those of a JSON patch, plain or with the keys of the arrays that it adds to."""
    if record["changeType"] != "PATCH":
        return []
    patch = record["aspect"]["json"]
    operations: list[Mapping[str, Any]] = patch["patch"] if isinstance(patch, dict) else patch
    return operations


def _removing(record: Record, paths: list[str]) -> Record:
    operations = [{"op": "remove", "path": path, "value": {}} for path in paths]
    patch = record["aspect"]["json"]
    content = {**patch, "patch": operations} if isinstance(patch, dict) else operations
    return {**record, "aspect": {"json": content}}
