"""What has to be so before a release can run, looked at one after the other, and what to do if not.

Nothing is changed, but for an object of a moment in the lake. No secret is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pydantic import SecretStr

from dagster_project.deployment.migration import (
    OF_DAGSTER,
    OF_WAREHOUSE,
    dagster_url,
    knows,
    lacking,
    revisions,
)
from dagster_project.domain import domain_names
from dagster_project.failures import DeclarationError, MeshError
from dagster_project.ingestion.declaration import REFERENCE_URL, read_connections, resolve_config
from dagster_project.ingestion.environments import installed
from dagster_project.lake.store import Lake
from dagster_project.settings import PREFIX, Environment, Settings, warehouse_url
from dagster_project.transformation.project import databases, is_parsed, read_manifest
from dagster_project.warehouse.connection import OLDEST, connect, masked, place
from dagster_project.warehouse.migrations import Migrations

#: Seconds that a check may take: what does not answer by then does not answer.
PATIENCE = 15.0
#: Settings without which an environment that is no laptop has nothing to work with.
REQUIRED = ("WAREHOUSE_URL", "DAGSTER_URL", "LAKE_URL")
_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
#: What says who may use the object store where there is no key, as on a cluster.
_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_MIGRATE = "run `mesh deploy migrate`"


class AmissError(Exception):
    """What is not as it has to be, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    what: str
    is_well: bool
    said: str


def findings(settings: Settings, domains: Sequence[str] = ()) -> Iterator[Finding]:
    """Each check's finding, all of them, whatever the ones before have found.

    Of these domains alone connectors and their secrets are looked at; of all if none is given.
    Raises DeclarationError for a domain that is not there.
    """
    if unknown := sorted(set(domains) - set(domain_names())):
        raise DeclarationError(
            f"no domain is called {unknown[0]}: there are {', '.join(domain_names())}"
        )
    for what, look in CHECKS.items():
        yield _found(what, look, settings, domains or domain_names())


def _found(what: str, look: Check, settings: Settings, domains: Collection[str]) -> Finding:
    found: list[Finding] = []

    def run() -> None:
        try:
            found.append(Finding(what, True, look(settings, domains)))
        except (MeshError, AmissError) as error:
            found.append(Finding(what, False, str(error)))
        except Exception as error:  # noqa: BLE001 - the other checks are made all the same
            found.append(Finding(what, False, f"{type(error).__name__}: {masked(str(error))}"))

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    silent = Finding(what, False, f"no answer within {PATIENCE:.0f} s: is it there, and reachable?")
    one = found[0] if found else silent
    return Finding(what, one.is_well, _safe(" ".join(one.said.split()), settings))


def _safe(text: str, settings: Settings) -> str:
    """The text without any secret that this process knows, whoever has put it there."""
    known = {os.environ.get(_KEY[1], "")}
    for name in Settings.model_fields:
        if isinstance(value := getattr(settings, name), SecretStr):
            url = value.get_secret_value()
            password = (urlsplit(url).password or "") if "://" in url else ""
            known |= {url, password, unquote(password)}
    # A word that is as short as a role's name is no secret, and stands in what is to be read.
    for secret in sorted((each for each in known if len(each) > 3), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def missing_settings(settings: Settings) -> str:
    """Which settings this environment lacks, and what to do; empty if none."""
    if settings.env is Environment.LOCAL:
        return ""
    missing = [PREFIX + name for name in REQUIRED if getattr(settings, name.lower()) is None]
    if settings.lake.startswith("s3://") and not any(map(_is_set, _ROLES)):
        missing += [name for name in _KEY if not _is_set(name)]
    if not missing:
        return ""
    return (
        f"{', '.join(missing)} not set, which {settings.env.value} needs: a secret or a config map "
        "of the environment that this process is given has to have it"
    )


def _settings(settings: Settings, _: Collection[str]) -> str:
    if missing := missing_settings(settings):
        raise AmissError(missing)
    if settings.env is Environment.LOCAL:
        return "local: what is not set is embedded"
    return f"{settings.env.value}: all that it needs is set"


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name))


def _home(settings: Settings, _: Collection[str]) -> str:
    probe = settings.home / f".deploy-check-{uuid4().hex}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise AmissError(
            f"MESH_HOME, {settings.home}, cannot be written ({error.strerror}): name a folder that "
            "may be, such as a volume"
        ) from None
    return f"{settings.home}: can be written"


def _warehouse(settings: Settings, _: Collection[str]) -> str:
    url = warehouse_url(settings)
    schemas = ["mesh", *(n + end for n in domain_names() for end in ("", "_raw", "_staging"))]
    with connect(url, "looking at it") as connection:
        version = connection.info.server_version // 10_000
        row = connection.execute(
            "SELECT current_user, rolsuper, "
            "has_database_privilege(current_database(), 'CREATE'), "
            "has_database_privilege(current_database(), 'TEMPORARY') "
            "FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        # What is there has to be replaced, and widened, which only who owns it may.
        others = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s) "
            "AND NOT pg_has_role(nspowner, 'USAGE') ORDER BY 1",
            [schemas],
        ).fetchall()
    assert row
    role, is_superuser, may_create, may_stage = row
    where = f"{place(url)}, PostgreSQL {version}"
    if version < OLDEST:
        raise AmissError(f"{where}: it has to be {OLDEST} or newer: have another one")
    lacking = [p for p, has in (("CREATE", may_create), ("TEMPORARY", may_stage)) if not has]
    if lacking:
        raise AmissError(
            f"{where}: the role {role} may not make schemas, or stage what it loads: "
            f"GRANT {', '.join(lacking)} ON DATABASE {place(url).rpartition('/')[2]} TO {role}"
        )
    if others:
        named = ", ".join(name for (name,) in others)
        raise AmissError(
            f"{where}: the schemas {named} are not the role's: ALTER SCHEMA … OWNER TO {role}, "
            "and of their tables too"
        )
    if is_superuser:
        raise AmissError(
            f"{where}: the role {role} is a superuser: give MESH_WAREHOUSE_URL one that owns the "
            "database's schemas and nothing else"
        )
    return f"{where}, role {role}"


def _dagster(settings: Settings, _: Collection[str]) -> str:
    url = dagster_url(settings)
    if settings.warehouse_url and warehouse_url(settings) == url:
        raise AmissError(
            f"{place(url)} is the warehouse, too: Dagster has a database, and a role, of its own"
        )
    # First: Dagster goes on trying for longer than anybody waits here.
    with connect(url, "looking at Dagster's database"):
        pass
    old = {name: now for name, (now, needed) in revisions(url).items() if now != needed}
    if not old and (names := lacking(url)):
        raise AmissError(f"{place(url)} lacks {', '.join(names)}, which Dagster needs: {_MIGRATE}")
    if not old:
        return f"{place(url)}: Dagster's tables are up to date"
    if None in old.values():
        raise AmissError(f"{place(url)} has none of Dagster's tables: {_MIGRATE}")
    if not all(now and knows(now) for now in old.values()):
        raise AmissError(
            f"{place(url)}: Dagster's tables are those of a newer Dagster: deploy that release"
        )
    raise AmissError(f"{place(url)}: Dagster's tables are of an older Dagster: {_MIGRATE}")


def _ours(url: str, sets: tuple[Migrations, ...]) -> str:
    with connect(url, "looking at our tables") as connection:
        done = {each: each.done(connection) for each in sets}
    behind = [
        f"{each.tables} {number} of {len(each.steps)} steps"
        for each, number in done.items()
        if number < len(each.steps)
    ]
    if behind:
        raise AmissError(f"not migrated: {', '.join(behind)}: {_MIGRATE}")
    ahead = [each.tables for each, number in done.items() if number > len(each.steps)]
    if ahead:
        return f"{', '.join(ahead)} ahead of this release, by a newer one, which does no harm"
    return ", ".join(f"{each.tables} up to date" for each in sets)


def _lake(settings: Settings, _: Collection[str]) -> str:
    lake, key, content = Lake(settings.lake), f"_deploy_check/{uuid4().hex}", b"mesh deploy check"
    lake.create(key, content)
    try:
        if lake.read(key) != content:
            raise AmissError(f"{lake.address(key)} is not what was written there")
        if key not in {each.key for each in lake.list("_deploy_check")}:
            raise AmissError(f"{lake.address(key)} was written, and is in no listing")
    finally:
        lake.delete([key])
    for domain in domain_names():
        next(lake.list(f"landing/{domain}"), None)
    return f"{lake.url}: written, read, listed and deleted; the landing zone can be listed"


def _dbt(settings: Settings, _: Collection[str]) -> str:
    target = settings.dbt_target
    if not is_parsed(settings):
        raise AmissError(
            f"{target} holds no dbt project that was parsed from these files by this Python: run "
            "`mesh deploy prepare`, as the image's build does"
        )
    named = databases(read_manifest(settings))
    mine = unquote(urlsplit(warehouse_url(settings)).path.lstrip("/"))
    if named - {mine}:
        raise AmissError(
            f"it was parsed for the database {', '.join(sorted(named))}, and the warehouse is "
            f"{mine}: run `mesh deploy prepare --database {mine}`"
        )
    return f"parsed from these files, for the database {mine}: {target}"


def _connectors(settings: Settings, domains: Collection[str]) -> str:
    if settings.env is not Environment.LOCAL and settings.connectors_dir is None:
        return "MESH_CONNECTORS_DIR is not set: this process starts no connector"
    connections = [(name, each) for name in domains for each in read_connections(name)]
    needed = {connection.connector.environment for _, connection in connections}
    if missing := sorted(name for name in needed if not installed(name, settings.home)):
        raise AmissError(
            f"{', '.join(missing)} not installed in {settings.connectors}: take the image with "
            "the connectors, or run `mesh deploy prepare --connectors`"
        )
    # On a laptop `mesh run` starts the reference sources.
    is_local = settings.env is Environment.LOCAL
    found = {REFERENCE_URL: "http://127.0.0.1"} if is_local else {}
    for name, connection in connections:
        resolve_config(name, connection, settings, found)
    return f"{', '.join(sorted(needed)) or 'none needed'}: installed, with the variables they need"


def _datahub(settings: Settings, _: Collection[str]) -> str:
    if settings.datahub_gms_url is None:
        return "MESH_DATAHUB_GMS_URL is not set: what it would be told is written to files"
    from dagster_project.catalog.server import Server

    token = settings.datahub_token
    with closing(
        Server(settings.datahub_gms_url, token.get_secret_value() if token else None)
    ) as server:
        return f"{settings.datahub_gms_url}: DataHub {server.look()}"


def _step_logs(settings: Settings, _: Collection[str]) -> str:
    """What steps print, kept where the instance of DAGSTER_HOME says."""
    home = Path(os.environ.get("DAGSTER_HOME") or settings.dagster_home)
    if not (home / "dagster.yaml").exists():
        return "no dagster.yaml here, which would name their place"
    from dagster._core.instance import InstanceRef
    from dagster._core.storage.compute_log_manager import ComputeIOType

    manager, key = InstanceRef.from_dir(str(home)).compute_log_manager, ["check", uuid4().hex]
    name, probe = type(manager).__name__, "mesh deploy check"
    place_of_it = f"give it a place that may be written, in {home / 'dagster.yaml'}"
    try:
        with manager.open_log_stream(key, ComputeIOType.STDERR) as stream:
            if stream is None:
                return f"{name}: they are kept nowhere"
            stream.write(probe)  # type: ignore[call-overload]  # it is of text
        kept = manager.get_log_data(key).stderr or b""
        manager.delete_logs(log_key=key)
    except OSError as error:
        raise AmissError(f"{name} cannot keep them ({error}): {place_of_it}") from None
    if kept.decode() != probe:
        raise AmissError(f"{name} does not give back what it was given to keep: {place_of_it}")
    return f"{name}: kept, read and deleted"


Check = Callable[[Settings, Collection[str]], str]
#: What is looked at, in this order.
CHECKS: Mapping[str, Check] = {
    "settings": _settings,
    "home": _home,
    "warehouse": _warehouse,
    "tables in the warehouse": lambda s, _: _ours(warehouse_url(s), OF_WAREHOUSE),
    "Dagster's database": _dagster,
    "tables beside Dagster's": lambda s, _: _ours(dagster_url(s), OF_DAGSTER),
    "lake": _lake,
    "dbt project": _dbt,
    "connectors": _connectors,
    "step logs": _step_logs,
    "DataHub": _datahub,
}
