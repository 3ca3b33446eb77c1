"""The commit log: which objects are data, and in which order they came."""

from __future__ import annotations

import pytest

from dagster_project.failures import BusyError
from dagster_project.lake.commits import Commit, CommitLog, LakeObject, StreamCommit
from dagster_project.lake.store import Lake


def commit(number: int, sync: str = "s") -> Commit:
    stream = StreamCommit(
        objects=[LakeObject(key=f"shop/main/users/{sync}/0.parquet", rows=2, size=10)],
        rows=2,
        sync_mode="full_refresh",
        destination_sync_mode="overwrite",
        generation=number,
        version="v",
    )
    return Commit(
        number=number,
        sync=sync,
        connector="source-x 1",
        started_at="2026-01-01T00:00:00+00:00",
        ended_at="2026-01-01T00:01:00+00:00",
        streams={"users": stream, "orders": stream},
        state={"users": {"cursor": number}},
    )


@pytest.fixture
def log(lake: Lake) -> CommitLog:
    return CommitLog(lake, "shop", "main")


def test_commits_are_read_in_the_order_of_their_numbers(log: CommitLog) -> None:
    for number in (2, 1, 10, 9):
        log.append(commit(number))
    assert log.numbers() == [1, 2, 9, 10]
    assert [found.number for found in log.since(2)] == [9, 10]
    assert log.since(10) == []
    last = log.last()
    assert last == commit(10)
    assert last.rows == 4


def test_of_two_syncs_that_end_at_once_one_is_refused(log: CommitLog, lake: Lake) -> None:
    log.append(commit(1, "first"))
    with pytest.raises(BusyError, match="shop/main: another sync of this connection") as caught:
        CommitLog(lake, "shop", "main").append(commit(1, "second"))
    assert "run it again" in str(caught.value)
    assert log.read(1).sync == "first"


def test_connections_do_not_see_each_others_commits(log: CommitLog, lake: Lake) -> None:
    log.append(commit(1))
    assert CommitLog(lake, "shop", "main2").last() is None
    assert CommitLog(lake, "shop", "mai").last() is None


def test_what_lies_among_the_commits_and_is_none_is_not_read(log: CommitLog, lake: Lake) -> None:
    log.append(commit(1))
    lake.create(f"{log.prefix}/README.txt", b"x")
    lake.create(f"{log.prefix}/000000000002.json.tmp", b"x")
    assert log.numbers() == [1]


def test_a_commit_of_before_there_were_checkpoints_is_read(log: CommitLog, lake: Lake) -> None:
    log.append(commit(1))
    old = lake.read_json(f"{log.prefix}/000000000001.json")
    for key in ("complete", "versions"):
        del old[key]
    for stream in old["streams"].values():
        for key in ("drift", "sent_bytes"):
            del stream[key]
    lake.create_json(f"{log.prefix}/000000000002.json", old)
    assert log.read(2) == commit(1)


def test_versions_are_those_of_all_streams(log: CommitLog) -> None:
    checkpoint = commit(1).model_copy(
        update={
            "streams": {"users": commit(1).streams["users"].model_copy(update={"version": "w"})},
            "versions": {"orders": "v", "users": "before"},
            "complete": False,
        }
    )
    log.append(checkpoint)
    assert log.read(1) == checkpoint
    assert checkpoint.all_versions() == {"orders": "v", "users": "w"}
