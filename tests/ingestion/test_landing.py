"""Files in the landing zone: which of them count, what waits, and what is loaded."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from dagster_project.failures import LakeError, RefusedFilesError, SourceError
from dagster_project.ingestion import landing
from dagster_project.lake.store import Lake
from tests.ingestion.zone import DAY, HEADER, Zone, feed_of

ON_S3_TOO = True


@pytest.fixture
def zone(lake: Lake, tmp_path: Path, warehouse_url: str) -> Zone:
    return Zone(lake, tmp_path / "lake", warehouse_url)


def test_days_wait_until_they_are_loaded(zone: Zone) -> None:
    assert zone.waiting() == []
    zone.drop("2026-01-01", "1,0.5,a\n")
    zone.drop("2026-01-02", "2,1.5,b\n")
    assert zone.waiting() == ["2026-01-01", "2026-01-02"]
    done = zone.load("2026-01-01")
    assert (done.new, [p.partition for p in done.partitions]) == (1, ["2026-01-01"])
    assert zone.waiting() == ["2026-01-02"]
    assert zone.rows() == [("2026-01-01", 1, 0.5, "a")]


def test_a_changed_file_replaces_its_day(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,0.5,a\n2,0.5,a\n")
    zone.drop("2026-01-02", "3,0.5,a\n")
    zone.load("2026-01-01", "2026-01-02")
    zone.drop("2026-01-01", "7,7,g\n")
    assert zone.waiting() == ["2026-01-01"]
    done = zone.load("2026-01-01", "2026-01-02")
    assert (done.received, done.new, done.removed, done.rows) == (1, 1, 2, 2)
    assert zone.rows("id") == [(7,), (3,)]
    assert zone.waiting() == []


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("name", [f"trips_{DAY}.csv", f"trips_{DAY}-again.csv"])
def test_the_same_content_again_changes_nothing_and_stops_waiting(zone: Zone, name: str) -> None:
    zone.drop(DAY, "1,0.5,a\n")
    first = zone.load()
    before = zone.rows("ctid::text, xmin::text")
    (zone.folder / f"trips_{DAY}.csv").unlink()
    zone.drop(DAY, "1,0.5,a\n", name=name)
    assert zone.waiting() == [DAY]
    again = zone.load()
    assert not again.did_change
    assert again.version == first.version
    assert zone.rows("ctid::text, xmin::text") == before
    assert zone.waiting() == []


def test_a_day_of_which_rows_were_removed_by_hand_waits_to_be_loaded_again(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,0.5,a\n2,0.5,a\n")
    zone.drop("2026-01-02", "3,0.5,a\n")
    zone.load("2026-01-01", "2026-01-02")
    with psycopg.connect(zone.url) as connection:
        connection.execute("DELETE FROM city_raw.trips WHERE id = 1")
    assert zone.waiting() == ["2026-01-01"]
    done = zone.load("2026-01-01", "2026-01-02")
    assert (done.new, done.removed) == (2, 1)
    assert zone.rows("id") == [(1,), (2,), (3,)]
    assert zone.waiting() == []


def test_a_day_asked_for_twice_is_loaded_once(zone: Zone) -> None:
    zone.drop(DAY, "1,0.5,a\n")
    assert zone.load(DAY, DAY).rows == 1
    assert zone.rows("id") == [(1,)]


@pytest.mark.usefixtures("on_disk")
def test_of_several_files_of_a_day_the_one_written_last_counts(zone: Zone) -> None:
    files = [f"trips_{DAY}-b.csv", f"trips_{DAY}.csv", f"trips_{DAY}-a.csv"]
    for number, (name, written) in enumerate(zip(files, (3_000, 2_000, 1_000), strict=True)):
        zone.put(f"{HEADER}{number},0,x\n".encode(), name, written)
    done = zone.load_feed()
    assert zone.rows("id") == [(0,)]
    prefix = "landing/city/trips"
    superseded = [f"{prefix}/{files[2]}", f"{prefix}/{files[1]}"]
    assert done.superseded == {DAY: superseded}
    assert zone.waiting() == []
    # Of those written at once, the last by name.
    zone.put(f"{HEADER}7,0,x\n".encode(), f"trips_{DAY}-a.csv", 3_000)
    assert zone.waiting() == []
    zone.put(f"{HEADER}8,0,x\n".encode(), f"trips_{DAY}-c.csv", 3_000)
    assert zone.waiting() == [DAY]
    zone.load()
    assert zone.rows("id") == [(8,)]


def test_files_that_are_no_days_of_the_feed_are_reported_and_never_loaded(zone: Zone) -> None:
    zone.drop(DAY, "1,0.5,a\n")
    for name in ("readme.md", "trips_2026-02-30.csv", "trips_2026-02-01.csv", f"trips_{DAY}.xlsx"):
        zone.drop("", "9,9,z\n", name=name)
    assert zone.waiting() == [DAY]
    ignored = {key.rsplit("/")[-1]: reason for key, reason in zone.load_feed().ignored}
    assert ignored == {
        "readme.md": "its name is not of the feed's pattern",
        f"trips_{DAY}.xlsx": "its name is not of the feed's pattern",
        "trips_2026-02-30.csv": "2026-02-30 in its name is no date",
        "trips_2026-02-01.csv": "its day is not of the feed's, 2026-01-01 to 2026-01-31",
    }
    assert zone.rows("id") == [(1,)]


def test_a_file_that_holds_what_the_file_of_another_day_holds_is_reported(zone: Zone) -> None:
    for day, rows in {"01": "1,1,a\n", "02": "1,1,a\n", "03": "2,2,b\n"}.items():
        zone.drop(f"2026-01-{day}", rows)
    done = zone.load_feed("2026-01-01", "2026-01-02", "2026-01-03")
    assert done.repeated == {"2026-01-02": "2026-01-01"}
    zone.drop("2026-01-04", "2,2,b\n")
    assert zone.load_feed("2026-01-04").repeated == {"2026-01-04": "2026-01-03"}


def test_a_day_without_a_file_is_named_and_nothing_is_loaded(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,1,a\n")
    with pytest.raises(
        SourceError, match=r"no file has landed for 2026-01-02, 2026-01-03"
    ) as caught:
        zone.load("2026-01-01", "2026-01-03", "2026-01-02")
    assert "landing/city/trips" in str(caught.value)
    assert zone.waiting() == ["2026-01-01"]


def test_a_refused_file_leaves_every_day_as_it_was(zone: Zone) -> None:
    zone.drop("2026-01-01", "1,1,a\n")
    zone.load("2026-01-01")
    zone.drop("2026-01-01", "5,5,e\n")
    zone.drop("2026-01-02", "6,6,f\n7,7")
    with pytest.raises(SourceError, match=r"landing/city/trips/trips_2026-01-02\.csv"):
        zone.load("2026-01-01", "2026-01-02")
    assert zone.rows("id") == [(1,)]
    assert zone.waiting() == ["2026-01-01", "2026-01-02"]


def test_of_a_day_that_is_held_the_file_may_be_gone(zone: Zone) -> None:
    for day in ("2026-01-01", "2026-01-03"):
        zone.drop(day, f"{day[-1]},1,a\n")
    zone.load("2026-01-01")
    zone.lake.delete([f"{zone.prefix}/trips_2026-01-01.csv"])
    assert zone.load("2026-01-01", "2026-01-03").new == 1
    assert zone.rows("id") == [(1,), (3,)]


def test_all_files_that_are_refused_are_named_at_once(zone: Zone) -> None:
    days = [f"2026-01-0{number}" for number in range(1, 6)]
    for day in days:
        zone.drop(day, f"{day[-1]},1,a\n")
    zone.drop(days[1], "1,1,a\n2,2")
    zone.drop(days[3], "1,1\n", header="id,delay\n")
    with pytest.raises(RefusedFilesError, match=rf"trips_{days[1]}\.csv.*\.csv") as caught:
        zone.load(*days)
    assert caught.value.partitions == (days[1], days[3])
    assert days[3] in str(caught.value)
    # Of these, the form is as declared, and what it holds is not.
    zone.drop(days[1], "x,1,a\n")
    zone.drop(days[3], "1,y,a\n")
    with pytest.raises(RefusedFilesError, match=r"none of its 1 rows can be loaded") as caught:
        zone.load(*days)
    assert caught.value.partitions == (days[1], days[3])
    assert zone.load(days[0], days[2], days[4]).new == 3


def test_a_file_too_large_to_keep_is_read_again_and_must_be_the_same(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "_KEPT", 0)
    zone.drop(DAY, "1,1,a\n")
    assert zone.load().new == 1
    zone.drop(DAY, "2,2,b\n")
    read = Lake.read

    def read_and_replace(lake: Lake, key: str) -> bytes:
        content = read(lake, key)
        zone.drop(DAY, "3,3,c\n")
        return content

    monkeypatch.setattr(Lake, "read", read_and_replace)
    with pytest.raises(SourceError, match="was written anew while it was loaded: run again"):
        zone.load()
    assert zone.rows("id") == [(1,)]
    assert zone.load().new == 1
    assert zone.rows("id") == [(3,)]


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(("kept", "at_once"), [(1 << 20, 3), (0, 1)])
def test_files_are_read_a_few_at_once_and_loaded_in_their_order(
    zone: Zone, monkeypatch: pytest.MonkeyPatch, kept: int, at_once: int
) -> None:
    monkeypatch.setattr(landing, "_KEPT", kept)
    days = [f"2026-01-0{number}" for number in range(1, 8)]
    for number, day in enumerate(days):
        zone.drop(day, f"{number},1,a\n")
    read, reading, most = Lake.read, 0, 0
    met = threading.Condition()

    def read_together(lake: Lake, key: str) -> bytes:
        nonlocal reading, most
        with met:
            reading += 1
            most = max(most, reading)
            met.notify_all()
            # The first waits until others read as well, or, where none should, a moment.
            met.wait_for(lambda: most >= max(2, at_once), timeout=10 if at_once > 1 else 0.05)
            content = read(lake, key)
            reading -= 1
        return content

    monkeypatch.setattr(Lake, "read", read_together)
    done = zone.load_feed(*days)
    assert most == at_once
    assert [p.partition for p in done.load.partitions] == days
    assert zone.rows("id, trip_date::text") == list(enumerate(days))


@pytest.mark.usefixtures("on_disk")
def test_of_files_that_cannot_be_read_the_first_is_named(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [f"2026-01-0{number}" for number in range(1, 4)]
    for day in days:
        zone.drop(day, "1,1,a\n")
    later = threading.Event()

    def fail(lake: Lake, key: str) -> bytes:
        if days[0] in key:
            later.wait(10)
        if days[1] in key:
            later.set()
        raise LakeError(f"{key} could not be read")

    monkeypatch.setattr(Lake, "read", fail)
    with pytest.raises(LakeError, match=days[0]):
        zone.load(*days)


def test_of_rows_with_the_same_key_the_last_is_kept_and_one_without_a_key_is_rejected(
    zone: Zone,
) -> None:
    zone.feed = feed_of(primary_key=["id", "code"])
    zone.drop(DAY, "1,1,a\n1,2,b\n1,3,a\nNA,4,c\n")
    done = zone.load()
    assert (done.received, done.new, done.duplicates, done.rejected) == (4, 2, 1, 1)
    assert sorted(zone.rows("id, delay, code")) == [(1, 2.0, "b"), (1, 3.0, "a")]


def test_without_a_key_rows_are_not_compared(zone: Zone) -> None:
    zone.drop(DAY, "1,1,a\n1,1,a\n")
    assert zone.load().new == 2
