"""What a destination refused: kept with the reason, until it is told again or let go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from dagster_project.catalog import tables
from dagster_project.catalog.books_lock import connected

if TYPE_CHECKING:
    import psycopg

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """What a destination did not take, or what could not be told it."""

    #: The storage id of the event that it tells of; None if it is of the declarations.
    event_id: int | None
    reason: str
    #: None if the event could not be told at all.
    record: Record | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What was refused, and waits to be told again."""

    id: int
    #: The storage id of the event that it tells of; None if it is of the declarations.
    event_id: int | None
    entity: str
    aspect: str
    reason: str
    record: Record | None
    refused_at: datetime


def keep(connection: psycopg.Connection[Any], destination: str, refused: Iterable[Refused]) -> None:
    """Keep what was refused; once, however often it is."""
    for each in refused:
        record = orjson.dumps(each.record, option=orjson.OPT_SORT_KEYS)
        connection.execute(
            "INSERT INTO mesh.catalog_dead_letters "
            "(destination, event_id, entity, aspect, reason, record, digest) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (destination, digest) "
            "DO UPDATE SET reason = excluded.reason, refused_at = excluded.refused_at",
            (
                *(destination, each.event_id),
                # PostgreSQL has no NUL in a text, nor in JSON.
                *(
                    (each.record or {}).get(name, "").replace("\x00", "")
                    for name in ("entityUrn", "aspectName")
                ),
                each.reason.replace("\x00", ""),
                record.decode().replace("\\u0000", "") if each.record else None,
                hashlib.sha256(b"%d " % (each.event_id or 0) + record).hexdigest(),
            ),
        )


def waiting(connection: psycopg.Connection[Any], destination: str) -> list[DeadLetter]:
    """All that wait, in the order in which they were refused."""
    rows = connection.execute(
        "SELECT id, event_id, entity, aspect, reason, record, refused_at "
        "FROM mesh.catalog_dead_letters WHERE destination = %s ORDER BY id",
        (destination,),
    ).fetchall()
    return [DeadLetter(*row) for row in rows]


def read_dead_letters(url: str, destination: str) -> list[DeadLetter]:
    """What the destination refused, in the order in which it did."""
    with connected(url) as connection:
        return waiting(connection, destination) if tables.are_there(connection) else []
