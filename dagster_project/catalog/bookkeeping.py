"""How far each destination has been told, and what it refused: kept beside Dagster's event log.

The tables lie in the schema `mesh` of the database that holds the event log, so that a cursor is
never of another log. Who delivers holds a lock; who does not may only look.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from dagster_project.catalog import tables
from dagster_project.catalog.books_lock import connected, is_wanted, take
from dagster_project.catalog.dead_letters import DeadLetter, Record, Refused, keep, waiting
from dagster_project.catalog.said_once import is_said_once

if TYPE_CHECKING:
    import psycopg

#: Seconds for which newer declarations hold after who has them was last seen.
NEWER_HOLDS = 900.0
#: Seconds that a command waits until who delivers all the time gives way, which is between batches.
GIVES_WAY = 30.0


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
        """Of a destination whose lock the connection holds."""
        self._connection, self.destination = connection, destination
        connection.execute(
            "INSERT INTO mesh.catalog_destinations (destination) VALUES (%s) "
            "ON CONFLICT DO NOTHING",
            (destination,),
        )

    @property
    def are_wanted(self) -> bool:
        """Whether somebody waits for them: who has them open all the time gives way."""
        return is_wanted(self._connection, self.destination)

    @property
    def event_id(self) -> int:
        """The storage id of the last event that was told; 0 before the first."""
        return int(self._of_destination("event_id"))

    @property
    def event_mark(self) -> str | None:
        """What the log says that event was; None if it does not, or that was not kept."""
        mark: str | None = self._of_destination("event_mark")
        return mark

    @property
    def reached(self) -> int:
        """The highest storage id that was ever told; 0 if that is not known."""
        return int(self._of_destination("reached"))

    @property
    def declared(self) -> str:
        """The digest of the declarations that were told last; empty before the first."""
        return str(self._of_destination("declared"))

    def declarations(self) -> list[Record]:
        """What of the declarations that were told last has to be taken back once it is gone."""
        packed = self._of_destination("declarations")
        return orjson.loads(zlib.decompress(packed)) if packed else []

    def is_outdated(self, digest: str, who: str) -> bool:
        """Whether these declarations were told once, and another tells newer ones now.

        `who` has them: what the same one has told meanwhile, it has changed back. Of others, what
        is newer holds until they have not been there for a while: as where all went back to an
        older version.
        """
        row = self._connection.execute(
            "SELECT FROM mesh.catalog_destinations WHERE destination = %s AND declared <> %s "
            "AND %s = ANY(superseded) AND declared_by <> %s "
            "AND declared_seen_at > now() - make_interval(secs => %s)",
            (self.destination, digest, digest, who, NEWER_HOLDS),
        ).fetchone()
        return row is not None

    def assets(self) -> Any:
        """What was known last of the domains' assets, as it was kept; None before the first."""
        packed = self._of_destination("assets")
        return orjson.loads(zlib.decompress(packed)) if packed else None

    def keep_assets(self, known: Any) -> None:
        """What is known of the domains' assets, for a time when that cannot be read."""
        packed = zlib.compress(orjson.dumps(known))
        self._connection.execute(
            "UPDATE mesh.catalog_destinations SET assets = %s "
            "WHERE destination = %s AND assets IS DISTINCT FROM %s",
            (packed, self.destination, packed),
        )

    def told_events(
        self, up_to: int, refused: Sequence[Refused] = (), mark: str | None = None
    ) -> None:
        """Events up to this one, which has this mark, were told, but for those refused."""
        with self._connection.transaction():
            keep(self._connection, self.destination, refused)
            self._connection.execute(
                "UPDATE mesh.catalog_destinations SET event_id = %(up_to)s, event_mark = %(mark)s, "
                "reached = greatest(reached, %(up_to)s) "
                # One who has lost its lock may be behind.
                "WHERE destination = %(destination)s AND event_id <= %(up_to)s",
                {"up_to": up_to, "mark": mark, "destination": self.destination},
            )
            self._connection.execute(
                "UPDATE mesh.catalog_destinations SET told_at = now(), failing_since = NULL, "
                "failure = NULL WHERE destination = %s",
                (self.destination,),
            )

    def told_declarations(
        self,
        digest: str,
        records: Iterable[Record],
        refused: Sequence[Refused] = (),
        who: str = "",
    ) -> None:
        """Those of this digest were told, by `who`; what was refused of others is out of date."""
        with self._connection.transaction():
            self._connection.execute(
                "DELETE FROM mesh.catalog_dead_letters WHERE destination = %s AND event_id IS NULL",
                (self.destination,),
            )
            keep(self._connection, self.destination, refused)
            self._connection.execute(
                "UPDATE mesh.catalog_destinations SET declared = %(digest)s, "
                "declarations = %(records)s, told_at = now(), failing_since = NULL, "
                "failure = NULL, declared_by = %(who)s, declared_seen_at = now(), "
                # Of an hour's deliveries or of years': the last ones are those that matter.
                "superseded = (array_remove(superseded, %(digest)s) || "
                "CASE declared WHEN '' THEN '{}'::text[] WHEN %(digest)s THEN '{}'::text[] "
                "ELSE ARRAY[declared] END)[greatest(1, cardinality(superseded) - 98):] "
                "WHERE destination = %(destination)s",
                {
                    "digest": digest,
                    "records": _packed(records),
                    "who": who,
                    "destination": self.destination,
                },
            )

    def begin_anew(self) -> None:
        """As if no event had been told, since the log is another one."""
        self._connection.execute(
            "UPDATE mesh.catalog_destinations SET event_id = 0, event_mark = NULL, reached = 0 "
            "WHERE destination = %s",
            (self.destination,),
        )

    def forget(self, after: int) -> None:
        """As if nothing that is declared, and no event after this one, had been told.

        What has to be taken back once it is gone stays known.
        """
        kept = [record for record in self.declarations() if not is_said_once(record)]
        self._connection.execute(
            "UPDATE mesh.catalog_destinations SET event_id = least(event_id, %s), declared = '', "
            "event_mark = NULL, declarations = %s WHERE destination = %s",
            (after, _packed(kept), self.destination),
        )

    def failed(self, why: str) -> float:
        """Nothing can be delivered now. Gives for how many seconds this has been so."""
        row = self._connection.execute(
            "UPDATE mesh.catalog_destinations SET failure = %s, "
            "failing_since = coalesce(failing_since, now()) WHERE destination = %s "
            "RETURNING extract(epoch FROM now() - failing_since)",
            (why.replace("\x00", ""), self.destination),
        ).fetchone()
        return float(row[0]) if row else 0.0

    def recovered(self) -> None:
        """There is nothing that keeps it from being told."""
        self._connection.execute(
            "UPDATE mesh.catalog_destinations SET failing_since = NULL, failure = NULL "
            "WHERE destination = %s AND failing_since IS NOT NULL",
            (self.destination,),
        )

    def replayed(self, letter: DeadLetter, refused: Sequence[Refused]) -> None:
        """The letter was told again; it stays if it is still refused."""
        with self._connection.transaction():
            self._connection.execute(
                "DELETE FROM mesh.catalog_dead_letters WHERE id = %s", (letter.id,)
            )
            keep(self._connection, self.destination, refused)

    def refused(self) -> tuple[int, str] | None:
        """How many dead letters wait, and why the last one was refused; None if there is none."""
        row = self._connection.execute(
            "SELECT count(*) OVER (), reason FROM mesh.catalog_dead_letters "
            "WHERE destination = %s ORDER BY refused_at DESC, id DESC LIMIT 1",
            (self.destination,),
        ).fetchone()
        return (row[0], row[1]) if row else None

    def discard(self, letters: Iterable[DeadLetter]) -> None:
        """Let go of these, which are not told again."""
        self._connection.execute(
            "DELETE FROM mesh.catalog_dead_letters WHERE id = ANY(%s)",
            ([letter.id for letter in letters],),
        )

    def dead_letters(self) -> list[DeadLetter]:
        """All that wait, in the order in which they were refused."""
        return waiting(self._connection, self.destination)

    def _of_destination(self, column: str) -> Any:
        statement = f"SELECT {column} FROM mesh.catalog_destinations WHERE destination = %s"
        row = self._connection.execute(statement, (self.destination,)).fetchone()
        assert row
        return row[0]


@contextmanager
def books_of(
    url: str, destination: str, former: str | None = None, patience: float = 0
) -> Iterator[Books]:
    """The books of a destination, while nobody else delivers to it.

    `former` is what the destination was called before, if it was. Raises BusyError if somebody
    delivers and does not give way within `patience` in seconds, TransientCatalogError if the
    database is away.
    """
    with connected(url) as connection:
        take(connection, destination, patience)
        with connection.transaction():
            tables.BOOKS.prepare(connection)
        if former is not None:
            _rename(connection, former, destination)
        yield Books(connection, destination)


def seen(url: str, destination: str, digest: str) -> None:
    """Somebody who has the declarations of this digest is there, whether he delivers or not."""
    with connected(url) as connection:
        if tables.are_there(connection):
            with connection.transaction():
                tables.BOOKS.prepare(connection)
            connection.execute(
                "UPDATE mesh.catalog_destinations SET declared_seen_at = now() "
                "WHERE destination = %s AND declared = %s",
                (destination, digest),
            )


def read_progress(url: str) -> list[Progress]:
    """How far every destination has been told; none if nobody has delivered anything."""
    with connected(url) as connection:
        if not tables.are_there(connection):
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


def to_keep(records: Collection[Record]) -> list[Record]:
    """Those of the declarations that are taken back once they are gone, or told only once."""
    return [
        record
        for record in records
        if record["aspectName"] == "status"
        or record["changeType"] == "PATCH"
        or is_said_once(record)
    ]


def _rename(connection: psycopg.Connection[Any], former: str, now: str) -> None:
    """Let the destination go on from where it was when it was called otherwise."""
    known = connection.execute(
        "SELECT destination FROM mesh.catalog_destinations WHERE destination IN (%s, %s)",
        (former, now),
    ).fetchall()
    if known != [(former,)]:
        return
    # A process of before that delivers to it would find nothing.
    take(connection, former, 0)
    with connection.transaction():
        for table in ("catalog_destinations", "catalog_dead_letters"):
            statement = f"UPDATE mesh.{table} SET destination = %s WHERE destination = %s"
            connection.execute(statement, (now, former))


def _packed(records: Iterable[Record]) -> bytes:
    return zlib.compress(orjson.dumps(list(records)))
