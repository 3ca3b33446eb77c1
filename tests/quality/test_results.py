"""Kept results: which stay, in which order, and where people find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from dagster_project.failures import LakeError
from dagster_project.identity import Table
from dagster_project.lake.store import Lake
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.results import KEPT, PREFIX, Kept, docs_link, keep, kept, read
from dagster_project.settings import Settings

ORDERS = Table("shop_raw", "orders")
USERS = Table("shop_raw", "orders_of_users")
DAYS = Partitions("day", ("2013-01-01", "2013-01-02"))


def found(number: int = 0) -> dict[str, Any]:
    statistics = {"successful_expectations": number, "unsuccessful_expectations": 0}
    return {"success": True, "results": [], "statistics": statistics, "suite_name": "x"}


def runs(lake: Lake, table: Table = ORDERS) -> list[str]:
    return [item.run_id for item in kept(lake).get(table, [])]


@pytest.mark.parametrize("lake", ["disk", "s3"], indirect=True)
def test_results_are_listed_by_table_the_newest_first(lake: Lake) -> None:
    assert kept(lake) == {}
    for number in range(3):
        keep(lake, ORDERS, f"run-{number}", DAYS, found(number))
    key = keep(lake, USERS, "run-1", None, found(7))
    assert runs(lake) == ["run-2", "run-1", "run-0"]
    assert runs(lake, USERS) == ["run-1"]
    (newest, *_), (user,) = kept(lake)[ORDERS], kept(lake)[USERS]
    assert read(lake, newest).result == found(2)
    assert read(lake, newest).partitions == "2013-01-01 to 2013-01-02"
    assert read(lake, user).partitions == ""
    assert user.key == key
    assert Kept.parse(key) == user


@pytest.mark.parametrize("lake", ["disk", "s3"], indirect=True)
def test_a_rerun_of_a_run_takes_the_place_of_what_it_found(lake: Lake) -> None:
    keep(lake, ORDERS, "run-1", None, found(1))
    keep(lake, ORDERS, "run-2", None, found(2))
    keep(lake, ORDERS, "run-1", None, found(3))
    assert runs(lake) == ["run-1", "run-2"]
    assert read(lake, kept(lake)[ORDERS][0]).result == found(3)
    assert len(list(lake.list(PREFIX))) == 2


@pytest.mark.parametrize("lake", ["disk", "s3"], indirect=True)
def test_older_results_go_as_newer_come(lake: Lake) -> None:
    keep(lake, USERS, "run-0", None, found())
    for number in range(KEPT + 3):
        keep(lake, ORDERS, f"run-{number}", None, found())
    assert runs(lake) == [f"run-{number}" for number in reversed(range(3, KEPT + 3))]
    assert runs(lake, USERS) == ["run-0"]


def test_what_a_killed_writer_left_is_shown_once_and_removed_by_the_next(lake: Lake) -> None:
    key = keep(lake, ORDERS, "run-1", None, found(1))
    left = lake.read(key)
    keep(lake, ORDERS, "run-1", None, found(2))
    lake.create(key, left)
    assert read(lake, *kept(lake)[ORDERS]).result == found(2)
    keep(lake, ORDERS, "run-2", None, found(3))
    keep(lake, ORDERS, "run-1", None, found(4))
    assert len(list(lake.list(PREFIX))) == 2


def test_what_is_none_of_ours_is_left_alone(lake: Lake) -> None:
    others = [f"{PREFIX}/{ORDERS}/notes.txt", f"{PREFIX}/a/b/c.json", "landing/shop/orders/x.csv"]
    for key in others:
        lake.create(key, b"x")
    keep(lake, ORDERS, "run-1", None, found())
    assert runs(lake) == ["run-1"]
    assert {item.key for item in lake.list("")} >= set(others)


def test_a_result_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / PREFIX).write_text("a file where the folder would be")
    with pytest.raises(LakeError, match="could not be written"):
        keep(Lake((tmp_path / "lake").as_uri()), ORDERS, "run-1", None, found())


def test_an_object_that_is_no_result_is_named(lake: Lake) -> None:
    key = keep(lake, ORDERS, "run-1", None, found())
    lake.replace(key, orjson.dumps({"partitions": "", "result": {"success": True}}))
    with pytest.raises(LakeError, match=f"{key} is not the result"):
        read(lake, Kept.parse(key))
    lake.replace(key, b"{")
    with pytest.raises(LakeError, match=f"{key} is not valid JSON"):
        read(lake, Kept.parse(key))


def test_a_check_links_to_the_page_where_there_is_one(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keep(lake, ORDERS, "run-1", None, found())
    page = "results/shop_raw.orders/run-1.html"
    for name in ("MESH_ENV", "MESH_DOCS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESH_LAKE_URL", "s3://bucket/lake")
    assert docs_link(Settings(), key) == f"http://127.0.0.1:3001/{page}"
    monkeypatch.setenv("MESH_ENV", "production")
    assert docs_link(Settings(), key) == f"s3://bucket/lake/{key}"
    monkeypatch.setenv("MESH_DOCS_URL", "https://docs.example.org/mesh/")
    assert docs_link(Settings(), key) == f"https://docs.example.org/mesh/{page}"
