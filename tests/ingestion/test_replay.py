"""Rejected rows, loaded again: what was mended comes in, and nothing older than what is there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dagster_project.failures import BusyError, MeshError, WarehouseError
from dagster_project.identity import Table
from dagster_project.ingestion.exact import Number
from dagster_project.ingestion.landing import target_of
from dagster_project.ingestion.replay import RawTable, find_raw_table
from dagster_project.lake.store import Lake
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.quarantine import quarantine
from dagster_project.warehouse.arrow import ArrowSession
from dagster_project.warehouse.replay import Replayed, replay
from tests.ingestion.users import PROPERTIES, Users, user
from tests.ingestion.zone import Zone, columns_of, feed_of

USERS = Table("shop_raw", "users")
TEXT = PROPERTIES | {"at": {"type": "string"}}
NO_X = {"no_x": ("\"name\" = 'x'", "A name is not x.")}


def as_they_came(it: Users) -> list[Any]:
    return it.rejects("rejected_at, run_id, object, reason, record, origin")


def test_rows_that_a_mended_declaration_takes_are_loaded_the_others_stay(
    lake: Lake, warehouse_url: str
) -> None:
    it = Users(lake, warehouse_url)
    it.properties = PROPERTIES | {"sum": {"type": "number"}, "more": {"type": "object"}}
    digits = 4 * "1234567890"
    it.sync(
        user(1, 1, "a"),
        user(2, "soon", "b", sum=Number(digits), more={"a": ["é", None]}),  # type: ignore[arg-type]
        {"id": "no number", "at": 1, "name": "c"},
        user(4, "n\0w", "d"),  # type: ignore[arg-type]
        {"at": 1, "name": "e"},
    )
    assert (it.load().rejected, len(it.rows("id"))) == (4, 1)
    before = as_they_came(it)
    # Nothing was mended: nothing changes, not even when and by whom they were rejected.
    assert it.replay() == Replayed(0, 0, 0, rejected=3, altered=1)
    assert as_they_came(it) == before
    ledger = it.ledger()
    it.properties |= {"at": {"type": "string"}}
    assert it.replay() == Replayed(1, 0, 0, rejected=2, altered=1)
    assert it.rows("id, at, name, sum::text, more") == [
        (1, "1", "a", None, None),
        (2, "soon", "b", digits, {"a": ["é", None]}),
    ]
    found = it.query("SELECT _airbyte_raw_id, _airbyte_extracted_at FROM shop_raw.users")
    origins = [origin["_airbyte_raw_id"] for *_, origin in before if origin]
    assert found[1][0] in origins
    assert found[0][1] == found[1][1]
    assert it.ledger()[0] != ledger[0]
    assert it.ledger()[1] == 2
    assert len(as_they_came(it)) == 3
    # What the next sync brings is loaded beside it.
    it.sync(user(2, "sooner", "f"))  # type: ignore[arg-type]
    assert it.load().changed == 1


def test_an_old_rejected_row_comes_in_place_of_no_newer_one(lake: Lake, warehouse_url: str) -> None:
    it = Users(lake, warehouse_url)
    it.properties = PROPERTIES | {"name": {"type": "integer"}}
    it.sync(user(1, 5, "old"), user(2, 5, "old"), user(3, 5, "old"), user(4, 5, "old"))
    it.load()
    it.properties = PROPERTIES
    # By the cursor: newer, older; and as old, but extracted later.
    it.sync(user(1, 6, "newer"), user(2, 4, "older"), user(3, 5, "later"))
    assert it.load().new == 3
    assert it.replay() == Replayed(new=1, changed=1, duplicates=2, rejected=0, altered=0)
    assert it.rows() == [(1, 6, "newer"), (2, 5, "old"), (3, 5, "later"), (4, 5, "old")]
    assert as_they_came(it) == []
    assert it.replay() == Replayed(0, 0, 0, 0, 0)


@pytest.mark.parametrize("mode", ["append", "append_dedup", "overwrite"])
def test_quarantined_rows_come_back_as_they_were(lake: Lake, warehouse_url: str, mode: str) -> None:
    it = Users(lake, warehouse_url, mode)
    it.properties = PROPERTIES | {
        "sum": {"type": "number"},
        "more": {"type": "object"},
        "day": {"type": "string", "format": "date"},
        "seen": {"type": "string", "format": "date-time"},
    }
    seen = {"day": "2026-02-28", "seen": "2026-02-28T10:00:00.123456Z"}
    it.sync(user(1, 1, sum=1e300, more={"a": [1.50]}, **seen), user(2, 1), user(3, 1, "a"))
    it.load()
    whole = it.query("SELECT to_jsonb(t) FROM shop_raw.users t ORDER BY id")
    quarantine(it.url, USERS, NO_X, None, "r")
    assert len(it.rows()) == 1
    assert it.replay("no such reason") == Replayed(0, 0, 0, 0, 0)
    assert it.replay("A NAME IS NOT x").new == 2
    assert it.query("SELECT to_jsonb(t) FROM shop_raw.users t ORDER BY id") == whole
    assert (it.ledger()[1], as_they_came(it)) == (3, [])
    # Nothing came since; and what is still refused is put aside again.
    assert not it.load().did_change
    assert quarantine(it.url, USERS, NO_X, None, "r") == {"no_x": 2}


def test_a_table_that_is_loaded_otherwise_now_is_loaded_first(
    lake: Lake, warehouse_url: str
) -> None:
    it = Users(lake, warehouse_url, "overwrite")
    it.sync(user(1, 1), {"id": 2, "at": "soon"})
    it.load()
    it.mode = "append"
    with pytest.raises(WarehouseError, match="loaded as overwrite and is declared as append"):
        it.replay()
    it.query("DROP TABLE shop_raw.users__rejects")
    with pytest.raises(WarehouseError, match="none of the table's rows was rejected"):
        it.replay()
    it.query("DROP TABLE shop_raw.users")
    with pytest.raises(WarehouseError, match=r"shop_raw\.users is not there yet"):
        it.replay()
    assert it.query("SELECT to_regclass('shop_raw.users')") == [(None,)]


def test_rejects_of_an_earlier_release_are_replayed(lake: Lake, warehouse_url: str) -> None:
    it = Users(lake, warehouse_url)
    it.sync(user(1, 1), {"id": 2, "at": "soon"})
    it.load()
    it.query("ALTER TABLE shop_raw.users__rejects DROP COLUMN origin, DROP COLUMN partition")
    it.properties = TEXT
    assert it.replay().new == 1
    assert it.rows("id, at, _airbyte_extracted_at > '2000-01-01'") == [
        (1, "1", False),
        (2, "soon", False),
    ]


def test_a_table_that_is_being_loaded_is_not_replayed(lake: Lake, warehouse_url: str) -> None:
    it = Users(lake, warehouse_url)
    it.sync(user(1, 1), {"id": 2, "at": "soon"})
    it.load()
    with psycopg.connect(it.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(1835365224, hashtext('shop_raw.users'))")
        with pytest.raises(BusyError, match=r"shop_raw\.users is being loaded"):
            it.replay()


# Feeds


@pytest.fixture
def zone(lake: Lake, tmp_path: Path, warehouse_url: str) -> Zone:
    return Zone(lake, tmp_path / "lake", warehouse_url)


def again(zone: Zone, reason: str = "") -> Replayed:
    raw = RawTable(target_of("city", zone.feed), zone.feed)
    return replay(zone.url, raw.target, raw.rows(), run_id="replay", reason=reason)


def test_rows_of_a_feed_come_to_their_days(zone: Zone) -> None:
    zone.feed = feed_of(primary_key=["id"])
    zone.drop("2026-01-01", "1,1,a\n2,late,b\n3,3,c\n4,1,too,many\n5,1,n\0ul\n")
    zone.drop("2026-01-02", "2,2,b\n3,late,c\n")
    zone.load("2026-01-01", "2026-01-02")
    quarantine(
        zone.url,
        Table("city_raw", "trips"),
        {"no_c": ("\"code\" = 'c'", "No c.")},
        Partitions("trip_date", ("2026-01-01", "2026-01-02")),
        "r",
    )
    # Of a row that is there already only that one stays.
    zone.ask(
        "INSERT INTO city_raw.trips__rejects SELECT now(), 'r', object, 'again', "
        "jsonb_set(record, '{code}', '\"other\"'), partition "
        "FROM city_raw.trips__rejects WHERE reason = 'no_c: No c.'"
    )
    assert zone.rows() == [("2026-01-01", 1, 1.0, "a"), ("2026-01-02", 2, 2.0, "b")]
    zone.feed = feed_of(
        primary_key=["id"], columns=columns_of(id="bigint", delay="text", code="text")
    )
    assert again(zone) == Replayed(new=3, changed=0, duplicates=1, rejected=0, altered=2)
    assert zone.rows("trip_date::text, id, delay") == [
        ("2026-01-01", 1, "1"),
        ("2026-01-01", 2, "late"),
        ("2026-01-01", 3, "3"),
        ("2026-01-02", 2, "2"),
        ("2026-01-02", 3, "late"),
    ]
    assert zone.ask("SELECT DISTINCT _object, trip_date::text FROM city_raw.trips ORDER BY 1") == [
        (f"landing/city/trips/trips_2026-01-0{day}.csv", f"2026-01-0{day}") for day in (1, 2)
    ]
    assert zone.ask("SELECT partition, rows FROM mesh.partitions ORDER BY 1") == [
        ("2026-01-01", 3),
        ("2026-01-02", 2),
    ]
    assert zone.ask("SELECT rows FROM mesh.tables") == [(5,)]
    assert zone.waiting() == []
    assert len(zone.rejects()) == 2


def test_a_time_of_day_is_no_date_in_a_replay_either(zone: Zone) -> None:
    zone.feed = feed_of(columns=columns_of(id="bigint", delay="date", code="text"))
    zone.drop("2026-01-01", "x,2026-01-02 10:00,a\n1,2026-01-02,b\n")
    zone.load()
    zone.feed = feed_of(columns=columns_of(id="text", delay="date", code="text"))
    assert again(zone) == Replayed(0, 0, 0, rejected=1, altered=0)
    ((reason, record),) = zone.rejects()
    assert reason == "delay: a time of day, where a date is declared"
    assert record == {"id": "x", "delay": "2026-01-02 10:00", "code": "a"}


# Killed


def _replay_until(url: str, lake: str, moment: int, said: Any) -> None:
    """A replay that is killed at its so-many-th statement, or batch."""
    count = 0

    def come() -> None:
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("run", "change", "commit", "ingest"):
        call = getattr(ArrowSession, name)

        def watched(*arguments: Any, call: Any = call) -> Any:
            come()
            result = call(*arguments)
            come()
            return result

        setattr(ArrowSession, name, watched)
    it = Users(Lake(lake), url)
    it.properties = TEXT
    said.put(it.replay().new)


def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(
    lake: Lake, warehouse_url: str, record_property: Any
) -> None:
    it = Users(lake, warehouse_url)
    it.properties = TEXT
    spawn = multiprocessing.get_context("fork")
    moment, kills, new = 0, 0, None
    while new is None:
        moment += 3
        it.query("DROP SCHEMA IF EXISTS shop_raw, mesh CASCADE")
        if moment == 3:
            it.properties = PROPERTIES
            it.sync(*(user(key, key if key % 2 else "soon") for key in range(8)))  # type: ignore[arg-type]
        it.properties = PROPERTIES
        it.load()
        assert len(it.rejects("1")) == 4
        said: Any = spawn.Queue()
        child = spawn.Process(target=_replay_until, args=(it.url, lake.url, moment, said))
        child.start()
        child.join(60)
        it.properties = TEXT
        if child.exitcode == 0:
            new = said.get(timeout=10)
        else:
            assert child.exitcode == -signal.SIGKILL
            kills += 1
            _settled(it)
            again = it.replay() if it.rejects("1") else None
            assert again in (None, Replayed(4, 0, 0, 0, 0))
        assert it.rows("id") == [(key,) for key in range(8)]
        assert it.rejects("1") == []
        assert it.ledger()[1] == 8
        moment += 2 * (moment > 12)
    assert new == 4
    assert kills >= 10
    record_property("told", f"killed at {kills} moments")


def _settled(it: Users) -> None:
    """Wait until the server has noticed that the one that was killed is gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        held = it.query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted")
        if not held:
            return
        time.sleep(0.02)
    raise AssertionError("its lock is still held")


def test_an_unknown_table_is_named_with_those_like_it() -> None:
    for name in ("commerce_raw.user", "users", "comerce_raw.users"):
        with pytest.raises(MeshError, match=rf"{name} is no raw table.*commerce_raw\.users"):
            find_raw_table(name)
    assert find_raw_table("flights_raw.flights").target.partition
