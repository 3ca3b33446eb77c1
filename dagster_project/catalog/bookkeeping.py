"""How far each destination has been told, and what it refused: kept beside Dagster's event log.

The tables lie in the schema `mesh` of the database that holds the event log, so that a cursor is
never of another log. Who delivers holds a lock; who does not may only look.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from dagster_project.catalog.said_once import is_said_once
from dagster_project.failures import BusyError, CatalogError, TransientCatalogError
from dagster_project.warehouse.connection import CONNECT_TIMEOUT, masked, place

if TYPE_CHECKING:
    import psycopg

Record = Mapping[str, Any]

#: Harmless where the thing exists.
_STATEMENTS = (
    "CREATE SCHEMA IF NOT EXISTS mesh",
    # `event_id` is the storage id of the last event told; `declared` a digest of the declarations
    # that were told last, and `declarations` what of them has to be taken back once it is gone.
    """CREATE TABLE IF NOT EXISTS mesh.catalog_destinations (
        destination text PRIMARY KEY, event_id bigint NOT NULL DEFAULT 0,
        declared text NOT NULL DEFAULT '', declarations bytea,
        told_at timestamptz, failing_since timestamptz, failure text)""",
    """CREATE TABLE IF NOT EXISTS mesh.catalog_dead_letters (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        destination text NOT NULL, event_id bigint, entity text NOT NULL, aspect text NOT NULL,
        reason text NOT NULL, record jsonb, refused_at timestamptz NOT NULL DEFAULT now(),
        digest text NOT NULL, UNIQUE (destination, digest))""",
)
_ARE_THERE = "SELECT to_regclass('mesh.catalog_dead_letters') IS NOT NULL"
#: Of the advisory locks of the database, those of deliverers.
_LOCKS = 0x6D657368


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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a destination has been told."""

    destination: str
    event_id: int
    #: How many events of any kind came since; most of them tell the catalog nothing.
    behind: int
    told_at: datetime | None
    #: Since when, and why, nothing can be delivered; None if it can.
    failing_since: datetime | None
    failure: str | None
    dead_letters: int


class Books:
    """What one destination was told; only one process has them open."""

    def __init__(self, connection: psycopg.Connection[Any], destination: str) -> None:
        self._connection, self.destination = connection, destination
        connection.execute(
            "INSERT INTO mesh.catalog_destinations (destination) VALUES (%s) "
            "ON CONFLICT DO NOTHING",
            (destination,),
        )

    @property
    def event_id(self) -> int:
        """The storage id of the last event that was told; 0 before the first."""
        return int(self._of_destination("event_id"))

    @property
    def declared(self) -> str:
        """The digest of the declarations that were told last; empty before the first."""
        return str(self._of_destination("declared"))

    @property
    def is_failing(self) -> bool:
        """Whether nothing could be delivered the last time."""
        return self._of_destination("failure") is not None

    def declarations(self) -> list[Record]:
        """What of the declarations that were told last has to be taken back once it is gone."""
        packed = self._of_destination("declarations")
        return orjson.loads(zlib.decompress(packed)) if packed else []

    def told_events(self, up_to: int, refused: Sequence[Refused] = ()) -> None:
        """Events up to this one were told, but for those that were refused."""
        with self._connection.transaction():
            self._keep(refused)
            self._connection.execute(
                "UPDATE mesh.catalog_destinations SET event_id = greatest(event_id, %s), "
                "told_at = now(), failing_since = NULL, failure = NULL WHERE destination = %s",
                (up_to, self.destination),
            )

    def told_declarations(
        self, digest: str, records: Iterable[Record], refused: Sequence[Refused] = ()
    ) -> None:
        """The declarations of this digest were told; what was refused of others is out of date."""
        with self._connection.transaction():
            self._connection.execute(
                "DELETE FROM mesh.catalog_dead_letters WHERE destination = %s AND event_id IS NULL",
                (self.destination,),
            )
            self._keep(refused)
            self._connection.execute(
                "UPDATE mesh.catalog_destinations SET declared = %s, declarations = %s, "
                "told_at = now(), failing_since = NULL, failure = NULL WHERE destination = %s",
                (digest, _packed(records), self.destination),
            )

    def forget(self, after: int) -> None:
        """As if nothing that is declared, and no event after this one, had been told.

        What has to be taken back once it is gone stays known.
        """
        kept = [record for record in self.declarations() if not is_said_once(record)]
        self._connection.execute(
            "UPDATE mesh.catalog_destinations SET event_id = least(event_id, %s), declared = '', "
            "declarations = %s WHERE destination = %s",
            (after, _packed(kept), self.destination),
        )

    def failed(self, why: str) -> None:
        """Nothing can be delivered now."""
        self._connection.execute(
            "UPDATE mesh.catalog_destinations SET failure = %s, "
            "failing_since = coalesce(failing_since, now()) WHERE destination = %s",
            (why, self.destination),
        )

    def replayed(self, letter: DeadLetter, refused: Sequence[Refused]) -> None:
        """The letter was told again; it stays if it is still refused."""
        with self._connection.transaction():
            self._connection.execute(
                "DELETE FROM mesh.catalog_dead_letters WHERE id = %s", (letter.id,)
            )
            self._keep(refused)

    def dead_letters(self) -> list[DeadLetter]:
        """All that wait, in the order in which they were refused."""
        return _dead_letters(self._connection, self.destination)

    def _of_destination(self, column: str) -> Any:
        statement = f"SELECT {column} FROM mesh.catalog_destinations WHERE destination = %s"
        row = self._connection.execute(statement, (self.destination,)).fetchone()
        assert row
        return row[0]

    def _keep(self, refused: Iterable[Refused]) -> None:
        for each in refused:
            record = orjson.dumps(each.record, option=orjson.OPT_SORT_KEYS)
            self._connection.execute(
                "INSERT INTO mesh.catalog_dead_letters "
                "(destination, event_id, entity, aspect, reason, record, digest) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (destination, digest) "
                "DO UPDATE SET reason = excluded.reason, refused_at = excluded.refused_at",
                (
                    *(self.destination, each.event_id),
                    *((each.record or {}).get(name, "") for name in ("entityUrn", "aspectName")),
                    # PostgreSQL has no NUL in a text, nor in JSON.
                    each.reason.replace("\x00", ""),
                    record.decode().replace("\\u0000", "") if each.record else None,
                    hashlib.sha256(b"%d " % (each.event_id or 0) + record).hexdigest(),
                ),
            )


@contextmanager
def books_of(url: str, destination: str) -> Iterator[Books]:
    """The books of a destination, while nobody else delivers to it.

    Raises BusyError if somebody does, TransientCatalogError if the database is away.
    """
    with _connect(url) as connection:
        lock = int.from_bytes(hashlib.sha256(destination.encode()).digest()[:4], signed=True)
        row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (_LOCKS, lock)).fetchone()
        if not row or not row[0]:
            raise BusyError(
                f"another process delivers to {destination}, as `mesh ui` does: what happens is "
                "told by that one"
            )
        if not _are_there(connection):
            for statement in _STATEMENTS:
                connection.execute(statement)
        yield Books(connection, destination)


def read_progress(url: str) -> list[Progress]:
    """How far every destination has been told; none if nobody has delivered anything."""
    with _connect(url) as connection:
        if not _are_there(connection):
            return []
        rows = connection.execute(
            "SELECT destination, event_id, "
            "greatest((SELECT max(id) FROM event_logs) - event_id, 0), "
            "told_at, failing_since, failure, "
            "(SELECT count(*) FROM mesh.catalog_dead_letters l "
            "WHERE l.destination = d.destination) FROM mesh.catalog_destinations d "
            "ORDER BY destination"
        ).fetchall()
    return [Progress(*row) for row in rows]


def read_dead_letters(url: str, destination: str) -> list[DeadLetter]:
    """What the destination refused, in the order in which it did."""
    with _connect(url) as connection:
        return _dead_letters(connection, destination) if _are_there(connection) else []


def to_keep(records: Collection[Record]) -> list[Record]:
    """Those of the declarations that are taken back once they are gone, or told only once."""
    return [
        record
        for record in records
        if record["aspectName"] == "status"
        or record["changeType"] == "PATCH"
        or is_said_once(record)
    ]


def _packed(records: Iterable[Record]) -> bytes:
    return zlib.compress(orjson.dumps(list(records)))


def _dead_letters(connection: psycopg.Connection[Any], destination: str) -> list[DeadLetter]:
    rows = connection.execute(
        "SELECT id, event_id, entity, aspect, reason, record, refused_at "
        "FROM mesh.catalog_dead_letters WHERE destination = %s ORDER BY id",
        (destination,),
    ).fetchall()
    return [DeadLetter(*row) for row in rows]


def _are_there(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute(_ARE_THERE).fetchone()
    return bool(row and row[0])


@contextmanager
def _connect(url: str) -> Iterator[psycopg.Connection[Any]]:
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT, autocommit=True) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise TransientCatalogError(
            f"the catalog's books at {place(url)}, beside Dagster's event log: the database does "
            f"not answer. Look whether it runs (`mesh status`). ({masked(str(error)).strip()})"
        ) from None
    except psycopg.Error as error:
        raise CatalogError(
            f"the catalog's books at {place(url)}, beside Dagster's event log: the database "
            f"refused: {masked(str(error)).strip()}"
        ) from None
