"""Files that come: each is asked for once, whole, and whatever else happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dagster_project.ingestion.arrivals import Memory, look, ranges, spans
from dagster_project.lake.store import Lake
from tests.ingestion.zone import HEADER, Zone

ON_S3_TOO = True
FIRST, SECOND, THIRD = "2026-01-01", "2026-01-02", "2026-01-03"


class Watch:
    """Somebody who looks, and remembers as a sensor does: as text."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.cursor = ""

    def look(self) -> list[str]:
        zone = self.zone
        found = look("city", zone.feed, zone.lake, zone.url, Memory.parse(self.cursor))
        self.cursor = found.memory.dump()
        return sorted(found.days)

    def settle(self) -> list[str]:
        """What came by the second look: on a disk a file has to be the same in two."""
        return self.look() + self.look()


@pytest.fixture
def zone(lake: Lake, tmp_path: Path, warehouse_url: str) -> Zone:
    return Zone(lake, tmp_path / "lake", warehouse_url)


@pytest.fixture
def watch(zone: Zone) -> Watch:
    return Watch(zone)


def test_a_file_is_asked_for_once(zone: Zone, watch: Watch) -> None:
    assert watch.look() == []
    zone.drop(FIRST, "1,0.5,a\n")
    assert watch.settle() == [FIRST]
    assert watch.settle() == []
    zone.load(FIRST)
    assert watch.settle() == []
    zone.drop(SECOND, "2,0.5,a\n")
    assert watch.settle() == [SECOND]
    # What is loaded need not be remembered.
    assert set(Memory.parse(watch.cursor).asked) == {SECOND}


def test_a_file_that_could_not_be_loaded_is_not_asked_for_again_until_it_is_mended(
    zone: Zone, watch: Watch
) -> None:
    zone.drop(FIRST, "one,0.5,a,too many\n")
    assert watch.settle() == [FIRST]
    zone.drop(SECOND, "2,0.5,a\n")
    assert watch.settle() == [SECOND]
    zone.drop(FIRST, "1,0.5,a\n")
    assert watch.settle() == [FIRST]


def test_a_corrected_file_is_asked_for_again(zone: Zone, watch: Watch) -> None:
    zone.drop(FIRST, "1,0.5,a\n")
    watch.settle()
    # While the run that was asked for is going, and after it.
    zone.drop(FIRST, "1,0.75,a\n")
    assert watch.settle() == [FIRST]
    zone.load(FIRST)
    zone.drop(FIRST, "1,1.5,a\n")
    assert watch.settle() == [FIRST]
    assert zone.load(FIRST).changed + zone.load(FIRST).new <= 1
    assert zone.rows("delay") == [(1.5,)]


def test_a_corrected_file_is_asked_for_though_the_clock_went_back(
    tmp_path: Path, warehouse_url: str
) -> None:
    # On a disk: S3 has the server's clock.
    zone = Zone(Lake((tmp_path / "lake").as_uri()), tmp_path / "lake", warehouse_url)
    watch = Watch(zone)
    zone.drop(FIRST, "1,0.5,a\n")
    watch.settle()
    zone.load(FIRST)
    zone.drop(FIRST, "1,1.5,a\n")
    (file,) = (path for path in (tmp_path / "lake").rglob(f"*{FIRST}*") if path.is_file())
    os.utime(file, (0, 0))
    assert watch.settle() == [FIRST]
    zone.load(FIRST)
    assert zone.rows("delay") == [(1.5,)]
    assert watch.settle() == []


def test_what_somebody_else_has_loaded_is_not_asked_for(zone: Zone, watch: Watch) -> None:
    zone.drop(FIRST, "1,0.5,a\n")
    zone.drop(SECOND, "2,0.5,a\n")
    zone.load(FIRST)
    assert watch.settle() == [SECOND]


def test_a_file_that_is_renamed_and_renamed_back_is_loaded_once(zone: Zone, watch: Watch) -> None:
    zone.drop(FIRST, "1,0.5,a\n")
    watch.settle()
    assert zone.load(FIRST).new == 1
    other = f"trips_{FIRST}-again.csv"
    for name, gone in ((other, f"trips_{FIRST}.csv"), ("", other)):
        zone.lake.delete([f"{zone.prefix}/{gone}"])
        zone.drop(FIRST, "1,0.5,a\n", name=name)
        assert watch.settle() == [FIRST]
        assert not zone.load(FIRST).did_change
    assert watch.settle() == []


@pytest.mark.usefixtures("on_disk")
def test_a_file_is_not_taken_while_it_is_written(zone: Zone, watch: Watch) -> None:
    zone.drop(FIRST, "1,0.5,a\n")
    path = zone.folder / f"trips_{FIRST}.csv"
    for number in range(2, 5):
        assert watch.look() == []
        with path.open("a") as file:
            file.write(f"{number},0.5,a\n")
    assert watch.look() == []
    assert watch.look() == [FIRST]
    assert zone.load(FIRST).new == 4


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(
    "name",
    [
        "orders_2026-01-01.csv",
        "trips_2027-01-01.csv",
        "trips_2026-02-30.csv",
        "trips 2026-01-01 é.csv",
        "trips_2026-01-01.csv.part",
        "trips_2026-01-01.csv/within.csv",
    ],
)
def test_what_is_not_of_the_feed_starts_nothing(zone: Zone, watch: Watch, name: str) -> None:
    path = zone.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(HEADER.encode())
    assert watch.settle() == []
    zone.drop(SECOND, "2,0.5,a\n")
    assert watch.settle() == [SECOND]


@pytest.mark.usefixtures("on_disk")
def test_of_two_files_of_a_day_the_one_written_last_counts(zone: Zone, watch: Watch) -> None:
    zone.put((HEADER + "1,0.5,a\n").encode(), f"trips_{FIRST}.csv", written=2_000)
    assert watch.settle() == [FIRST]
    zone.load(FIRST)
    # The clock went back: the other file was written earlier, by what it says.
    zone.put((HEADER + "9,0.5,a\n").encode(), f"trips_{FIRST}-late.csv", written=1_000)
    assert watch.settle() == []
    zone.put((HEADER + "7,0.5,a\n").encode(), f"trips_{FIRST}-late.csv", written=3_000)
    assert watch.settle() == [FIRST]


@pytest.mark.usefixtures("on_disk")
def test_days_that_are_put_off_are_found_at_the_next_look(zone: Zone, watch: Watch) -> None:
    zone.drop(FIRST, "1,0.5,a\n")
    zone.drop(THIRD, "3,0.5,a\n")
    watch.look()
    found = look("city", zone.feed, zone.lake, zone.url, Memory.parse(watch.cursor))
    if not zone.lake.on_disk:  # the first look has asked for them
        found = look("city", zone.feed, zone.lake, zone.url, Memory())
    # None of the day between, of which there is no file.
    assert spans(found.days, found.there) == [(FIRST, FIRST), (THIRD, THIRD)]
    watch.cursor = found.asking({FIRST}).dump()
    assert Memory.parse(watch.cursor).times == 1
    assert watch.look() == [THIRD]
    assert watch.settle() == []
    zone.load(FIRST)
    zone.drop(SECOND, "2,0.5,a\n")
    watch.settle()
    again = look("city", zone.feed, zone.lake, zone.url, Memory())
    assert spans({FIRST, THIRD}, again.there) == [(FIRST, THIRD)]


def test_days_become_few_ranges() -> None:
    assert ranges([], 3) == []
    assert ranges([FIRST], 3) == [(FIRST, FIRST)]
    assert ranges([THIRD, FIRST, SECOND], 3) == [(FIRST, THIRD)]
    days = ["2026-01-01", "2026-01-02", "2026-01-05", "2026-01-20", "2026-01-31"]
    assert ranges(days, 4) == [
        ("2026-01-01", "2026-01-02"),
        ("2026-01-05", "2026-01-05"),
        ("2026-01-20", "2026-01-20"),
        ("2026-01-31", "2026-01-31"),
    ]
    assert ranges(days, 2) == [("2026-01-01", "2026-01-05"), ("2026-01-20", "2026-01-31")]
    assert ranges(days, 1) == [("2026-01-01", "2026-01-31")]
