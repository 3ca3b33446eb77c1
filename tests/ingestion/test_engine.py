"""The embedded engine, with connectors that behave and that do not."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_project.failures import SourceError
from dagster_project.ingestion import engine
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.streams import load_stream
from dagster_project.lake.commits import Commit, CommitLog
from dagster_project.lake.store import Lake

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
Run = Callable[..., Commit]


@pytest.fixture
def run(tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Syncs the connection by a connector with this body."""
    monkeypatch.setattr(engine, "GRACE", 1.0)
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    monkeypatch.setenv("SHOP_PAGE", "1")

    def run(body: str, timeout: float = 30, **options: Any) -> Commit:
        script = tmp_path / "connector.py"
        script.write_text(PRELUDE + textwrap.dedent(body))
        command = [sys.executable, "-S", str(script)]
        monkeypatch.setattr(engine, "connector_command", lambda *_: command)
        return engine.sync(
            "shop",
            CONNECTION,
            config={"password": SECRET, "page_size": "1"},
            lake=lake,
            home=tmp_path,
            timeout=timeout,
            **options,
        )

    return run


def failure(run: Run, lake: Lake, body: str, **options: Any) -> str:
    """The message of the sync's failure, which has committed nothing."""
    before = CommitLog(lake, "shop", "main").numbers()
    with pytest.raises(SourceError) as caught:
        run(body, **options)
    assert CommitLog(lake, "shop", "main").numbers() == before
    message = str(caught.value)
    assert message.startswith("shop/main: ")
    return message


def rows(lake: Lake, commit: Commit, name: str) -> list[dict[str, Any]]:
    return [
        row
        for item in commit.streams[name].objects
        for row in pq.read_table(pa.BufferReader(lake.read(item.key))).to_pylist()
    ]


# A sync that ends whole


def test_a_whole_sync_is_committed_with_its_rows_and_its_state(run: Run, lake: Lake) -> None:
    commit = run(WHOLE)
    assert CommitLog(lake, "shop", "main").last() == commit
    assert (commit.number, commit.rows) == (1, 3)
    assert commit.connector == "source-test 1.0"
    assert [(r["id"], r["name"]) for r in rows(lake, commit, "users")] == [(1, "Ada"), (2, "Grace")]
    assert rows(lake, commit, "events")[0]["_airbyte_extracted_at"] == 1000
    # The state of a full refresh is not resumed from.
    assert list(commit.state) == ["events"]
    assert commit.state["events"]["stream"]["stream_state"] == {"at": 5}


def test_what_was_committed_is_loaded_and_what_was_not_is_no_data(
    run: Run, lake: Lake, warehouse_url: str
) -> None:
    def load(name: str) -> Any:
        stream = CONNECTION.stream(name)
        return load_stream(
            "shop", CONNECTION, stream, lake=lake, warehouse_url=warehouse_url, run_id="r"
        )

    failure(run, lake, 'record("users", id=9, name="lost")\n' * 60_000 + "sys.exit(1)")
    assert list(lake.list("shop/main/users")), "the objects of the failed sync are there"
    assert load("users").rows == 0
    run(WHOLE)
    assert (load("users").new, load("events").new) == (2, 1)
    assert (load("users").received, load("events").received) == (0, 0)
    run('status("users"); record("events", id=2, at=6); checkpoint("events"); status("events")')
    assert (load("users").removed, load("events").rows) == (2, 2)


def test_the_version_follows_the_content(run: Run) -> None:
    first, again = run(WHOLE), run(WHOLE)
    other = run(WHOLE.replace("Ada", "Eva"))
    users = [commit.streams["users"].version for commit in (first, again, other)]
    assert users[0] == users[1] != users[2]
    nothing = run('status("users"); checkpoint("events"); status("events")')
    assert nothing.streams["events"].version == other.streams["events"].version
    assert nothing.streams["users"].version not in users


def test_the_state_is_handed_to_the_next_sync(run: Run, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    note = f"json.dump(state, open({str(seen)!r}, 'w'))\n"
    run(note + WHOLE)
    assert json.loads(seen.read_text()) is None
    run(note + WHOLE.replace("at=5", "at=8"))
    (given,) = json.loads(seen.read_text())
    assert given["type"] == "STREAM"
    assert given["stream"]["stream_descriptor"] == {"name": "events"}
    assert given["stream"]["stream_state"] == {"at": 5}
    last = run(note + WHOLE)
    assert json.loads(seen.read_text())[0]["stream"]["stream_state"] == {"at": 8}
    assert last.number == 3


def test_after_a_failure_the_next_sync_resumes_from_the_last_commit(
    run: Run, lake: Lake, tmp_path: Path
) -> None:
    run(WHOLE)
    failure(run, lake, 'checkpoint("events", at=99)\nsys.exit(1)')
    seen = tmp_path / "seen.json"
    commit = run(f"json.dump(state, open({str(seen)!r}, 'w'))\n" + WHOLE)
    assert json.loads(seen.read_text())[0]["stream"]["stream_state"] == {"at": 5}
    assert commit.number == 2


def test_other_output_among_the_messages_does_no_harm(run: Run) -> None:
    noise = 'print("hello"); print("{"); print("[1]"); print("5"); print("null"); print("{}")\n'
    binary = 'sys.stdout.buffer.write(b"\\xff\\xfe\\n"); sys.stdout.flush()\n'
    unknown = 'say({"type": "CONTROL", "control": {}}); say({"type": "SPEC"})\n'
    assert run(noise + WHOLE + binary + unknown).rows == 3


def test_numbers_that_are_not_of_json_are_kept(run: Run, lake: Lake) -> None:
    commit = run('record("users", id=float("nan"), name="Ada")\n' + WHOLE.replace("2.0", "3"))
    (first, *_) = rows(lake, commit, "users")
    assert first["id"] is None
    assert "not bigint" in first["_airbyte_meta"]


def test_progress_is_told_while_records_come(run: Run) -> None:
    told: list[tuple[str, int]] = []
    body = """
    for turn in range(2):
        for number in range(1000):
            record("users", id=number, name="x")
        time.sleep(1.05)
    status("users"); checkpoint("events"); status("events")
    """
    run(body, progress=lambda name, count: told.append((name, count)))
    assert [name for name, _ in told] == ["users"] * len(told)
    assert [count for _, count in told][-1] == 2000


# What is not whole


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (WHOLE + "sys.exit(3)", "it ended with exit code 3"),
        (WHOLE.replace('status("users")', ""), "stream users ended without a status"),
        (WHOLE.replace('status("users")', 'status("users", "INCOMPLETE")'), "users ended INCOMPL"),
        (WHOLE.replace("count=2.0", "count=3"), "users sent 2 records, but its state counts 3"),
        (
            WHOLE.replace('checkpoint("events", count=1, at=5)', ""),
            "stream events is incremental, but sent no state",
        ),
        ('record("orders", id=1)\n' + WHOLE, "a record of orders, which is not declared"),
        ('say({"type": "RECORD"})\n' + WHOLE, "a RECORD message that is not of the Airbyte"),
        (
            'say({"type": "RECORD", "record": {"stream": "users", "data": 5, "emitted_at": 1}})',
            "its data is not an object",
        ),
        ('say({"type": "STATE"})\n' + WHOLE, "a STATE message that is not of the Airbyte"),
        ('say({"type": "STATE", "state": {"data": {}}})\n' + WHOLE, "state of type LEGACY"),
        ("""print('{"type": "RECORD", "record": {"str')\n""" + WHOLE, "a record that is not valid"),
        ("raise ValueError('no such table')", "ValueError: no such table"),
        ("", "stream users ended without a status; stream events ended without a status"),
    ],
)
def test_a_sync_that_is_not_whole_is_refused(run: Run, lake: Lake, body: str, said: str) -> None:
    message = failure(run, lake, body)
    assert said in message
    assert "nothing of it is used" in message


def test_a_reported_error_ends_the_connector_at_once(run: Run, lake: Lake) -> None:
    started = time.monotonic()
    message = failure(run, lake, 'log("was here"); error("quota used up"); time.sleep(60)')
    assert time.monotonic() - started < 20
    assert "it reported: quota used up." in message
    assert "INFO: was here" in message
    # How it ended is our doing.
    assert "exit code" not in message


def test_a_connector_that_hangs_is_stopped_with_what_it_started(
    run: Run, lake: Lake, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    body = f"""
    import signal, subprocess
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(99)"])
    open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    record("users", id=1)
    time.sleep(99)
    """
    started = time.monotonic()
    message = failure(run, lake, body, timeout=1.5)
    assert time.monotonic() - started < 20
    assert "still ran after 2 s and was stopped" in message
    assert "MESH_SYNC_TIMEOUT" in message
    assert_gone(pids)


def test_what_a_connector_leaves_running_is_ended(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"""
    import subprocess
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(99)"], **quiet)
    open({str(pids)!r}, "w").write(str(child.pid))
    """
    assert run(textwrap.dedent(body) + WHOLE).rows == 3
    assert_gone(pids)


def assert_gone(pids: Path) -> None:
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


def test_two_syncs_of_a_connection_at_once_commit_one(
    run: Run, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster_project.failures import BusyError

    first = run(WHOLE)
    monkeypatch.setattr(CommitLog, "last", lambda self: None)
    with pytest.raises(BusyError, match="shop/main"):
        run(WHOLE)
    assert CommitLog(lake, "shop", "main").numbers() == [first.number]


# Secrets


def test_the_configuration_is_handed_over_in_a_file_for_this_user_only(
    run: Run, tmp_path: Path
) -> None:
    seen = tmp_path / "seen.json"
    body = f"""
    mode = os.stat(arg("--config")).st_mode & 0o777
    folder = os.path.dirname(arg("--config"))
    json.dump({{"argv": sys.argv, "environ": dict(os.environ), "config": config, "mode": mode,
        "folder": folder, "folder_mode": os.stat(folder).st_mode & 0o777}},
        open({str(seen)!r}, "w"))
    """
    run(textwrap.dedent(body) + WHOLE)
    found = json.loads(seen.read_text())
    assert found["config"]["password"] == SECRET
    assert SECRET not in " ".join(found["argv"])
    assert (found["mode"], found["folder_mode"]) == (0o600, 0o700)
    assert not Path(found["folder"]).exists()


def test_a_connector_sees_nothing_of_the_platforms_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_WAREHOUSE_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("DBT_ENV_SECRET_MESH_PASSWORD", "p")
    monkeypatch.setenv("DAGSTER_HOME", "/d")
    monkeypatch.setenv("PYTHONPATH", "/p")
    seen = tmp_path / "seen.json"
    run(f"json.dump(dict(os.environ), open({str(seen)!r}, 'w'))\n" + WHOLE)
    found = json.loads(seen.read_text())
    assert found["PATH"] == os.environ["PATH"]
    ours = ("MESH_", "DBT_", "DAGSTER", "PYTHONPATH", "SHOP_")
    assert [name for name in found if name.startswith(ours)] == []


@pytest.mark.parametrize(
    "body",
    [
        "error('cannot log in with ' + json.dumps(config))",
        "log(json.dumps(config)); sys.exit(1)",
        "print(config); sys.exit(1)",
        "print(config, file=sys.stderr); sys.exit(1)",
        "raise ValueError(config['password'])",
        "from urllib.parse import quote; raise ValueError('http://x/' + quote(config['password']))",
        "from urllib.parse import quote_plus as q; raise ValueError(q(config['password']))",
        # Cut off in the middle of the secret.
        "print('x' * 490 + config['password']); sys.exit(1)",
        "record(config['password'], id=1)",
    ],
)
def test_a_secret_that_a_failing_connector_prints_is_masked(
    run: Run, lake: Lake, body: str
) -> None:
    message = failure(run, lake, body)
    assert "***" in message
    assert "hunter2" not in message


def test_a_key_of_several_lines_is_masked_however_it_is_printed(
    run: Run, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\n-----END KEY-----")
    body = (
        'log("MIIEpAIBAAKCAQEA"); print("--\\nMIIEpAIBAAKCAQEA", file=sys.stderr)\n'
        'error(json.dumps({"key": "-----BEGIN KEY-----\\nMIIEpAIBAAKCAQEA\\n-----END KEY-----"}))'
    )
    assert "MIIEp" not in failure(run, lake, body)


def test_a_value_that_is_too_short_to_be_a_secret_is_not_cut_out_of_other_words(
    run: Run, lake: Lake
) -> None:
    assert "error 411, page ***" in failure(run, lake, "error('error 411, page 1')")
