"""Runs that the catalog is told of, and what it then knows of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psycopg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from dagster_project.catalog.bookkeeping import books_of
from dagster_project.catalog.destination import destination_of
from dagster_project.cli.in_python import in_python
from dagster_project.orchestration.delivery import Deliverer
from dagster_project.orchestration.runs import location_origin
from dagster_project.settings import get_settings
from tests.catalog.gms import RecordingGms

RAW, MART = dg.AssetKey(["fleet_raw", "planes"]), dg.AssetKey(["fleet", "dim_planes"])
TABLE = "urn:li:dataset:(urn:li:dataPlatform:postgres,warehouse.fleet{},DEV)"
ANN = "urn:li:corpuser:ann"
BROKEN: set[str] = set()


@dg.asset(key=RAW)
def raw() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"dagster/row_count": 3322, "new": 22, "changed": 0})


@dg.asset(key=MART, deps=[RAW])
def mart() -> dg.MaterializeResult:
    assert "mart" not in BROKEN, "of a secret value"
    return dg.MaterializeResult(metadata={"up to date": True, "dagster/row_count": 3322})


@dg.asset_check(asset=RAW, name="tailnum_unique")
def unique() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed="unique" not in BROKEN,
        metadata={"rows": 3322, "unexpected rows": 7, "observed value": "N10156"},
    )


DEFINITIONS = dg.Definitions(
    assets=[raw, mart],
    asset_checks=[unique],
    jobs=[dg.define_asset_job("all", dg.AssetSelection.all())],
    executor=dg.in_process_executor,
)


def run(instance: dg.DagsterInstance, *broken: str) -> str:
    BROKEN.clear()
    BROKEN.update(broken)
    job = DEFINITIONS.resolve_job_def("all")
    origin = RemoteRepositoryOrigin(location_origin("fleet"), "__repository__")
    created = instance.create_run_for_job(job, remote_job_origin=origin.get_job_origin("all"))
    execute_run(InMemoryJob(job), created, instance)
    return created.run_id


def run_days(instance: dg.DagsterInstance, days: Sequence[str], new: int) -> str:
    """A run that loads a range of days as one; gives its id."""

    @dg.asset(
        key=RAW,
        partitions_def=dg.StaticPartitionsDefinition(days),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def raw() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"dagster/row_count": 3322, "new": new, "changed": 0})

    job = dg.Definitions(
        assets=[raw],
        jobs=[dg.define_asset_job("all", dg.AssetSelection.all())],
        executor=dg.in_process_executor,
    ).resolve_job_def("all")
    origin = RemoteRepositoryOrigin(location_origin("fleet"), "__repository__")
    tags = {ASSET_PARTITION_RANGE_START_TAG: days[0], ASSET_PARTITION_RANGE_END_TAG: days[-1]}
    created = instance.create_run_for_job(
        job, tags=tags, remote_job_origin=origin.get_job_origin("all")
    )
    execute_run(InMemoryJob(job), created, instance)
    return created.run_id


@contextmanager
def deliverer(url: str, instance: dg.DagsterInstance) -> Iterator[Deliverer]:
    settings = get_settings()
    with (
        closing(destination_of(settings)) as destination,
        books_of(url, destination.name, destination.former) as books,
    ):
        yield Deliverer(settings, instance, destination, books, print, in_python)


def deliver(url: str, instance: dg.DagsterInstance) -> int:
    """Deliver all events that wait; how many these were."""
    with deliverer(url, instance) as each:
        return sum(done.events for done in each.catch_up())


def forget(url: str) -> None:
    """As if nothing had been delivered."""
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE mesh.catalog_destinations SET event_id = 0")


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


@dataclass(frozen=True)
class Seen:
    """What the catalog knows of a run."""

    gms: RecordingGms
    run_id: str

    def of_run(self, aspect: str, asset: str = "") -> Any:
        urn = f"urn:li:dataProcessInstance:DEV.{self.run_id}{f'.{asset}' if asset else ''}"
        return self.gms.aspects.get((urn, aspect))

    def results(self, asset: str = "") -> list[str]:
        """How it began and ended, in the order in which that was told."""
        found = self.of_run("dataProcessInstanceRunEvent", asset) or []
        return [each.get("result", {}).get("type", each["status"]) for each in found]

    def of_table(self, table: str, aspect: str) -> list[Any]:
        found = self.gms.aspects.get((TABLE.format(table), aspect), [])
        return [each for each in found if each.get("messageId") == self.run_id]
