"""The reference domains in this process, with their real sources, which a test spoils and mends."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import psycopg
import pytest

from dagster_project.ingestion.environments import REFERENCE_DATA, install_all
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from dagster_project.locations.location import domain_definitions, job_name
from dagster_project.reference import data, readings
from dagster_project.reference.delivery import daily_files, object_path
from dagster_project.reference.server import SourceSystems
from dagster_project.settings import get_settings
from dagster_project.transformation import invocation
from dagster_project.transformation.project import ensure_manifest

CONNECTOR = "source-declarative-manifest"
Row = dict[str, str]
#: A check that fails: its table, its name and the day; the day is empty for a table as a whole.
Failing = tuple[str, str, str]


def days(first: str, last: str) -> list[str]:
    """ISO dates from the first to the last."""
    begin, end = date.fromisoformat(first), date.fromisoformat(last)
    return [(begin + timedelta(days=n)).isoformat() for n in range((end - begin).days + 1)]


def day_of(reading: readings.Reading) -> str:
    """The day of a reading in New York, an ISO date."""
    return f"{reading['year']}-{reading['month']:02}-{reading['day']:02}"


@dataclass(frozen=True)
class Ran:
    """What came of a run."""

    result: dg.ExecuteInProcessResult

    @cached_property
    def made(self) -> set[str]:
        """The tables that were loaded or built; not those found up to date."""
        return self._materialized(up_to_date=False)

    @cached_property
    def left_as_they_are(self) -> set[str]:
        """The tables that were found up to date."""
        return self._materialized(up_to_date=True)

    def _materialized(self, *, up_to_date: bool) -> set[str]:
        found = [e.materialization for e in self.result.get_asset_materialization_events()]
        return {
            ".".join(each.asset_key.path)
            for each in found
            if each.asset_key.path[0] != "lake" and ("up to date" in each.metadata) is up_to_date
        }

    @cached_property
    def failing(self) -> dict[Failing, int | None]:
        """The checks that fail, but for drift, with the number of rows that they refuse."""
        found: dict[Failing, int | None] = {}
        for (table, check), each in self._checks.items():
            if not each.passed and check != "drift":
                found |= {(table, check, day): count for day, count in _by_day(each.metadata)}
        return found

    @cached_property
    def passing(self) -> set[tuple[str, str]]:
        """The checks that pass, by their table and name."""
        return {key for key, check in self._checks.items() if check.passed}

    @cached_property
    def checked(self) -> set[tuple[str, str]]:
        """The checks that were run, by their table and name."""
        return set(self._checks)

    def rows(self, table: str, check: str) -> list[dict[str, Any]]:
        """The refused rows that a check shows."""
        return [dict(row.data) for row in self._checks[table, check].metadata["sample"].records]

    @cached_property
    def alarms(self) -> set[tuple[str, str, str]]:
        """What the drift checks list: table and day, column, and what of it is not as usual."""
        found = set()
        for (table, check), each in self._checks.items():
            if check == "drift" and not each.passed:
                for line in str(each.metadata["not as usual"].value).splitlines()[2:]:
                    _, when, column, what, *_ = (cell.strip() for cell in line.split("|"))
                    found.add((f"{table} {when[:10]}", column, what))
        return found

    def count(self, table: str, name: str) -> Any:
        """One of the counts of a load."""
        return next(
            event.materialization.metadata[name].value
            for event in self.result.get_asset_materialization_events()
            if ".".join(event.materialization.asset_key.path) == table
            and name in event.materialization.metadata
        )

    @property
    def said(self) -> str:
        """Why steps failed."""
        events = self.result.get_step_failure_events()
        failures = [event.step_failure_data for event in events]
        return "\n".join(str(f.user_failure_data or f.error) for f in failures)

    @cached_property
    def _checks(self) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
        found = self.result.get_asset_check_evaluations()
        return {(".".join(check.asset_key.path), check.check_name): check for check in found}


def _by_day(metadata: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    if "failing partitions" in metadata:
        for row in metadata["failing partitions"].records:
            count = str(row.data["unexpected rows"])
            yield str(row.data["partition"]), int(count) if count else None
        return
    counts = ("unexpected rows", "dagster_dbt/failed_row_count", "rows rejected")
    values = [metadata[name].value for name in counts if name in metadata]
    yield "", next((value for value in values if isinstance(value, int)), None)


def edited(rows: Sequence[Row], places: Collection[int], **values: str) -> list[Row]:
    """The rows, those at these places with other values."""
    return [row | values if place in places else row for place, row in enumerate(rows)]


def csv_of(rows: Sequence[Row]) -> bytes:
    """Rows as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows(text: str) -> list[Row]:
    return list(csv.DictReader(io.StringIO(text)))


@dataclass
class Domains:
    """The reference domains on a warehouse and a lake, and the sources that they read."""

    url: str
    lake: Lake
    instance: dg.DagsterInstance
    server: SourceSystems
    #: The reference data as it is: the register's files, flights by their day, and readings.
    register: dict[str, list[Row]]
    flights: dict[str, list[Row]]
    readings: list[readings.Reading] = field(default_factory=list)

    def run(self, domain: str, first: str = "", last: str = "", assets: Sequence[str] = ()) -> Ran:
        """A domain's job, or these of its assets; of what is partitioned the days first to last."""
        job = domain_definitions(domain).resolve_job_def(job_name(domain))
        range_tags = {
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last or first,
        }
        result = job.execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            tags=range_tags if first else {},
            asset_selection=[dg.AssetKey(name.split(".")) for name in assets] or None,
        )
        return Ran(result)

    def deliver(self, day: str, content: bytes = b"") -> None:
        """Drop a day's file of flights, with this content if any is given."""
        path = object_path(date.fromisoformat(day))
        self.lake.replace(path, content or csv_of(self.flights[day]))

    def serve(self, changes: Mapping[str, Callable[[list[Row]], list[Row]]] = {}) -> None:
        """Have the register serve its files, those that have a change changed."""
        for name, rows in self.register.items():
            served = changes[name](rows) if name in changes else rows
            (self.server.folder / name).write_bytes(csv_of(served))

    def serve_readings(self, served: Sequence[readings.Reading]) -> None:
        """Have the weather service give these."""
        keyed = sorted(((readings._key(row), row) for row in served), key=lambda pair: pair[0])
        found = readings.Readings([key for key, _ in keyed], [row for _, row in keyed])
        self.server._readings = found

    def forget(self, domain: str, connection: str) -> None:
        """Have the next sync of a connection ask for everything again."""
        log = CommitLog(self.lake, domain, connection)
        last = log.last()
        assert last
        anew = {"number": last.number + 1, "streams": {}, "state": {}}
        log.append(last.model_copy(update=anew | {"versions": last.all_versions()}))

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def reference_domains(
    url: str, folder: Path, environment: pytest.MonkeyPatch, first: str, last: str
) -> Iterator[Domains]:
    """The domains, none of which has run, and sources that have the days from first to last.

    The sources' files and the lake lie in the folder.
    """
    environment.setenv("MESH_LAKE_URL", (folder / "lake").as_uri())
    home = get_settings().home
    install_all(home, [REFERENCE_DATA, CONNECTOR], lambda _: None)
    there, wanted = data.data_folder(home), days(first, last)
    files = daily_files(there)
    domains = Domains(
        url=url,
        lake=Lake((folder / "lake").as_uri()),
        instance=dg.DagsterInstance.ephemeral(),
        server=SourceSystems(folder),
        register={
            name: _rows((there / name).read_text())
            for name in (data.PLANES, data.AIRPORTS, data.AIRLINES)
        },
        flights={day: _rows(files[date.fromisoformat(day)].decode()) for day in wanted},
        readings=[
            row
            for row in readings.Readings.read(there / data.WEATHER).rows
            if day_of(row) in wanted
        ],
    )
    environment.setenv("MESH_REFERENCE_URL", domains.server.url)
    get_settings.cache_clear()
    domain_definitions.cache_clear()
    ensure_manifest()
    # As it is in the processes that steps are forked from.
    invocation.preload()
    with domains.server as server, domains.instance:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield domains
        server.shutdown()
