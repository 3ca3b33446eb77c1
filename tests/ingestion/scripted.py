"""Connectors that are a script: real subprocesses which say what a test has them say."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_project.failures import SourceError
from dagster_project.ingestion import engine
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.synced import Synced
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from dagster_project.settings import PROJECT

SECRET = "hunter2-and/more"

#: What the scripts of all connectors begin with.
PRELUDE = """\
import json, os, sys, time

def arg(name):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None

def load(name):
    return json.load(open(arg(name))) if arg(name) else None

config, catalog, state = load("--config"), load("--catalog"), load("--state")

def say(message):
    print(json.dumps(message), flush=True)

def record(stream, **data):
    say({"type": "RECORD", "record": {"stream": stream, "data": data, "emitted_at": 1000}})

def checkpoint(stream, count=None, **cursor):
    message = {"type": "STREAM", "stream": {
        "stream_descriptor": {"name": stream}, "stream_state": cursor}}
    if count is not None:
        message["sourceStats"] = {"recordCount": count}
    say({"type": "STATE", "state": message})

def status(stream, value="COMPLETE"):
    say({"type": "TRACE", "trace": {"type": "STREAM_STATUS", "emitted_at": 1, "stream_status": {
        "stream_descriptor": {"name": stream}, "status": value}}})

def error(message):
    say({"type": "TRACE", "trace": {"type": "ERROR", "emitted_at": 1,
        "error": {"message": message}}})

def log(message):
    say({"type": "LOG", "log": {"level": "INFO", "message": message}})
"""

#: A whole sync of the connection below.
WHOLE = """\
record("users", id=1, name="Ada")
record("users", id=2, name="Grace")
checkpoint("users", count=2.0)
status("users")
record("events", id=1, at=5)
checkpoint("events", count=1, at=5)
status("events")
"""


def stream(name: str, /, incremental: bool = False, **properties: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": "x",
        "sync_mode": "incremental" if incremental else "full_refresh",
        "destination_sync_mode": "append_dedup" if incremental else "overwrite",
        "primary_key": ["id"],
        "cursor_field": "at" if incremental else None,
        "json_schema": {"properties": {key: {"type": kind} for key, kind in properties.items()}},
    }


CONNECTION = Connection.model_validate(
    {
        "name": "main",
        "source": "a test",
        "connector": {"environment": "source-test", "version": "1.0"},
        "config": {"password": "${SHOP_PASSWORD}", "page_size": "${SHOP_PAGE}"},
        "streams": [
            stream("users", id="integer", name="string"),
            stream("events", incremental=True, id="integer", at="integer"),
        ],
    }
)


def connection(*streams: dict[str, Any], **connector: Any) -> Connection:
    """A connection of these streams."""
    connector = {"environment": "source-test", "version": "1.0", **connector}
    return Connection.model_validate(
        {"name": "main", "source": "a test", "connector": connector, "streams": list(streams)}
    )


class Shop:
    """The connection `shop/main`, synced by a connector with whatever body."""

    def __init__(self, folder: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.lake, self._monkeypatch = folder, lake, monkeypatch
        self.connection = CONNECTION

    @property
    def log(self) -> CommitLog:
        return CommitLog(self.lake, "shop", "main")

    def script(self, body: str) -> list[str]:
        """The command of a connector with this body."""
        path = self.folder / "connector.py"
        path.write_text(PRELUDE + textwrap.dedent(body))
        return [sys.executable, "-S", str(path)]

    def sync(self, body: str, timeout: float = 30, **options: Any) -> Synced:
        command = self.script(body)
        self._monkeypatch.setattr(engine, "connector_command", lambda *_: command)
        return engine.sync(
            "shop",
            self.connection,
            config={"password": SECRET, "page_size": "1"},
            lake=self.lake,
            home=self.folder,
            timeout=timeout,
            **options,
        )

    def apart(self, body: str) -> subprocess.Popen[str]:
        """The sync in a process of its own, which prints what `apart` says."""
        command = [sys.executable, "-m", "tests.ingestion.apart", str(self.folder), self.lake.url]
        return subprocess.Popen(
            [*command, *self.script(body)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )

    def failure(self, body: str, **options: Any) -> str:
        """The message of the sync's failure, which has committed nothing."""
        before = self.log.numbers()
        with pytest.raises(SourceError) as caught:
            self.sync(body, **options)
        assert self.log.numbers() == before
        message = str(caught.value)
        assert message.startswith("shop/main: ")
        return message

    def tables(self, synced: Synced, table: str) -> list[pa.Table]:
        """The objects that a sync brought of a stream."""
        items = synced.stream(table).objects
        return [pq.read_table(pa.BufferReader(self.lake.read(item.key))) for item in items]

    def rows(self, synced: Synced, table: str) -> list[dict[str, Any]]:
        return [row for found in self.tables(synced, table) for row in found.to_pylist()]

    def listed(self, part: str = "main") -> list[str]:
        """What lies in the lake, without the commits."""
        found = [item.key for item in self.lake.list(f"shop/{part}")]
        return [key for key in found if "/_commits/" not in key]


def assert_gone(pids: Path) -> None:
    """The processes of which the file has the numbers end, if they have not yet."""
    left = [int(pid) for pid in pids.read_text().split()]
    assert left
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in left)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(path: Path) -> None:
    """Until the file is there and holds something."""
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} is still not there"
        time.sleep(0.01)
