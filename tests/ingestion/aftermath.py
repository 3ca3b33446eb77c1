"""What runs that were killed leave behind, and what it is compared with."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from dagster_project.warehouse.target import VOLATILE
from tests.ingestion.crashes import CONNECTOR, DAYS, GRACE, Job, Lane

#: What differs between two loads of the same rows, besides the columns that a sync fills.
TIMES = {"_loaded_at", "rejected_at", "run_id", "object"}
LEDGER = ("tables", "partitions", "loads", "models")
Rows = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is in the warehouse, without what differs from run to run."""

    #: By table: its rows as JSON, in order; of its rejects too.
    rows: Rows
    #: By table: how many rows loads brought, changed, removed and rejected; how many did any.
    loaded: dict[str, tuple[int, ...]]
    #: What the ledger has of each partition.
    partitions: list[tuple[Any, ...]]
    #: What the ledger says that is not so.
    wrong: list[str]


@dataclass
class World:
    """A home, a lake and a domain's tables, in which one run is made at a time."""

    lane: Lane
    folder: Path
    domain: str
    url: str
    #: Of an S3 server; None for a lake on disk.
    lake_url: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.lake_folder.mkdir()
        (self.folder / "connector.py").write_text(CONNECTOR)

    @property
    def lake_folder(self) -> Path:
        return self.folder / "lake"

    @property
    def lake(self) -> Lake:
        return Lake(self.lake_url or self.lake_folder.as_uri())

    @property
    def log(self) -> str:
        """What the runs have said."""
        return (self.folder / "log").read_text()

    def job(self, kind: str, turn: int = 2, **how: Any) -> Job:
        """A run of the second turn, unless another is asked for."""
        return Job(
            kind,
            self.domain,
            str(self.folder),
            self.lake.url,
            self.url,
            turn,
            environment=self.environment,
            **how,
        )

    def run(self, job: Job) -> int:
        """Have the run made; its exit code, negative if a signal ended it."""
        if job.kind == "feed":
            self._land(job.turn)
        return self.lane.run(job)

    def finish(self, job: Job) -> None:
        """Have the run made, and end well."""
        code = self.run(job)
        assert code == 0, f"{code}: {self.log}"

    def _land(self, turn: int) -> None:
        """Have the files land that are there by this turn, each at its time."""
        landing = self.lake_folder / "landing" / self.domain / "trips"
        landing.mkdir(parents=True, exist_ok=True)
        for day, files in DAYS.items():
            latest = max((written for written in files if written <= turn), default=0)
            path = landing / f"trips_{day}.csv"
            if latest and (not path.exists() or path.read_text() != files[latest]):
                path.unlink(missing_ok=True)
                path.write_text(files[latest])

    # To begin anew from where it was

    @property
    def _raw(self) -> str:
        return f"{self.domain}_raw"

    @property
    def _kept(self) -> str:
        return f"kept_{self.domain}"

    def begin(self, kind: str) -> None:
        """Have the first turn behind it, whole, and keep what is there now."""
        self.finish(self.job(kind, turn=1))
        self._settle()
        shutil.rmtree(self.folder / "kept", ignore_errors=True)
        for name in ("lake", "home"):
            _copy(self.folder / name, self.folder / "kept" / name)
        with psycopg.connect(self.url) as connection:
            _copy_schema(connection, self._raw, self._kept)
            for table in LEDGER:
                connection.execute(
                    sql.SQL("CREATE TABLE {} AS SELECT * FROM {} WHERE table_schema = {}").format(
                        sql.Identifier(self._kept, f"mesh.{table}"),
                        sql.Identifier("mesh", table),
                        self._raw,
                    )
                )

    def again(self) -> None:
        """Be as after `begin`."""
        self._settle()
        for name in ("lake", "home"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            _copy(self.folder / "kept" / name, self.folder / name)
        with psycopg.connect(self.url) as connection:
            _copy_schema(connection, self._kept, self._raw)
            for table in LEDGER:
                ledger = sql.Identifier("mesh", table)
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE table_schema = {}").format(ledger, self._raw)
                )
                connection.execute(
                    sql.SQL("INSERT INTO {} SELECT * FROM {}").format(
                        ledger, sql.Identifier(self._kept, f"mesh.{table}")
                    )
                )

    def empty(self) -> None:
        """Be as before anything was there, for all that use the same warehouse."""
        self._settle()
        for name in ("lake", "home"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.lake_folder.mkdir()
        with psycopg.connect(self.url) as connection:
            for schema in ("mesh", self._raw):
                connection.execute(
                    sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
                )

    def _settle(self) -> None:
        """The next sync is a step of its own, and its connector the first."""
        for name in ("synced", "starts", "log"):
            (self.folder / name).unlink(missing_ok=True)

    def sync_anew(self) -> None:
        """Have the next run begin with a sync, although one has ended."""
        (self.folder / "synced").unlink()

    @property
    def synced(self) -> bool:
        """Whether the run's sync has returned."""
        return (self.folder / "synced").exists()

    @property
    def started(self) -> int:
        """How often the connector was started."""
        return (self.folder / "starts").stat().st_size

    # What is there

    def outcome(self) -> Outcome:
        with psycopg.connect(self.url) as connection:
            tables = [
                name
                for (name,) in connection.execute(
                    "SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1",
                    (self._raw,),
                )
            ]
            rows = {name: sorted(self._rows(connection, name)) for name in tables}
            loads = connection.execute(
                "SELECT table_name, sum(new)::int, sum(changed)::int, sum(removed)::int, "
                "sum(rejected)::int, (count(*) FILTER (WHERE new + changed + removed > 0))::int "
                "FROM mesh.loads WHERE table_schema = %s GROUP BY 1 ORDER BY 1",
                (self._raw,),
            ).fetchall()
            partitions = connection.execute(
                "SELECT table_name, partition, version, rows FROM mesh.partitions "
                "WHERE table_schema = %s ORDER BY 1, 2",
                (self._raw,),
            ).fetchall()
            wrong = [
                f"{name} holds {len(rows[name])} rows, its ledger says {counted}"
                for name, counted in connection.execute(
                    "SELECT table_name, rows FROM mesh.tables WHERE table_schema = %s", (self._raw,)
                )
                if counted != len(rows[name])
            ]
        loaded = {table: counts for table, *counts in loads}
        return Outcome(rows, {t: tuple(c) for t, c in loaded.items()}, partitions, wrong)

    def _rows(self, connection: psycopg.Connection[Any], table: str) -> Iterator[str]:
        query = sql.SQL("SELECT to_jsonb(t) FROM {} t").format(sql.Identifier(self._raw, table))
        for (row,) in connection.execute(query):
            for part in (row, row.get("record", {}), row.get("origin") or {}):
                for name in TIMES.union(VOLATILE):
                    part.pop(name, None)
            yield json.dumps(row, sort_keys=True).replace(self.domain, "D")

    def commits(self) -> list[bool]:
        """Of each commit whether it is complete, in order."""
        return [commit.complete for commit in CommitLog(self.lake, self.domain, "main").since(0)]

    def leftovers(self) -> list[str]:
        """What is in the lake and in the home that no sync that ended well leaves there."""
        log = CommitLog(self.lake, self.domain, "main")
        named = {
            item.key
            for commit in log.since(0)
            for stream in commit.streams.values()
            for item in stream.objects
        }
        named |= {f"{log.prefix}/{number:012d}.json" for number in log.numbers()}
        there = {item.key for item in self.lake.list(f"{self.domain}/main")}
        left = sorted(there - named)
        missing = [f"{key} is missing" for key in sorted(named - there)]
        parts = [path.name for path in self.lake_folder.rglob("*#*")]
        syncs = self.folder / "home" / "syncs"
        kept = {"id", "home"}
        strange = [
            path.name
            for path in syncs.rglob("*")
            if path.name not in kept and path.suffix != ".lock"
        ]
        return left + missing + parts + strange

    def connectors(self) -> list[psutil.Process]:
        """The processes that run this world's connector, its minders among them."""
        script = str(self.folder / "connector.py")
        found = []
        for each in psutil.process_iter(["cmdline"]):
            if script in (each.info["cmdline"] or []):
                found.append(each)
        return found

    def connectors_outliving(self, seconds: float = GRACE + 3) -> list[psutil.Process]:
        """Those that still run after so many seconds."""
        deadline = time.monotonic() + seconds
        while (found := self.connectors()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found


def _copy(source: Path, target: Path) -> None:
    """Have the same files in another folder, which is none if the source is none.

    They stay the same for a lake, too, which knows them by their inodes; nobody writes to one.
    """
    if source.exists():
        shutil.copytree(source, target, copy_function=os.link)


def _copy_schema(connection: psycopg.Connection[Any], source: str, target: str) -> None:
    """Have one schema hold the tables of another, as they are."""
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(target)))
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(target)))
    tables = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename NOT LIKE 'mesh.%%'",
        (source,),
    ).fetchall()
    for (table,) in tables:
        old, new = sql.Identifier(source, table), sql.Identifier(target, table)
        connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(new, old))
        connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(new, old))
