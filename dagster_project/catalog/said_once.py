"""What is told only when it changes: people may have written something else in its place.

Names, descriptions, parents and colours of domains, tags and data products are edited in DataHub in
the aspects that we tell, too. All else is told with every change of the declarations, and so heals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dagster_project.catalog.withdrawal import operations, with_operations

Record = Mapping[str, Any]

_WHOLE = {"domainProperties", "tagProperties"}
_IN_PART = {"dataProductProperties"}


def is_said_once(record: Record) -> bool:
    """Whether it holds anything that is told only when it changes."""
    return record["aspectName"] in _WHOLE | _IN_PART


def unsaid(before: Iterable[Record], now: Iterable[Record]) -> Iterator[Record]:
    """The records of now without what those of before have told, of what is told once."""
    told = {place_of(record): record for record in before if is_said_once(record)}
    for record in now:
        last = told.get(place_of(record)) if is_said_once(record) else None
        if last is None:
            yield record
        elif record["aspectName"] in _IN_PART:
            known = [each for each in operations(last) if not _is_of_a_list(each)]
            if left := [each for each in operations(record) if each not in known]:
                yield with_operations(record, left)
        elif last["aspect"] != record["aspect"]:
            yield record


def _is_of_a_list(operation: Mapping[str, Any]) -> bool:
    """Whether it adds to a list of the aspect, and replaces nothing in it."""
    return str(operation["path"]).count("/") > 1


def place_of(record: Record) -> tuple[str, str]:
    """What the record is of: the entity and the aspect."""
    return record["entityUrn"], record["aspectName"]
