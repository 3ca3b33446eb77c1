"""Bringing an environment's databases up to what this release needs, before it starts.

Forward only: what an older release needs stays there (see `warehouse.migrations`). Each database is
done under a lock of its own, so that two who migrate at once do it once, and whoever is killed in
the middle has done a step or has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
import dagster_postgres.run_storage
from alembic.script import ScriptDirectory
from alembic.util import CommandError
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
    if all(now == needed for now, needed in before.values()):
        return f"Dagster's tables: {NOTHING}"
    with dg.DagsterInstance.get() as instance:
        instance.upgrade()
    is_new = not any(now for now, _ in before.values())
    return f"Dagster's tables: {'made' if is_new else 'migrated'}"


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Dagster's own migrations do not wait for each other."""
    with connect(url, "migrating", autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s, hashtext('dagster'))", [LOCK])
        yield
