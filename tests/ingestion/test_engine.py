"""The embedded engine, with connectors that behave and that do not."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dagster_project.ingestion import engine
from dagster_project.ingestion.streams import load_stream
from dagster_project.ingestion.synced import SyncProgress
from tests.ingestion.scripted import (
    CONNECTION,
    SECRET,
    WHOLE,
    Shop,
    assert_gone,
    connection,
    stream,
)

ON_S3_TOO = True

# A sync that ends whole


def test_a_whole_sync_is_committed_with_its_rows_and_its_state(shop: Shop) -> None:
    done = shop.sync(WHOLE)
    commit = done.commit
    assert shop.log.last() == commit
    assert (commit.number, commit.rows, commit.complete, done.joined) == (1, 3, True, False)
    assert commit.connector == "source-test 1.0"
    assert [(r["id"], r["name"]) for r in shop.rows(done, "users")] == [(1, "Ada"), (2, "Grace")]
    assert shop.rows(done, "events")[0]["_airbyte_extracted_at"] == 1000
    # The state of a full refresh is not resumed from.
    assert list(commit.state) == ["events"]
    assert commit.state["events"]["stream"]["stream_state"] == {"at": 5}


def test_what_was_committed_is_loaded_and_what_was_not_is_no_data(
    shop: Shop, warehouse_url: str
) -> None:
    def load(name: str) -> Any:
        stream = CONNECTION.stream(name)
        return load_stream(
            "shop", CONNECTION, stream, lake=shop.lake, warehouse_url=warehouse_url, run_id="r"
        ).load

    shop.failure('record("users", id=9, name="lost")\nsys.exit(1)')
    assert load("users").rows == 0
    shop.sync(WHOLE)
    assert (load("users").new, load("events").new) == (2, 1)
    assert (load("users").received, load("events").received) == (0, 0)
    shop.sync(
        'status("users"); record("events", id=2, at=6); checkpoint("events"); status("events")'
    )
    assert (load("users").removed, load("events").rows) == (2, 2)


def test_the_version_follows_the_content_whatever_its_order(shop: Shop) -> None:
    ada, grace, *rest = WHOLE.splitlines()
    bodies = [WHOLE, "\n".join([grace, ada, *rest]), WHOLE.replace("Ada", "Eva")]
    commits = [shop.sync(body).commit for body in bodies]
    users = [commit.streams["users"].version for commit in commits]
    assert users[0] == users[1] != users[2]
    # What is appended adds to what was there.
    assert len({commit.streams["events"].version for commit in commits}) == 3
    nothing = shop.sync('status("users"); checkpoint("events"); status("events")').commit
    assert nothing.streams["events"].version == commits[-1].streams["events"].version
    assert nothing.streams["users"].version not in users


def test_the_state_is_handed_to_the_next_sync(shop: Shop, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    note = f"json.dump(state, open({str(seen)!r}, 'w'))\n"
    shop.sync(note + WHOLE)
    assert json.loads(seen.read_text()) is None
    # More digits than a double or 64 bits hold.
    exact = "123456789012345678901234567890"
    shop.sync(note + WHOLE.replace("count=1, at=5", f"count=1, at={exact}"))
    (given,) = json.loads(seen.read_text())
    assert given["type"] == "STREAM"
    assert given["stream"]["stream_descriptor"] == {"name": "events"}
    assert given["stream"]["stream_state"] == {"at": 5}
    last = shop.sync(note + WHOLE).commit
    assert json.loads(seen.read_text())[0]["stream"]["stream_state"] == {"at": int(exact)}
    assert last.number == 3


def test_after_a_failure_the_next_sync_resumes_from_the_last_commit(
    shop: Shop, tmp_path: Path
) -> None:
    shop.sync(WHOLE)
    shop.failure('checkpoint("events", at=99)\nsys.exit(1)')
    seen = tmp_path / "seen.json"
    commit = shop.sync(f"json.dump(state, open({str(seen)!r}, 'w'))\n" + WHOLE).commit
    assert json.loads(seen.read_text())[0]["stream"]["stream_state"] == {"at": 5}
    assert commit.number == 2


def test_other_output_among_the_messages_does_no_harm(shop: Shop) -> None:
    noise = 'print("hello"); print("{"); print("[1]"); print("5"); print("null"); print("{}")\n'
    binary = 'sys.stdout.buffer.write(b"\\xff\\xfe\\n"); sys.stdout.flush()\n'
    unknown = 'say({"type": "CONTROL", "control": {}}); say({"type": "SPEC"})\n'
    assert shop.sync(noise + WHOLE + binary + unknown).rows == 3


def test_a_byte_order_mark_before_the_first_message_does_no_harm(shop: Shop) -> None:
    mark = 'sys.stdout.buffer.write(b"\\xef\\xbb\\xbf"); sys.stdout.flush()\n'
    assert shop.sync(mark + WHOLE).rows == 3


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("depth", [300, 900])
def test_what_is_nested_deeply_beside_a_long_number_is_set_aside(shop: Shop, depth: int) -> None:
    body = f"""
    nested = "[" * {depth} + "1" * 40 + "]" * {depth}
    print('{{"type":"RECORD","record":{{"stream":"users","data":{{"id":3,"name":' + nested
        + '}},"emitted_at":1}}}}')
    """
    done = shop.sync(textwrap.dedent(body) + WHOLE.replace("count=2.0", "count=3"))
    assert done.stream("users").drift.refused == 1


def test_what_is_nested_too_deeply_beside_a_long_number_is_an_error(shop: Shop) -> None:
    body = """
    nested = "[" * 1010 + "1" * 40 + "]" * 1010
    print('{"type":"RECORD","record":{"stream":"users","data":{"id":3,"name":' + nested
        + '},"emitted_at":1}}')
    """
    assert "a message that is not valid JSON" in shop.failure(textwrap.dedent(body) + WHOLE)


def test_what_comes_after_the_last_state_would_come_again(shop: Shop) -> None:
    events = stream("events", incremental=True, id="integer", at="integer")
    body = """
    record("events", id=1, at=1); checkpoint("events", at=1)
    record("events", id=2, at=2); record("events", id=3, at=3); status("events")
    """
    # With a key a row that comes again replaces itself.
    shop.connection = connection(events)
    assert shop.sync(body).rows == 3
    shop.connection = connection(events | {"destination_sync_mode": "append"})
    assert "stream events sent 2 records after its last state" in shop.failure(body)
    assert shop.sync(body + 'checkpoint("events", at=3)').rows == 3


def test_a_stream_that_was_fully_refreshed_begins_anew(shop: Shop, tmp_path: Path) -> None:
    events = stream("events", incremental=True, id="integer", at="integer")
    full = events | {"sync_mode": "full_refresh", "destination_sync_mode": "overwrite"}
    seen = tmp_path / "seen.json"
    body = f"""
    json.dump(state, open({str(seen)!r}, "w"))
    record("events", id=1, at=1); checkpoint("events", at=1); status("events")
    """
    for declared in (events, full, events):
        shop.connection = connection(declared)
        shop.sync(body)
        assert json.loads(seen.read_text()) is None
    shop.sync(body)
    assert json.loads(seen.read_text())[0]["stream"]["stream_state"] == {"at": 1}


def test_a_sync_with_an_older_declaration_is_not_joined(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = stream("users", id="integer", name="string")
    users |= {"destination_sync_mode": "append"}
    turn = engine.turn

    @contextmanager
    def waits(*arguments: Any) -> Iterator[tuple[Path, bool]]:
        """A turn for which another sync was waited."""
        monkeypatch.setattr(engine, "turn", turn)
        now, shop.connection = shop.connection, connection(users)
        shop.sync('record("users", id=1); status("users")')
        shop.connection = now
        shop.script(WHOLE)
        with turn(*arguments) as (folder, _):
            yield folder, True

    for declared, joined in ((connection(users), True), (CONNECTION, False)):
        monkeypatch.setattr(engine, "turn", waits)
        shop.connection = declared
        assert shop.sync(WHOLE).joined is joined
    assert len(shop.log.numbers()) == 3


def test_a_stream_may_be_called_anything(shop: Shop) -> None:
    names = ["Order Items", "select", "x" * 200, "注文", "Größe/№ 5"]
    shop.connection = connection(*(stream(name, id="integer") for name in names))
    body = f"""
    for stream in catalog["streams"]:
        name = stream["stream"]["name"]
        record(name, id=1)
        status(name)
    assert [s["stream"]["name"] for s in catalog["streams"]] == {names!r}
    """
    done = shop.sync(body)
    tables = [each.table for each in shop.connection.streams]
    assert tables[:2] == ["order_items", "select"]
    assert [done.stream(table).rows for table in tables] == [1] * 5
    assert done.stream("select").objects[0].key.startswith("shop/main/select/")


def test_progress_is_told_while_records_come(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TOLD_EVERY", 0.05)
    told: list[SyncProgress] = []
    body = """
    for turn in range(3):
        for number in range(500):
            record("users", id=number, name="x")
        time.sleep(0.1)
    status("users"); checkpoint("events"); status("events")
    """
    done = shop.sync(body, progress=told.append)
    assert {each.stream for each in told} == {"users"}
    rows = [each.rows for each in told]
    assert rows == sorted(set(rows)), "each tells more than the one before"
    assert 0 < rows[0] <= rows[-1] <= 1500
    assert all(0 < each.seconds <= done.seconds + 1 for each in told)
    line = len(
        '{"type": "RECORD", "record": {"stream": "users", "data": {"id": 100, "name": "x"}, '
    )
    assert told[-1].bytes > line * told[-1].rows
    assert (told[-1].all_rows, told[-1].all_bytes) == (told[-1].rows, told[-1].bytes)
    assert (done.rows, done.sent_bytes) == (1500, done.stream("users").sent_bytes)
    assert done.sent_bytes >= told[-1].bytes


# What is not whole


@pytest.mark.usefixtures("on_disk")
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
        (
            """print('{"type": "RECORD", "record": {"str')\n""" + WHOLE,
            "a message that is not valid JSON",
        ),
        ("raise ValueError('no such table')", "ValueError: no such table"),
        ("", "it never mentioned stream users: the source no longer has it, or calls it otherwise"),
        ("os.kill(os.getpid(), 9)", "it ended by SIGKILL"),
        ("os.close(1); sys.exit(1)", "it ended with exit code 1"),
        (
            'say({"type": "RECORD", "record": {"stream": [], "data": {}, "emitted_at": 1}})',
            "a RECORD message that is not of the Airbyte protocol (TypeError",
        ),
        (
            'say({"type": "RECORD", "record": {"stream": "users", "data": {}, "emitted_at": 1e30}})'
            "\n" + WHOLE.replace("count=2.0", "count=3"),
            "an emitted_at that is no time in milliseconds: 1000000000000000019884624838656",
        ),
        # In microseconds.
        (
            'say({"type": "RECORD", "record": {"stream": "users", "data": {}, '
            '"emitted_at": 1763800000000000000}})\n' + WHOLE.replace("count=2.0", "count=3"),
            "an emitted_at that is no time in milliseconds: 1763800000000000000",
        ),
        ("print('.', end='')\n" + WHOLE, "a message on a line with other output"),
        (WHOLE + "print('100 %', end='\\r'); status('users')", "a message on a line with other"),
        (
            "print('.' * 2, end='')\nrecord('users', id=3, name='x' * 2**21)\n" + WHOLE,
            "a message on a line with other output",
        ),
        (
            """print('{"type": "STATE", "state": {"ty')\n""" + WHOLE,
            "a message that is not valid JSON",
        ),
    ],
)
def test_a_sync_that_is_not_whole_is_refused(shop: Shop, body: str, said: str) -> None:
    message = shop.failure(body)
    assert said in message
    assert "nothing of it is used" in message


def test_a_reported_error_ends_the_connector_at_once(shop: Shop) -> None:
    started = time.monotonic()
    message = shop.failure('log("was here"); error("quota used up"); time.sleep(60)')
    assert time.monotonic() - started < 20
    assert "it reported: quota used up." in message
    assert "INFO: was here" in message
    # How it ended is our doing.
    assert "exit code" not in message


@pytest.mark.usefixtures("on_disk")
def test_a_connector_that_hangs_is_stopped_with_what_it_started(shop: Shop, tmp_path: Path) -> None:
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
    message = shop.failure(body, timeout=1.5)
    assert time.monotonic() - started < 20
    assert "still ran after 1.5 s and was stopped" in message
    assert "MESH_SYNC_TIMEOUT" in message
    assert_gone(pids)


@pytest.mark.usefixtures("on_disk")
def test_what_a_connector_leaves_running_is_ended(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"""
    import subprocess
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(99)"], **quiet)
    open({str(pids)!r}, "w").write(str(child.pid))
    """
    assert shop.sync(textwrap.dedent(body) + WHOLE).rows == 3
    assert_gone(pids)


# Secrets


def test_the_configuration_is_handed_over_in_a_file_for_this_user_only(
    shop: Shop, tmp_path: Path
) -> None:
    seen = tmp_path / "seen.json"
    body = f"""
    mode = os.stat(arg("--config")).st_mode & 0o777
    folder = os.path.dirname(arg("--config"))
    json.dump({{"argv": sys.argv, "environ": dict(os.environ), "config": config, "mode": mode,
        "folder": folder, "folder_mode": os.stat(folder).st_mode & 0o777}},
        open({str(seen)!r}, "w"))
    """
    shop.sync(textwrap.dedent(body) + WHOLE)
    found = json.loads(seen.read_text())
    assert found["config"]["password"] == SECRET
    assert SECRET not in " ".join(found["argv"])
    assert (found["mode"], found["folder_mode"]) == (0o600, 0o700)
    assert not Path(found["folder"]).exists()


@pytest.mark.usefixtures("on_disk")
def test_a_connector_sees_nothing_of_the_platforms_environment(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_WAREHOUSE_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("DBT_ENV_SECRET_MESH_PASSWORD", "p")
    monkeypatch.setenv("DAGSTER_HOME", "/d")
    monkeypatch.setenv("PYTHONPATH", "/p")
    seen = tmp_path / "seen.json"
    shop.sync(f"json.dump(dict(os.environ), open({str(seen)!r}, 'w'))\n" + WHOLE)
    found = json.loads(seen.read_text())
    assert found["PATH"] == os.environ["PATH"]
    ours = ("MESH_", "DBT_", "DAGSTER", "PYTHONPATH", "SHOP_")
    assert [name for name in found if name.startswith(ours)] == []


@pytest.mark.usefixtures("on_disk")
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
def test_a_secret_that_a_failing_connector_prints_is_masked(shop: Shop, body: str) -> None:
    message = shop.failure(body)
    assert "***" in message
    assert "hunter2" not in message


@pytest.mark.usefixtures("on_disk")
def test_a_key_of_several_lines_is_masked_however_it_is_printed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\n-----END KEY-----")
    body = (
        'log("MIIEpAIBAAKCAQEA"); print("--\\nMIIEpAIBAAKCAQEA", file=sys.stderr)\n'
        'error(json.dumps({"key": "-----BEGIN KEY-----\\nMIIEpAIBAAKCAQEA\\n-----END KEY-----"}))'
    )
    assert "MIIEp" not in shop.failure(body)


def test_a_value_that_is_too_short_to_be_a_secret_is_not_cut_out_of_other_words(shop: Shop) -> None:
    assert "error 411, page ***" in shop.failure("error('error 411, page 1')")
