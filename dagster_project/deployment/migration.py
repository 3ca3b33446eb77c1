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
from alembic.util import CommandError

from dagster_project.catalog.tables import BOOKS
from dagster_project.quality.profiles import PROFILES
from dagster_project.settings import Settings, warehouse_url
from dagster_project.warehouse.connection import connect, place
from dagster_project.warehouse.ledger import LEDGER
from dagster_project.warehouse.migrations import LOCK, Migrations

#: Our tables, by the database that they lie in.
OF_WAREHOUSE = (LEDGER, PROFILES)
OF_DAGSTER = (BOOKS,)


def migrate(settings: Settings) -> Iterator[str]:
    """Take all steps that are left; says of each database what was done.

    In an environment that knows both databases, as within `services`. Raises WarehouseError.
    """
    url = warehouse_url(settings)
    yield f"warehouse {place(url)}: {_ours(url, OF_WAREHOUSE)}"
    assert settings.dagster_url
    url = settings.dagster_url.get_secret_value()
    with _alone(url):
        taken = _dagsters()
    yield f"Dagster's database {place(url)}: {taken}, {_ours(url, OF_DAGSTER)}"


def revisions(instance: dg.DagsterInstance) -> Mapping[str, tuple[str | None, str | None]]:
    """Of each of Dagster's storages the revision of its tables, and the one that it needs."""
    storages: Mapping[str, Any] = {
        "runs": instance.run_storage,
        "events": instance.event_log_storage,
        "schedules": instance.schedule_storage,
    }
    return {name: storage.alembic_version() for name, storage in storages.items()}


def _ours(url: str, sets: tuple[Migrations, ...]) -> str:
    said = []
    with connect(url, "migrating", autocommit=True) as connection:
        for each in sets:
            if taken := each.migrate(connection):
                said.append(f"{each.tables} {taken} {'step' if taken == 1 else 'steps'}")
            elif (done := each.done(connection)) > len(each.steps):
                more = done - len(each.steps)
                said.append(f"{each.tables} {more} ahead, by a newer release: nothing to do")
            else:
                said.append(f"{each.tables} up to date")
    return ", ".join(said)


def _dagsters() -> str:
    """Dagster makes its tables when it first opens them, and then knows how to change them."""
    with dg.DagsterInstance.get() as instance:
        before = revisions(instance)
        if all(now == needed for now, needed in before.values()):
            return "Dagster's own tables up to date"
        try:
            instance.upgrade()
        except CommandError as error:
            if "Can't locate revision" not in str(error):
                raise
            return "Dagster's own tables ahead, by a newer release: nothing to do"
        return "Dagster's own tables migrated"


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Dagster's own migrations do not wait for each other."""
    with connect(url, "migrating", autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s, hashtext('dagster'))", [LOCK])
        yield
