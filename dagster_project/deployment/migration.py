"""Bringing an environment's databases up to what this release needs, before it starts.

Forward only: what an older release needs stays there (see `warehouse.migrations`). Each database is
done under a lock of its own, so that two who migrate at once do it once, and whoever is killed in
the middle has done a step or has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from typing import Any

import dagster as dg
import dagster_postgres.run_storage
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from dagster._core.storage.event_log import SqlEventLogStorageMetadata
from dagster._core.storage.runs import RunStorageSqlMetadata
from dagster._core.storage.schedules import ScheduleStorageSqlMetadata
from dagster._core.storage.sql import stamp_alembic_rev
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import pg_alembic_config

from dagster_project.catalog.tables import BOOKS
from dagster_project.failures import NewerDatabaseError, SettingsError
from dagster_project.quality.profiles import PROFILES
from dagster_project.settings import Settings, warehouse_url
from dagster_project.warehouse.connection import connect, place
from dagster_project.warehouse.ledger import LEDGER
from dagster_project.warehouse.migrations import LOCK, Migrations

#: Our tables, by the database that they lie in.
OF_WAREHOUSE = (LEDGER, PROFILES)
OF_DAGSTER = (BOOKS,)
_METADATA: tuple[sa.MetaData, ...] = (
    RunStorageSqlMetadata,
    SqlEventLogStorageMetadata,
    ScheduleStorageSqlMetadata,
)
#: What is said where all was done before.
NOTHING = "nothing to do"


def migrate(settings: Settings) -> Iterator[str]:
    """Take all steps that are left; says of each database what was done.

    In an environment that knows both databases, as within `services`. Raises WarehouseError if one
    is away or refuses, NewerDatabaseError if a newer release has migrated it.
    """
    url = warehouse_url(settings)
    yield f"warehouse {place(url)}: {_ours(url, OF_WAREHOUSE)}"
    url = dagster_url(settings)
    with _alone(url):
        said = _dagsters(url)
    yield f"Dagster's database {place(url)}: {said}, {_ours(url, OF_DAGSTER)}"


def dagster_url(settings: Settings) -> str:
    """The URL of Dagster's database, with its password. Raises SettingsError if it is not known."""
    if settings.dagster_url is None:
        raise SettingsError("MESH_DAGSTER_URL, which names Dagster's own database, is not set")
    return settings.dagster_url.get_secret_value()


def revisions(url: str) -> Mapping[str, tuple[str | None, str | None]]:
    """Of each of Dagster's storages the revision of its tables, and the one that it needs.

    Makes no table. The first is None where there is none.
    """
    storage = DagsterPostgresStorage(url, should_autocreate_tables=False)
    storages: Mapping[str, Any] = {
        "runs": storage.run_storage,
        "events": storage.event_log_storage,
        "schedules": storage.schedule_storage,
    }
    return {name: each.alembic_version() for name, each in storages.items()}


def lacking(url: str) -> list[str]:
    """Which of the tables that this release's Dagster makes are not there."""
    needed = {name for metadata in _METADATA for name in metadata.tables}
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return sorted(needed - set(sa.inspect(connection).get_table_names()))


def knows(revision: str) -> bool:
    """Whether this release's Dagster knows such a revision; of a newer one it does not."""
    scripts = ScriptDirectory.from_config(pg_alembic_config(dagster_postgres.run_storage.__file__))
    try:
        return bool(scripts.get_revisions(revision))
    except CommandError:
        return False


def _ours(url: str, sets: tuple[Migrations, ...]) -> str:
    said = []
    with connect(url, "migrating", autocommit=True) as connection:
        for each in sets:
            taken = each.migrate(connection)
            done = f"{taken} {'step' if taken == 1 else 'steps'} taken"
            said.append(f"{each.tables}: {done if taken else NOTHING}")
    return ", ".join(said)


def _dagsters(url: str) -> str:
    """Dagster makes its tables when it first opens them, and then knows how to change them."""
    before = revisions(url)
    unknown = sorted({now for now, _ in before.values() if now and not knows(now)})
    if unknown:
        raise NewerDatabaseError(
            f"Dagster's database {place(url)} was migrated by a newer Dagster, to {unknown[0]}, "
            "which this one does not know. Nothing was changed: deploy that release, or restore "
            "the database of this one's time"
        )
    is_old = any(now and now != needed for now, needed in before.values())
    is_new = not is_old and bool(lacking(url))
    if not is_old and not is_new and all(now for now, _ in before.values()):
        return f"Dagster's tables: {NOTHING}"
    if not is_old:
        _make(url)
    # How far it is with tables in which nothing is, nobody has to see.
    quiet = redirect_stderr(StringIO()) if is_new else nullcontext()
    with dg.DagsterInstance.get() as instance, quiet:
        instance.upgrade()
        if is_new:
            # What it notes of tables that it has made itself: that they need none of this.
            instance.reindex()
    return f"Dagster's tables: {'made' if is_new else 'migrated'}"


def _make(url: str) -> None:
    """All that are not there, and which revision they are of, in one transaction.

    Dagster makes them one by one when it first opens them: of who is killed in between, half would
    be there, and would be taken for all.
    """
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        for metadata in _METADATA:
            metadata.create_all(connection)
        # Commits.
        stamp_alembic_rev(pg_alembic_config(dagster_postgres.run_storage.__file__), connection)
        connection.commit()


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Dagster's own migrations do not wait for each other."""
    with connect(url, "migrating", autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s, hashtext('dagster'))", [LOCK])
        yield
