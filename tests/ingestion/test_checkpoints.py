"""A sync that can go on from a state in its middle commits what it has so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dagster_project.failures import SourceError
from dagster_project.ingestion import engine
from dagster_project.ingestion.declaration import Connector
from dagster_project.ingestion.streams import load_stream
from tests.ingestion.scripted import Shop, connection, stream

ON_S3_TOO = True

EVENTS = stream("events", incremental=True, id="integer", at="integer")
USERS = stream("users", id="integer", name="string")
#: Two checkpoints, then the end.
BODY = """
for number in (1, 2, 3):
    record("users", id=number)
    record("events", id=number, at=number)
    record("events", id=number + 10, at=number)
    checkpoint("events", count=2, at=number)
status("events")
status("users")
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0)


def test_only_low_code_connectors_are_trusted_with_it_unless_told() -> None:
    plain = Connector(environment="source-x", version="1")
    low_code = plain.model_copy(update={"manifest": "manifest.yaml"})
    assert (plain.resumes, low_code.resumes) == (False, True)
    assert plain.model_copy(update={"checkpoints": True}).resumes
    assert not low_code.model_copy(update={"checkpoints": False}).resumes


def test_each_state_commits_its_stream(shop: Shop) -> None:
    shop.connection = connection(USERS, EVENTS, checkpoints=True)
    done = shop.sync(BODY)
    commits = shop.log.since(0)
    assert list(done.commits) == commits
    assert [commit.complete for commit in commits] == [False, False, False, True]
    assert [sorted(commit.streams) for commit in commits] == [["events"]] * 3 + [
        ["events", "users"]
    ]
    assert [commit.streams["events"].rows for commit in commits] == [2, 2, 2, 0]
    states = [commit.state["events"]["stream"]["stream_state"]["at"] for commit in commits]
    assert states == [1, 2, 3, 3]
    assert (done.rows, done.stream("events").rows, done.stream("users").rows) == (9, 6, 3)
    assert [row["id"] for row in shop.rows(done, "events")] == [1, 11, 2, 12, 3, 13]
    # All rows of a sync tell that they are of it.
    assert {row["_airbyte_generation_id"] for row in shop.rows(done, "events")} == {1}
    assert {row["_airbyte_generation_id"] for row in shop.rows(done, "users")} == {1}
    assert len({commit.sync for commit in commits}) == 1


def test_it_waits_between_two(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 30)
    shop.connection = connection(USERS, EVENTS, checkpoints=True)
    assert len(shop.sync(BODY).commits) == 1


@pytest.mark.parametrize(
    ("streams", "connector"),
    [
        # Not told to.
        ([USERS, EVENTS], {}),
        # The rows at the boundary would be there twice.
        ([USERS, EVENTS | {"destination_sync_mode": "append"}], {"checkpoints": True}),
        ([USERS, EVENTS | {"sync_mode": "full_refresh"}], {"checkpoints": True}),
    ],
)
def test_no_other_stream_has_them(
    shop: Shop, streams: list[dict[str, Any]], connector: dict[str, Any]
) -> None:
    shop.connection = connection(*streams, **connector)
    assert [commit.complete for commit in shop.sync(BODY).commits] == [True]


@pytest.mark.parametrize("count", [None, 1, 3])
def test_a_state_whose_count_is_not_that_of_the_records_is_none(
    shop: Shop, count: int | None
) -> None:
    shop.connection = connection(USERS, EVENTS, checkpoints=True)
    body = (
        f'record("events", id=1, at=1); record("events", id=2, at=2)\ncheckpoint("events", {count})'
    )
    with pytest.raises(SourceError, match="nothing of it is used"):
        shop.sync(body + "\nsys.exit(1)")
    assert shop.log.numbers() == []


def test_a_failed_sync_goes_on_from_the_last(
    shop: Shop, tmp_path: Path, warehouse_url: str
) -> None:
    shop.connection = connection(USERS, EVENTS, checkpoints=True)
    failing = BODY.replace('status("events")', 'record("events", id=99, at=99); sys.exit(1)')
    with pytest.raises(SourceError, match="only its first 6 rows are used, from which the next"):
        shop.sync(failing)
    assert [commit.complete for commit in shop.log.since(0)] == [False] * 3
    # The objects that no commit names are gone, and the others are not.
    assert shop.listed() == sorted(
        item.key for commit in shop.log.since(0) for item in commit.streams["events"].objects
    )
    seen = tmp_path / "seen.json"
    done = shop.sync(f"""
    json.dump(state, open({str(seen)!r}, "w"))
    record("events", id=3, at=3); record("events", id=4, at=4)
    checkpoint("events", count=2, at=4)
    status("events"); record("users", id=1); status("users")
    """)
    assert json.loads(seen.read_text())[0]["stream"]["stream_state"] == {"at": 3}
    assert done.commits[0].number == 4
    loaded = {
        name: load_stream(
            "shop",
            shop.connection,
            shop.connection.stream(name),
            lake=shop.lake,
            warehouse_url=warehouse_url,
            run_id="r",
        ).load
        for name in ("events", "users")
    }
    assert (loaded["events"].rows, loaded["users"].rows) == (7, 1)


def test_versions_are_carried_over_commits_that_lack_the_stream(shop: Shop) -> None:
    shop.connection = connection(USERS, EVENTS, checkpoints=True)
    first = shop.sync(BODY).commit
    failing = 'record("events", id=5, at=5); checkpoint("events", count=1, at=5); sys.exit(1)'
    with pytest.raises(SourceError):
        shop.sync(failing)
    last = shop.log.last()
    assert last
    assert last.all_versions()["users"] == first.streams["users"].version
    assert last.all_versions()["events"] != first.streams["events"].version
    nothing = 'checkpoint("events", count=0, at=5); status("events"); status("users")'
    again = shop.sync(nothing).commit
    assert again.streams["events"].version == last.all_versions()["events"]


def test_the_version_is_that_of_a_sync_without_any(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shop.connection = connection(USERS, EVENTS, checkpoints=True)
    with_them = shop.sync(BODY).commit.streams["events"].version
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 30)
    other = Shop(tmp_path / "other", type(shop.lake)((tmp_path / "lake2").as_uri()), monkeypatch)
    other.folder.mkdir()
    other.connection = shop.connection
    assert other.sync(BODY).commit.streams["events"].version == with_them
