"""Rows that expectations refuse: moved to the rejects once, and told in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dagster_project.failures import DeclarationError, WarehouseError
from dagster_project.identity import Table
from dagster_project.lake.store import Lake
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.quarantine import quarantine
from dagster_project.warehouse.rejects import rejects_share
from tests.ingestion.users import PROPERTIES, Users, user
from tests.ingestion.zone import Zone

USERS = Table("shop_raw", "users")
TRIPS = Table("city_raw", "trips")
NO_X = {"name_is_no_x": ("\"name\" = 'x' -- they stand for nobody", "A name is not x.")}
YOUNG = {"at_is_past_5": ('"at" <= 5', "At is past 5.")}


def refuse(it: Users, conditions: dict[str, tuple[str, str]] = NO_X) -> dict[str, int]:
    return quarantine(it.url, USERS, conditions, None, "run-1")


def test_refused_rows_are_moved_once_with_all_reasons(lake: Lake, warehouse_url: str) -> None:
    it = Users(lake, warehouse_url)
    it.properties = PROPERTIES | {"more": {"type": "object"}, "sum": {"type": "number"}}
    it.sync(user(1, 9, "a"), user(2, 9), user(3, 4, sum=0.1, more={"a": [1]}), user(4, 5, "b"))
    it.load()
    version, _ = it.ledger()
    assert refuse(it, NO_X | YOUNG) == {"name_is_no_x": 2, "at_is_past_5": 2}
    assert it.rows("id") == [(1,)]
    first, second = "name_is_no_x: A name is not x.", "at_is_past_5: At is past 5."
    rejects = it.rejects("run_id, object, reason, record")
    assert [reject[:3] for reject in rejects] == [
        ("run-1", "generation 1", first),
        ("run-1", "generation 1", f"{first}; {second}"),
        ("run-1", "generation 1", second),
    ]
    record = rejects[1][3]
    assert (record["id"], record["sum"], record["more"]) == (3, 0.1, {"a": [1]})
    assert len(record["_airbyte_raw_id"]) == 32
    after = it.ledger()
    assert after == (after[0], 1)
    assert after[0] != version
    # Again there is nothing to do, and nothing changes.
    assert refuse(it, NO_X | YOUNG) == {"name_is_no_x": 0, "at_is_past_5": 0}
    assert (it.ledger(), len(it.rejects("1"))) == (after, 3)
    share = rejects_share(it.url, USERS)
    assert (share.rows, share.rejected, share.percent) == (1, 3, 75.0)
    assert share.reasons == {first: 1, f"{first}; {second}": 1, second: 1}


def test_a_condition_that_fails_moves_nothing(lake: Lake, warehouse_url: str) -> None:
    it = Users(lake, warehouse_url)
    it.sync(user(1, 9), user(2, 0, "a"))
    it.load()
    before = it.ledger()
    for condition in (
        '1 / "at" > 0',
        '"no such column" IS NULL',
        "true /* without end",
        "true; DROP TABLE shop_raw.users",
    ):
        with pytest.raises(WarehouseError, match=r"quarantining rows of shop_raw\.users"):
            refuse(it, NO_X | {"fails": (condition, "Fails.")})
    assert len(it.rows()) == 2
    assert it.ledger() == before
    assert it.query("SELECT to_regclass('shop_raw.users__rejects')") == [(None,)]


def test_only_rows_of_raw_tables_are_quarantined(warehouse_url: str) -> None:
    with pytest.raises(DeclarationError, match="only rows of a raw table"):
        quarantine(warehouse_url, Table("shop", "users"), NO_X, None, "r")
    assert quarantine(warehouse_url, USERS, NO_X, None, "r") == {"name_is_no_x": 0}


def test_a_row_that_comes_again_is_neither_lost_nor_there_twice(
    lake: Lake, warehouse_url: str
) -> None:
    it = Users(lake, warehouse_url)
    it.sync(user(1, 1, "a"), user(2, 1))
    it.load()
    refuse(it)
    for _ in range(2):
        it.sync(user(2, 1))
        assert it.load().new == 1
        assert refuse(it) == {"name_is_no_x": 1}
        assert it.rejects("record -> 'id', record -> 'at'") == [(2, 1)]
    # Another record of the same key, that is as bad, is another reject.
    it.sync(user(2, 2))
    it.load()
    refuse(it)
    assert it.rejects("record -> 'at'") == [(1,), (2,)]
    # And one that is good is loaded.
    it.sync(user(2, 3, "b"))
    it.load()
    assert it.rows() == [(1, 1, "a"), (2, 3, "b")]


def test_of_rows_without_a_key_each_is_kept(lake: Lake, warehouse_url: str) -> None:
    it = Users(lake, warehouse_url, "append")
    for _ in range(2):
        it.sync(user(1, 1), user(1, 1))
        it.load()
        assert refuse(it) == {"name_is_no_x": 2}
    assert it.rejects("record -> 'id'") == [(1,)] * 4
    assert it.ledger()[1] == 0


def test_what_the_source_gives_again_leaves_an_overwritten_table_alone(
    lake: Lake, warehouse_url: str
) -> None:
    it = Users(lake, warehouse_url, "overwrite")
    it.sync(user(1, 1, "a"), user(2, 1))
    it.load()
    refuse(it)
    before = (it.ledger(), it.rows("id, ctid::text, xmin::text"), it.rejects("record -> 'id'"))
    # As its version is that of its content.
    it.sync_same()
    assert it.load().duplicates == 2
    assert (
        it.ledger(),
        it.rows("id, ctid::text, xmin::text"),
        it.rejects("record -> 'id'"),
    ) == before
    it.sync(user(1, 1, "a"), user(2, 1), user(3, 1))
    it.load()
    assert (len(it.rows()), it.rejects("1")) == (3, [])


@pytest.fixture
def zone(lake: Lake, tmp_path: Path, warehouse_url: str) -> Zone:
    zone = Zone(lake, tmp_path / "lake", warehouse_url)
    for number in (1, 2):
        zone.drop(f"2026-01-0{number}", f"{number},1,a\n{number + 10},-1,b\nbad,1,c\n")
    zone.load("2026-01-01", "2026-01-02")
    return zone


def late(zone: Zone, *days: str) -> dict[str, int]:
    partitions = Partitions("trip_date", days) if days else None
    conditions = {"no_delay_below_0": ('"delay" < 0', "A delay is not below 0.")}
    return quarantine(zone.url, TRIPS, conditions, partitions, "run-1")


def ledger(zone: Zone) -> dict[str, Any]:
    table = "SELECT '' AS day, version, rows FROM mesh.tables"
    with_days = f"{table} UNION SELECT partition, version, rows FROM mesh.partitions"
    return {day: tuple(state) for day, *state in zone.ask(with_days)}


def test_only_the_days_asked_for_are_quarantined(zone: Zone) -> None:
    before = ledger(zone)
    assert late(zone, "2026-01-02") == {"no_delay_below_0": 1}
    assert zone.rows("id") == [(1,), (11,), (2,)]
    assert zone.waiting() == []
    after = ledger(zone)
    assert {day: rows for day, (_, rows) in after.items()} == {
        "": 3,
        "2026-01-01": 2,
        "2026-01-02": 1,
    }
    assert after["2026-01-01"] == before["2026-01-01"]
    assert {day for day in after if after[day][0] != before[day][0]} == {"", "2026-01-02"}
    # Nothing has landed since: a load leaves the day, and what is of it in the rejects, alone.
    assert not zone.load("2026-01-01", "2026-01-02").did_change
    (quarantined,) = zone.rows(
        "object, record, partition", "trips__rejects WHERE reason LIKE 'no_delay%'"
    )
    assert quarantined[0] == "landing/city/trips/trips_2026-01-02.csv"
    assert (quarantined[1]["id"], quarantined[1]["trip_date"]) == (12, "2026-01-02")
    assert quarantined[2] == "2026-01-02"
    with pytest.raises(WarehouseError, match="say of which to quarantine"):
        late(zone)


@pytest.mark.parametrize("name", ["trips_2026-01-02.csv", "trips_2026-01-02-again.csv"])
def test_a_day_that_comes_again_takes_its_rejects_along(zone: Zone, name: str) -> None:
    late(zone, "2026-01-01", "2026-01-02")
    quarantined = ledger(zone)["2026-01-02"]
    assert len(zone.rejects()) == 4
    zone.put(b"id,delay,code\n5,1,a\n", name)
    zone.load("2026-01-02")
    assert zone.rows("id") == [(1,), (5,)]
    assert len(zone.rejects()) == 2
    # The same content as at first, and the same rows refused: the day is what it was.
    zone.put(b"id,delay,code\n2,1,a\n12,-1,b\nbad,1,c\n", name)
    zone.load("2026-01-02")
    late(zone, "2026-01-02")
    assert ledger(zone)["2026-01-02"] == quarantined
    assert len(zone.rejects()) == 4
