"""`mesh` as a person starts it, on a home of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import psycopg

from dagster_project.settings import PREFIX
from dagster_project.warehouse.embedded import DAGSTER, MESH, WAREHOUSE, EmbeddedPostgres

PROGRAM = Path(sys.executable).parent / "mesh"
USERS = 500


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    def table(self) -> dict[str, list[str]]:
        """The rows of the table at the end of `mesh run`, by domain."""
        lines = re.split(r"seconds *\n", self.out)[1].split("\n\n")[0].splitlines()
        return {line.split()[0]: line.split()[1:] for line in lines if line[:1].isalpha()}


@dataclass
class Platform:
    """A home, and the commands that work in it."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`mesh` in a session of its own."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        mine.pop("PYTHONDONTWRITEBYTECODE", None)
        mine |= {"MESH_HOME": str(self.home), "MESH_FAKER_USERS": str(USERS)}
        return subprocess.Popen(
            [str(PROGRAM), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=mine | self.environment | environment,
            start_new_session=True,
        )

    def mesh(self, *arguments: str, timeout: float = 400, **environment: str) -> Ended:
        """Run `mesh` to its end."""
        began = time.monotonic()
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return Ended(process.returncode, out, err, time.monotonic() - began)

    def run(self, *arguments: str, **environment: str) -> Ended:
        """`mesh run`, which is to succeed."""
        ended = self.mesh("run", *arguments, **environment)
        assert ended.code == 0, f"{ended.out[-3000:]}\n{ended.err[-3000:]}"
        return ended

    def url(self, role: str = MESH, database: str = WAREHOUSE) -> str:
        with EmbeddedPostgres(self.home).lease() as endpoint:
            return endpoint.url(role, database)

    def rows(self, statement: str, database: str = WAREHOUSE) -> list[tuple[Any, ...]]:
        """What the warehouse, or Dagster's database, answers."""
        role = MESH if database == WAREHOUSE else DAGSTER
        with psycopg.connect(self.url(role, database)) as connection:
            return connection.execute(statement.encode()).fetchall()

    def events(self, kind: str, run: str | None = None) -> list[dict[str, Any]]:
        """Dagster's events of a kind, in their order."""
        chosen = f"AND run_id = '{run}'" if run else ""
        return [
            json.loads(event)["dagster_event"]
            for (event,) in self.rows(
                f"SELECT event FROM event_logs WHERE dagster_event_type = '{kind}' {chosen} "
                "ORDER BY id",
                DAGSTER,
            )
        ]

    def runs(self) -> dict[str, tuple[str, str]]:
        """Of each run the domain and the status, in the order of their creation."""
        return {
            run: (job.removesuffix("_pipeline"), status)
            for run, job, status in self.rows(
                "SELECT run_id, pipeline_name, status FROM runs ORDER BY id", DAGSTER
            )
        }

    def secrets(self) -> list[str]:
        """The passwords, also as URLs spell them."""
        found = json.loads((self.home / "postgres" / "passwords.json").read_text()).values()
        quoted = [urlsplit(self.url(role)).password or "" for role in (MESH,)]
        return [*found, *quoted, *(unquote(each) for each in quoted)]

    def processes(self) -> list[psutil.Process]:
        """Whatever works in this home, but for its PostgreSQL."""
        home = str(self.home)
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                named = home in " ".join(process.cmdline())
                mine = named or process.environ().get("MESH_HOME") == home
                if mine and not process.name().startswith("postgres"):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_until_quiet(self, seconds: float) -> None:
        """Until nothing works in this home any more."""
        limit = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < limit:
            time.sleep(0.2)
        assert not left, [" ".join(process.cmdline())[:150] for process in left]


def until(process: subprocess.Popen[str], said: str, seconds: float = 120) -> str:
    """What a command prints up to a line that matches."""
    limit = time.monotonic() + seconds
    heard = ""
    assert process.stdout
    for line in process.stdout:
        heard += line
        if re.search(said, line):
            return heard
        assert time.monotonic() < limit, heard
    raise AssertionError(f"it ended without {said!r}:\n{heard}\n{process.communicate()[1]}")
