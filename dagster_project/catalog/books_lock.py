"""Who has the books of a destination open: a connection to them, and the lock that it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dagster_project.failures import BusyError, CatalogError, TransientCatalogError
from dagster_project.warehouse.connection import CONNECT_TIMEOUT, masked, place
from dagster_project.warehouse.migrations import LOCK

if TYPE_CHECKING:
    import psycopg

_WAITING = (
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
    "AND classid = %s AND objid = %s::bigint::oid AND objsubid = 2 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)
#: How each side finds out that the other one is gone without a word: within a minute.
_KEPT_ALIVE: dict[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection for as long as it lasts.

    Raises TransientCatalogError if the database is away, CatalogError if it refuses.
    """
    import psycopg

    try:
        with psycopg.connect(
            url, connect_timeout=CONNECT_TIMEOUT, autocommit=True, **_KEPT_ALIVE
        ) as connection:
            # A lock is not to outlive a machine that is gone by hours.
            for name, value in _KEPT_ALIVE.items():
                connection.execute("SELECT set_config(%s, %s, false)", (f"tcp_{name}", str(value)))
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


def _lock(destination: str) -> int:
    return int.from_bytes(hashlib.sha256(destination.encode()).digest()[:4], signed=True)


def take(connection: psycopg.Connection[Any], destination: str, patience: float) -> None:
    """Take the lock of a destination, until the connection is closed. Raises BusyError."""
    import psycopg

    key = (LOCK, _lock(destination))
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()
    if row and row[0]:
        return
    try:
        if patience:
            with connection.transaction():
                milliseconds = str(round(patience * 1000))
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (milliseconds,))
                connection.execute("SELECT pg_advisory_lock(%s, %s)", key)
            return
    except psycopg.errors.LockNotAvailable:
        pass
    raise BusyError(
        f"another process delivers to {destination}, as `mesh ui` does: what happens is told by "
        "that one"
    )


def is_wanted(connection: psycopg.Connection[Any], destination: str) -> bool:
    """Whether somebody waits for the lock."""
    # What is locked is shown without a sign.
    lock = _lock(destination) & 0xFFFFFFFF
    row = connection.execute(_WAITING, (LOCK, lock)).fetchone()
    return bool(row and row[0])
