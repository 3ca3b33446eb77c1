"""What has to be so before a release can run, looked at one after the other, and what to do if not.

Nothing is changed, but for an object of a moment in the lake. No secret is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from threading import Thread
from typing import Any
from uuid import uuid4

import dagster as dg

from dagster_project.deployment.migration import OF_DAGSTER, OF_WAREHOUSE, revisions
from dagster_project.domain import domain_names
from dagster_project.failures import MeshError
from dagster_project.ingestion.declaration import read_connections
from dagster_project.ingestion.environments import installed
from dagster_project.lake.store import Lake
from dagster_project.settings import PREFIX, Environment, Settings, warehouse_url
from dagster_project.transformation.project import is_parsed, read_manifest
from dagster_project.warehouse.connection import connect, masked, place
from dagster_project.warehouse.migrations import Migrations

#: The oldest PostgreSQL that will do, as a major version.
OLDEST = 16
#: Seconds that a check may take: what does not answer by then does not answer.
PATIENCE = 30.0
#: Settings without which an environment that is no laptop has nothing to work with.
REQUIRED = ("WAREHOUSE_URL", "DAGSTER_URL", "LAKE_URL")
_MIGRATE = "run `mesh deploy migrate`"


class AmissError(Exception):
    """What is not as it has to be, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    what: str
    is_well: bool
    said: str


def findings(settings: Settings) -> Iterator[Finding]:
    """Each check's finding, all of them, whatever the ones before have found."""
    looks: dict[str, Callable[[Settings], str]] = {
        "settings": _settings,
        "warehouse": _warehouse,
        "our tables there": lambda s: _migrated(warehouse_url(s), OF_WAREHOUSE),
        "Dagster's database": _dagster,
        "our tables beside it": lambda s: _migrated(_dagster_url(s), OF_DAGSTER),
        "lake": _lake,
        "dbt project": _dbt,
        "connectors": _connectors,
        "DataHub": _datahub,
    }
    for what, look in looks.items():
        yield _found(what, look, settings)


def _found(what: str, look: Callable[[Settings], str], settings: Settings) -> Finding:
    found: list[Finding] = []

    def run() -> None:
        try:
            found.append(Finding(what, True, look(settings)))
        except (MeshError, AmissError) as error:
            found.append(Finding(what, False, str(error)))
        except Exception as error:  # noqa: BLE001 - the other checks are made all the same
            found.append(Finding(what, False, f"{type(error).__name__}: {masked(str(error))}"))

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else Finding(what, False, f"no answer within {PATIENCE:.0f} s")


def _settings(settings: Settings) -> str:
    if settings.env is Environment.LOCAL:
        return "local: what is not set is embedded"
    missing = [PREFIX + name for name in REQUIRED if getattr(settings, name.lower()) is None]
    if missing:
        raise AmissError(
            f"{', '.join(missing)} not set, which {settings.env.value} needs: a secret of the "
            "environment that this process is given has to have it"
        )
    if (scheme := settings.lake.partition("://")[0]) == "s3":
        given = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if _is_set(name)]
        if len(given) == 1:
            raise AmissError(f"{given[0]} is set, and its other half is not")
    return f"{settings.env.value}: all that it needs is set; the lake is {scheme}"


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name))


def _dagster_url(settings: Settings) -> str:
    if settings.dagster_url is None:
        raise AmissError("MESH_DAGSTER_URL is not set")
    return settings.dagster_url.get_secret_value()


def _warehouse(settings: Settings) -> str:
    url = warehouse_url(settings)
    with connect(url, "looking at it") as connection:
        version = connection.info.server_version // 10_000
        ((is_superuser, may_create, may_stage),) = connection.execute(
            "SELECT rolsuper, has_database_privilege(current_database(), 'CREATE'), "
            "has_database_privilege(current_database(), 'TEMPORARY') "
            "FROM pg_roles WHERE rolname = current_user"
        )
    where = f"{place(url)}, PostgreSQL {version}"
    if version < OLDEST:
        raise AmissError(f"{where}: it has to be {OLDEST} or newer")
    lacking = [p for p, has in (("CREATE", may_create), ("TEMPORARY", may_stage)) if not has]
    if lacking:
        raise AmissError(
            f"{where}: the role may not make schemas, or stage what it loads: GRANT "
            f"{', '.join(lacking)} ON DATABASE … TO it"
        )
    if is_superuser and settings.env is not Environment.LOCAL:
        raise AmissError(
            f"{where}: the role is a superuser: give MESH_WAREHOUSE_URL one that owns the "
            "database's schemas and nothing else"
        )
    return where


def _dagster(settings: Settings) -> str:
    url = _dagster_url(settings)
    if settings.warehouse_url and warehouse_url(settings) == url:
        raise AmissError(
            f"{place(url)} is the warehouse, too: Dagster has a database, and a role, of its own"
        )
    with connect(url, "looking at Dagster's database") as connection:
        row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if row != (True,):
        raise AmissError(f"{place(url)} has none of Dagster's tables: {_MIGRATE}")
    with dg.DagsterInstance.get() as instance:
        old = [name for name, (now, needed) in revisions(instance).items() if now != needed]
    if old:
        raise AmissError(
            f"{place(url)}: Dagster's tables of {', '.join(old)} are of another release: {_MIGRATE}"
        )
    return f"{place(url)}, Dagster's tables up to date"


def _migrated(url: str, sets: tuple[Migrations, ...]) -> str:
    with connect(url, "looking at our tables") as connection:
        done = {each: each.done(connection) for each in sets}
    behind = [
        f"{each.tables} {number} of {len(each.steps)} steps"
        for each, number in done.items()
        if number < len(each.steps)
    ]
    if behind:
        raise AmissError(f"{', '.join(behind)}: {_MIGRATE}")
    ahead = [each.tables for each, number in done.items() if number > len(each.steps)]
    if ahead:
        return f"{', '.join(ahead)} ahead of this release, by a newer one, which does no harm"
    return ", ".join(f"{each.tables} up to date" for each in sets)


def _lake(settings: Settings) -> str:
    lake, key = Lake(settings.lake), f"_deploy_check/{uuid4().hex}"
    lake.create(key, b"mesh deploy check")
    try:
        if lake.read(key) != b"mesh deploy check":
            raise AmissError(f"{lake.address(key)} is not what was written there")
        if key not in {each.key for each in lake.list("_deploy_check")}:
            raise AmissError(f"{lake.address(key)} was written, and is in no listing")
    finally:
        lake.delete([key])
    return f"{lake.url}: written, read, listed and deleted"


def _dbt(settings: Settings) -> str:
    target = settings.dbt_target
    if not is_parsed(settings):
        raise AmissError(
            f"{target} holds no dbt project that was parsed from these files: run `mesh deploy "
            "prepare`, as the image's build does"
        )
    named = {node["database"] for node in read_manifest(settings)["nodes"].values()}
    mine = place(warehouse_url(settings)).rpartition("/")[2]
    if named - {mine}:
        raise AmissError(
            f"it was parsed for the database {', '.join(sorted(named))}, and the warehouse is "
            f"{mine}: run `mesh deploy prepare --database {mine}`"
        )
    return f"parsed, for the database {mine}: {target}"


def _connectors(settings: Settings) -> str:
    needed = {
        connection.connector.environment
        for name in domain_names()
        for connection in read_connections(name)
    }
    if missing := sorted(name for name in needed if not installed(name, settings.home)):
        raise AmissError(
            f"{', '.join(missing)} not installed in {settings.connectors}: take the image with "
            "the connectors, or run `mesh install`"
        )
    return f"{', '.join(sorted(needed))} installed"


def _datahub(settings: Settings) -> str:
    if settings.datahub_gms_url is None:
        return "no server set: what it would be told is written to files"
    from dagster_project.catalog.server import Server

    token: Any = settings.datahub_token
    with closing(
        Server(settings.datahub_gms_url, token.get_secret_value() if token else None)
    ) as server:
        return f"{settings.datahub_gms_url}, DataHub {server.look()}"
