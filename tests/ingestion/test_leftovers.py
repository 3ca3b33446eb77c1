"""One sync of a connection at a time, and nothing left of those that were stopped."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dagster_project.failures import BusyError, LakeError, SourceError, TransientLakeError
from dagster_project.ingestion import engine, leftovers
from dagster_project.ingestion.leftovers import Marker, Markers, home_id
from dagster_project.ingestion.synced import Synced
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from tests.ingestion.scripted import CONNECTION, WHOLE, Shop, wait_for

ON_S3_TOO = True


def marker(home: str, deadline: timedelta, after: int = 0, sync: str = "dead") -> Marker:
    now = datetime.now(UTC)
    prefixes = [f"shop/main/{table}/{sync}" for table in ("users", "events")]
    return Marker(
        home=home, started_at=now, deadline=now + deadline, after=after, prefixes=prefixes
    )


# What is left


def test_a_sync_leaves_its_objects_and_its_commit_only(shop: Shop) -> None:
    done = shop.sync(WHOLE)
    named = [item.key for name in ("users", "events") for item in done.stream(name).objects]
    assert shop.listed() == sorted(named)
    assert [path.name for path in (shop.folder / "syncs").iterdir() if path.is_dir()] == []


def test_a_failed_sync_leaves_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HELD", 0)
    # Each of the two chunks is written at once.
    body = 'record("users", id=1); time.sleep(0.2); record("users", id=2); sys.exit(1)'
    created: list[str] = []
    plain = Lake.create
    monkeypatch.setattr(
        Lake, "create", lambda self, key, content: (created.append(key), plain(self, key, content))
    )
    shop.failure(body)
    assert [key.split("/")[2] for key in created] == ["_syncs", "users", "users"]
    assert shop.listed() == []


@pytest.mark.usefixtures("on_disk")
def test_the_marker_is_there_while_a_sync_runs(shop: Shop, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    found = f"""
    import glob
    (path,) = glob.glob({str(tmp_path)!r} + "/lake/shop/main/_syncs/*.json")
    open({str(seen)!r}, "w").write(open(path).read())
    """
    shop.sync(found + "\n    " + WHOLE.replace("\n", "\n    "), timeout=50)
    written = json.loads(seen.read_text())
    assert written["home"] == home_id(shop.folder)
    length = datetime.fromisoformat(written["deadline"]) - datetime.fromisoformat(
        written["started_at"]
    )
    assert length == timedelta(seconds=50)
    assert shop.listed("main/_syncs") == []


@pytest.mark.parametrize(
    ("home", "deadline", "cleared"),
    [
        ("ours", timedelta(hours=1), True),
        ("another", timedelta(minutes=-59), False),
        ("another", timedelta(minutes=-61), True),
    ],
)
def test_what_a_dead_sync_left_is_removed(
    shop: Shop, home: str, deadline: timedelta, cleared: bool
) -> None:
    home = home_id(shop.folder) if home == "ours" else home
    left = ["shop/main/users/dead/00000.parquet", "shop/main/events/dead/00003.parquet"]
    others = ["shop/main/users/alive/00000.parquet", "shop/main2/_syncs/dead.json"]
    for key in [*left, *others]:
        shop.lake.create(key, b"x")
    Markers(shop.lake, "shop", "main").write("dead", marker(home, deadline))
    shop.sync(WHOLE)
    there = {item.key for item in shop.lake.list("shop")}
    assert set(others) <= there
    assert {*left, "shop/main/_syncs/dead.json"} & there == (
        set() if cleared else {*left, "shop/main/_syncs/dead.json"}
    )


def test_what_a_commit_names_is_never_removed(shop: Shop) -> None:
    done = shop.sync(WHOLE)
    sync = done.commit.sync
    Markers(shop.lake, "shop", "main").write(
        sync, marker(home_id(shop.folder), timedelta(0), sync=sync)
    )
    stray = f"shop/main/users/{sync}/00007.parquet"
    shop.lake.create(stray, b"x")
    shop.sync(WHOLE)
    assert stray not in shop.listed()
    assert len(shop.rows(done, "users")) == 2
    assert shop.listed("main/_syncs") == []


def test_a_marker_that_cannot_be_read_stops_nobody(shop: Shop) -> None:
    shop.lake.create("shop/main/_syncs/a.json", b'{"home": 5}')
    shop.lake.create("shop/main/_syncs/b.json", b"{")
    Markers(shop.lake, "shop", "main").write("c", marker(home_id(shop.folder), timedelta(hours=1)))
    said: list[str] = []
    assert shop.sync(WHOLE, say=said.append).rows == 3
    assert said[0] == "shop/main/_syncs/a.json is not the marker of a sync: remove it"
    assert "_syncs/b.json is not valid JSON" in said[1]
    assert shop.listed("main/_syncs") == ["shop/main/_syncs/a.json", "shop/main/_syncs/b.json"]


def test_a_lake_that_removes_nothing_stops_nobody(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    Markers(shop.lake, "shop", "main").write(
        "dead", marker(home_id(shop.folder), timedelta(hours=1))
    )

    def refuse(self: Lake, keys: object) -> None:
        raise LakeError("access denied")

    monkeypatch.setattr(Lake, "delete", refuse)
    said: list[str] = []
    assert shop.sync(WHOLE, say=said.append).rows == 3
    assert said == ["what a stopped sync left in the lake could not be removed yet: access denied"]


def test_objects_stay_if_it_is_not_known_whether_they_were_committed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CommitLog.append

    def lose_the_answer(self: CommitLog, commit: Any) -> None:
        plain(self, commit)
        raise TransientLakeError("no answer")

    monkeypatch.setattr(CommitLog, "append", lose_the_answer)
    with pytest.raises(TransientLakeError):
        shop.sync(WHOLE)
    monkeypatch.setattr(CommitLog, "append", plain)
    (commit,) = shop.log.since(0)
    assert len(shop.rows(Synced([commit]), "users")) == 2
    shop.sync(WHOLE)
    assert len(shop.rows(Synced([commit]), "users")) == 2
    assert shop.listed("main/_syncs") == []


def test_a_sync_does_not_commit_after_its_deadline(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine._Sync.__init__

    def late(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        self.deadline = self.started

    monkeypatch.setattr(engine._Sync, "__init__", late)
    message = shop.failure(WHOLE)
    assert "had brought everything, but not within 30 s. Raise MESH_SYNC_TIMEOUT" in message
    assert shop.listed() == []


def test_a_home_keeps_its_name(tmp_path: Path) -> None:
    first = home_id(tmp_path / "a")
    assert home_id(tmp_path / "a") == first
    assert home_id(tmp_path / "b") != first
    assert [path.name for path in (tmp_path / "a" / "syncs").iterdir()] == ["id"]


# Two at once


class Other(threading.Thread):
    """A sync of the same connection that goes on until it is let go."""

    def __init__(self, shop: Shop, end: str = WHOLE) -> None:
        super().__init__(daemon=True)
        self.shop, self.done, self.failed = shop, None, None
        self.began, self.go = shop.folder / "began", shop.folder / "go"
        self.body = f"""
open({str(self.began)!r}, "w").write("x")
while not os.path.exists({str(self.go)!r}):
    time.sleep(0.01)
{end}"""
        self.start()
        wait_for(self.began)

    def run(self) -> None:
        try:
            self.done = self.shop.sync(self.body)
        except SourceError as error:
            self.failed = error

    def let_go(self) -> None:
        self.go.write_text("x")
        self.join(20)


def waiting(shop: Shop, other: Other, **options: Any) -> Synced:
    """A second sync, which lets the other go when it has to wait for it."""
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        threading.Thread(target=other.let_go).start()

    done = shop.sync(WHOLE, say=say, **options)
    other.let_go()
    assert said == ["shop/main: another sync is running; waiting for it to end"]
    return done


def test_a_sync_joins_the_one_that_runs(shop: Shop) -> None:
    other = Other(shop)
    done = waiting(shop, other)
    assert done.joined
    assert other.done
    assert not other.done.joined
    assert (done.commit, done.rows) == (other.done.commit, 3)
    assert shop.log.numbers() == [1]


def test_a_sync_that_waited_for_one_that_failed_runs_itself(shop: Shop) -> None:
    other = Other(shop, "sys.exit(1)")
    done = waiting(shop, other)
    assert not done.joined
    assert other.failed
    assert (shop.log.numbers(), done.rows) == ([1], 3)


def test_nobody_waits_for_ever(shop: Shop) -> None:
    other = Other(shop)
    try:
        with pytest.raises(BusyError, match=r"another sync of this connection still runs after 0"):
            shop.sync(WHOLE, timeout=0.1)
    finally:
        other.let_go()
    assert other.done


def test_of_two_from_two_homes_one_commits_and_the_other_leaves_nothing(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Other(shop)
    elsewhere = Shop(tmp_path / "elsewhere", shop.lake, monkeypatch)
    elsewhere.folder.mkdir()
    done = elsewhere.sync(WHOLE)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    other.let_go()
    assert other.done is None
    assert shop.log.numbers() == [done.commit.number]
    named = [item.key for name in ("users", "events") for item in done.stream(name).objects]
    assert shop.listed() == sorted(named)


def test_connections_do_not_wait_for_each_other(shop: Shop) -> None:
    other = Other(shop)
    secrets = list((shop.folder / "syncs").rglob("config.json"))
    shop.connection = CONNECTION.model_copy(update={"name": "second"})
    assert shop.sync(WHOLE).rows == 3
    # Nor take what the other still needs.
    assert [path.exists() for path in secrets] == [True]
    other.let_go()
    assert other.done


def test_a_turn_is_over_when_its_block_is(tmp_path: Path) -> None:
    for _ in range(2):
        with leftovers.turn(tmp_path, "shop", "main", 0, print) as (folder, waited):
            assert folder.stat().st_mode & 0o777 == 0o700
            assert not waited
        assert not folder.exists()
