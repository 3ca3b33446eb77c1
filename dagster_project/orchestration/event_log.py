"""Dagster's event log as one sequence: what came after an event, of all runs, in order.

Events are numbered when they are written, and seen when they are committed: one may be seen later
than another with a higher number. So nothing is read beyond a number before all who may still
write below it have ended. Nobody has to wait for that but who reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.events.log import EventLogEntry
from dagster._serdes import deserialize_value

from dagster_project.failures import CatalogError, TransientCatalogError

#: Seconds to wait for those who write, and between two looks.
_PATIENCE, _LOOK = 10.0, 0.05
#: Seconds for which a transaction writes that has been forgotten.
_FORGOTTEN = 300.0
#: Characters of events that are read at once, should there be large ones.
_AT_ONCE = 8 * 1024 * 1024
_LAST = sa.text("SELECT coalesce(max(id), 0) FROM event_logs")
#: Whoever writes an event holds this lock from before the event has its number. What another user
#: does, not everybody may see.
_WRITERS = sa.text(
    "SELECT l.virtualtransaction, l.pid, coalesce(a.application_name, ''), "
    "coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 'infinity')::float "
    "FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
    "WHERE l.locktype = 'relation' AND l.granted "
    "AND l.mode = 'RowExclusiveLock' AND l.relation = 'event_logs'::regclass "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_SIZES = sa.text(
    "SELECT id, octet_length(event) FROM event_logs WHERE id > :after AND id <= :up_to "
    "AND dagster_event_type = ANY(:kinds) ORDER BY id LIMIT :at_most"
)
_EVENTS = sa.text(
    "SELECT id, event FROM event_logs WHERE id > :after AND id <= :up_to "
    "AND dagster_event_type = ANY(:kinds) ORDER BY id"
)
_MARK = sa.text("SELECT md5(event) FROM event_logs WHERE id = :id")
# None if nobody knows.
_NUMBERED = sa.text(
    "SELECT coalesce(pg_sequence_last_value(name::regclass), 0) "
    "FROM pg_get_serial_sequence('event_logs', 'id') name WHERE name IS NOT NULL"
)
_COUNT = sa.text("SELECT count(*) FROM event_logs WHERE id > :after AND id <= :up_to")
# Events of one moment are not all numbered in its order, and none is to be left out.
_BEFORE = sa.text(
    "SELECT coalesce(min(id) - 1, (SELECT coalesce(max(id), 0) FROM event_logs)) "
    "FROM event_logs WHERE timestamp >= :since"
)
_MADE = sa.text(
    "SELECT DISTINCT asset_key FROM event_logs "
    "WHERE run_id = :run_id AND dagster_event_type = 'ASSET_MATERIALIZATION'"
)


@dataclass(frozen=True, slots=True)
class Event:
    """An event with its number in the log."""

    id: int
    #: None if it cannot be read, as one of a later Dagster.
    entry: EventLogEntry | None
    #: Why it cannot.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the log: its events of some kinds, and the number up to which these are all."""

    events: Sequence[Event]
    up_to: int


class EventLog:
    """The event log of an instance whose storage is PostgreSQL."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._storage = instance.event_log_storage
        if not hasattr(self._storage, "postgres_url"):
            raise CatalogError(
                f"Dagster's storage is {type(self._storage).__name__}: the catalog follows an "
                "event log in PostgreSQL (MESH_DAGSTER_URL)"
            )

    def complete_up_to(self, after: int) -> int:
        """The number up to which nothing is added any more; `after` if that is not known yet.

        Raises TransientCatalogError if that takes for ever, since somebody forgot a transaction.
        """
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            last: int = connection.execute(_LAST).scalar_one()
            if last <= after:
                return after
            waiting = {row[0] for row in connection.execute(_WRITERS)}
            limit = time.monotonic() + _PATIENCE
            while waiting:
                writers = [row for row in connection.execute(_WRITERS) if row[0] in waiting]
                waiting = {row[0] for row in writers}
                if writers and time.monotonic() > limit:
                    _refuse_forgotten(writers)
                    return after
                if waiting:
                    time.sleep(_LOOK)
        return last

    def read(
        self, after: int, up_to: int, kinds: Sequence[dg.DagsterEventType], at_most: int
    ) -> Part:
        """The first events of these kinds after one number and up to another: not many at once."""
        wanted = {"after": after, "up_to": up_to, "kinds": [kind.value for kind in kinds]}
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            rows = connection.execute(_SIZES, wanted | {"at_most": at_most}).fetchall()
            ids: list[int] = []
            size = 0
            for number, length in rows:
                if ids and size + length > _AT_ONCE:
                    break
                ids.append(number)
                size += length
            if len(ids) == at_most or len(ids) < len(rows):
                up_to = ids[-1]
            found = connection.execute(_EVENTS, wanted | {"up_to": up_to}) if ids else ()
            return Part([_event(number, text) for number, text in found], up_to)

    def mark(self, number: int) -> str | None:
        """What tells the event of this number from others; None if there is none."""
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            found: str | None = connection.execute(_MARK, {"id": number}).scalar()
        return found

    def goes_on(self, after: int, mark: str | None) -> bool:
        """Whether it is still the log whose event `after` had this mark.

        If not, it was restored from a backup or made anew, and what is new has numbers of before.
        """
        if not after:
            return True
        now = self.mark(after)
        if mark is not None and now is not None:
            return now == mark
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            last = connection.execute(_NUMBERED).scalar()
        return last is None or last >= after

    def missing(self, after: int, up_to: int) -> int:
        """How many of these numbers no event has any more, or ever had."""
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            there: int = connection.execute(_COUNT, {"after": after, "up_to": up_to}).scalar_one()
        return max(up_to - after, 0) - there

    def last_before(self, since: datetime) -> int:
        """The number after which all events of `since` and later come; 0 if these are all."""
        # Dagster's own column, without a time zone, is of UTC.
        moment = since.astimezone(UTC).replace(tzinfo=None)
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            before: int = connection.execute(_BEFORE, {"since": moment}).scalar_one()
        return before

    def assets_made(self, run_id: str) -> set[dg.AssetKey]:
        """The assets that a run has materialised, with any of their partitions."""
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            keys = connection.execute(_MADE, {"run_id": run_id}).scalars().all()
        return {found for key in keys if (found := dg.AssetKey.from_db_string(key))}


def _event(number: int, text: str) -> Event:
    try:
        return Event(number, deserialize_value(text, EventLogEntry))
    except Exception as error:  # noqa: BLE001 - whatever another version of Dagster has written
        return Event(
            number, None, f"event {number} cannot be read: {type(error).__name__}: {error}"
        )


def _refuse_forgotten(writers: Iterable[sa.Row[Any]]) -> None:
    """Raise TransientCatalogError if one of these writes for too long."""
    for _, pid, name, seconds in writers:
        if seconds > _FORGOTTEN:
            raise TransientCatalogError(
                f"process {pid} of the database{f' ({name})' if name else ''} has a transaction "
                "open that wrote to Dagster's event log, and what came after may still change. End "
                f"the transaction: SELECT pg_terminate_backend({pid})"
            )
