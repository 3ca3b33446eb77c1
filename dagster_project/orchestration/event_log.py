"""Dagster's event log as one sequence: what came after an event, of all runs, in order.

Events are numbered when they are written, and seen when they are committed: one may be seen later
than another with a higher number. So nothing is read beyond a number before all who may still
write below it have ended. Nobody has to wait for that but who reads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa
from dagster._core.events.log import EventLogEntry
from dagster._serdes import deserialize_value

from dagster_project.failures import CatalogError

#: Seconds to wait for those who write, and between two looks.
_PATIENCE, _LOOK = 10.0, 0.05
_LAST = sa.text("SELECT coalesce(max(id), 0) FROM event_logs")
#: Whoever writes an event holds this lock from before the event has its number.
_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted "
    "AND mode = 'RowExclusiveLock' AND relation = 'event_logs'::regclass "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_EVENTS = sa.text(
    "SELECT id, event FROM event_logs WHERE id > :after AND id <= :up_to "
    "AND dagster_event_type = ANY(:kinds) ORDER BY id LIMIT :at_most"
)
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
    entry: EventLogEntry


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
        """The number up to which nothing is added any more; `after` if that is not known yet."""
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            last: int = connection.execute(_LAST).scalar_one()
            if last <= after:
                return after
            writing = set(connection.execute(_WRITERS).scalars())
            limit = time.monotonic() + _PATIENCE
            while writing:
                if time.monotonic() > limit:
                    return after
                time.sleep(_LOOK)
                writing &= set(connection.execute(_WRITERS).scalars())
        return last

    def read(
        self, after: int, up_to: int, kinds: Sequence[dg.DagsterEventType], at_most: int
    ) -> list[Event]:
        """The first events of these kinds after one number and up to another."""
        wanted = {
            "after": after,
            "up_to": up_to,
            "kinds": [kind.value for kind in kinds],
            "at_most": at_most,
        }
        with self._storage.index_connection() as connection:  # type: ignore[attr-defined]
            rows = connection.execute(_EVENTS, wanted).fetchall()
        return [Event(number, deserialize_value(event, EventLogEntry)) for number, event in rows]

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
