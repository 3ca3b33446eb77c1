"""What a command needs around it: the embedded PostgreSQL, Dagster's home, the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dagster_project.failures import MeshError, WarehouseError
from dagster_project.settings import Settings, get_settings
from dagster_project.warehouse.connection import OLDEST, connect, place
from dagster_project.warehouse.embedded import (
    DAGSTER,
    MESH,
    READER,
    WAREHOUSE,
    EmbeddedPostgres,
    Endpoint,
)

_WRITTEN_BY = "# Written by `mesh`; changes are overwritten."
_DAGSTER_YAML = f"""\
{_WRITTEN_BY}
storage:
  custom:
    module: dagster_project.orchestration.storage
    class: PooledPostgresStorage
    config:
      postgres_url:
        env: MESH_DAGSTER_URL
run_launcher:
  module: dagster_project.orchestration.launcher
  class: PreforkRunLauncher
telemetry:
  enabled: false
nux:
  enabled: false
freshness:
  enabled: true
run_monitoring:
  enabled: true
  poll_interval_seconds: 5
  free_slots_after_run_end_seconds: 10
sensors:
  use_threads: true
  num_workers: 8
retention:
  # A sensor looks every few seconds: what a day's looks that found nothing say, nobody asks.
  sensor:
    purge_after_days:
      skipped: 1
  auto_materialize:
    purge_after_days:
      skipped: 1
concurrency:
  runs:
    max_concurrent_runs: 4
    tag_concurrency_limits:
      # However many runs a backfill has, there is room for what comes meanwhile.
      - key: dagster/backfill
        limit: 2
  pools:
    granularity: op
    default_limit: 1
run_queue:
  dequeue_interval_seconds: 1
# Runs that were lost with their process go on where they were; a step that failed has tried itself.
run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false
"""

#: Telemetry of the libraries off; Dagster's events written in batches, which halves what the
#: bookkeeping of a year of partitions costs.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "DATAHUB_TELEMETRY_ENABLED": "false",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "DAGSTER_EVENT_BATCH_SIZE": "500",
}


def prepare_home(settings: Settings) -> None:
    """Make the folder that all local state lies in, with Dagster's own."""
    try:
        settings.dagster_home.mkdir(parents=True, exist_ok=True)
        _write_if_other(settings.dagster_home / "dagster.yaml", _DAGSTER_YAML)
    except OSError as error:
        raise MeshError(
            f"{settings.home} cannot be written: {error.strerror}. Free some disk space, or set "
            "MESH_HOME to a folder that you may write"
        ) from None


def is_home(folder: Path) -> bool:
    """Whether the folder is one that `prepare_home` has made."""
    try:
        return (folder / "dagster" / "dagster.yaml").read_text().startswith(_WRITTEN_BY)
    except (OSError, UnicodeDecodeError):
        return False


def _write_if_other(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        # Of this process alone: two commands may prepare a home at once.
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(content)
        beside.replace(path)


@contextmanager
def services(settings: Settings) -> Iterator[None]:
    """While it lasts, this process and its children know a warehouse and Dagster's storage."""
    prepare_home(settings)
    for name, url in (
        ("MESH_WAREHOUSE_URL", settings.warehouse_url),
        ("MESH_DAGSTER_URL", settings.dagster_url),
    ):
        if url is not None:
            _check(name, url.get_secret_value())
    with ExitStack() as stack:
        found: dict[str, str] = {}
        if settings.dagster_url is not None:
            # Dagster reads the variable itself, and knows one scheme only.
            found["MESH_DAGSTER_URL"] = settings.dagster_url.get_secret_value()
        if settings.warehouse_url is None or settings.dagster_url is None:
            endpoint = stack.enter_context(EmbeddedPostgres(settings.home).lease())
            found |= _urls(settings, endpoint)
        os.environ.update(
            {"DAGSTER_HOME": str(settings.dagster_home.absolute()), **_QUIET, **found}
        )
        get_settings.cache_clear()
        yield


def _check(name: str, url: str) -> None:
    """Refuse a PostgreSQL of somebody's own that does not answer, or is too old, before any work.

    Raises WarehouseError.
    """
    with connect(url, name) as connection:
        version = connection.info.server_version
    if version < OLDEST * 10_000:
        raise WarehouseError(
            f"{name}: {place(url)} is PostgreSQL {version // 10_000}: it has to be {OLDEST} or "
            "newer. Set it to another one, or leave it out to use the embedded one"
        )


def _urls(settings: Settings, endpoint: Endpoint) -> dict[str, str]:
    found = {}
    if settings.warehouse_url is None:
        found["MESH_WAREHOUSE_URL"] = endpoint.url(MESH, WAREHOUSE)
    if settings.dagster_url is None:
        found["MESH_DAGSTER_URL"] = endpoint.url(DAGSTER, DAGSTER)
    return found


@contextmanager
def query_url(settings: Settings) -> Iterator[str]:
    """The warehouse for questions: as a role that may only read, where it is the embedded one."""
    if settings.warehouse_url is not None:
        yield settings.warehouse_url.get_secret_value()
        return
    prepare_home(settings)
    with EmbeddedPostgres(settings.home).lease() as endpoint:
        yield endpoint.url(READER, WAREHOUSE)
