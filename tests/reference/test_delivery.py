from __future__ import annotations

import zipfile
from datetime import date
from pathlib import Path

import obstore
import pytest

from dagster_project.failures import LakeError, SourceError
from dagster_project.lake.store import Lake
from dagster_project.reference import data
from dagster_project.reference.delivery import Delivery, daily_files, deliver, object_path

NEW_YEAR = date(2013, 1, 1)
PREFIX = "landing/flights/flights"


@pytest.fixture(scope="module")
def flights(reference_data: Path) -> bytes:
    with zipfile.ZipFile(reference_data / data.FLIGHTS) as archive:
        return archive.read("flights.csv")


def written(lake: Lake) -> dict[str, bytes]:
    return {
        meta["path"]: bytes(obstore.get(lake.store, meta["path"]).bytes())
        for batch in obstore.list(lake.store)
        for meta in batch
    }


def modified(lake: Lake) -> dict[str, object]:
    return {m["path"]: m["last_modified"] for batch in obstore.list(lake.store) for m in batch}


def package(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / data.FLIGHTS, "w") as archive:
        archive.writestr("flights.csv", content)
    return folder


def test_the_year_is_one_file_a_day_with_every_row_as_in_the_source(
    lake: Lake, reference_data: Path, flights: bytes
) -> None:
    steps: list[tuple[int, int]] = []
    delivery = deliver(lake, reference_data, progress=lambda *step: steps.append(step))
    assert delivery == Delivery(new=365, replaced=0, unchanged=0)
    assert steps == [(done, 365) for done in range(1, 366)]

    files = written(lake)
    assert len(files) == 365
    header, *rows = flights.splitlines(keepends=True)
    dropped: list[bytes] = []
    for path, content in files.items():
        first, *lines = content.splitlines(keepends=True)
        day = date.fromisoformat(path.removeprefix(f"{PREFIX}/flights_").removesuffix(".csv"))
        assert first == header
        assert all(line.startswith(f"{day.year},{day.month},{day.day},".encode()) for line in lines)
        dropped += lines
    assert len(dropped) == 336_776
    assert sorted(dropped) == sorted(rows)


def test_delivering_again_writes_nothing(lake: Lake, reference_data: Path) -> None:
    deliver(lake, reference_data)
    before = modified(lake)
    assert deliver(lake, reference_data) == Delivery(new=0, replaced=0, unchanged=365)
    assert modified(lake) == before


@pytest.mark.parametrize("of_the_same_size", [True, False])
def test_a_changed_file_is_replaced(
    lake: Lake, reference_data: Path, of_the_same_size: bool
) -> None:
    days = [NEW_YEAR, date(2013, 1, 2)]
    deliver(lake, reference_data, days)
    right = written(lake)[object_path(NEW_YEAR)]
    wrong = right.replace(b"UA", b"XX") if of_the_same_size else right + b"2013"
    obstore.put(lake.store, object_path(NEW_YEAR), wrong)
    assert deliver(lake, reference_data, days) == Delivery(new=0, replaced=1, unchanged=1)
    assert written(lake)[object_path(NEW_YEAR)] == right


def test_only_the_days_asked_for_are_delivered(lake: Lake, reference_data: Path) -> None:
    assert deliver(lake, reference_data, [date(2013, 12, 31)]).new == 1
    assert list(written(lake)) == [f"{PREFIX}/flights_2013-12-31.csv"]
    assert deliver(lake, reference_data, []) == Delivery(0, 0, 0)


def test_a_day_without_flights_is_an_error(lake: Lake, reference_data: Path) -> None:
    with pytest.raises(SourceError, match=r"2014-01-01.*2013-01-01 to 2013-12-31"):
        deliver(lake, reference_data, [NEW_YEAR, date(2014, 1, 1)])
    assert not written(lake)


def test_days_that_do_not_stand_together_are_brought_together(tmp_path: Path) -> None:
    folder = package(
        tmp_path / "data",
        b"year,month,day,x\n2013,1,11,a\n2013,1,1,b\n2013,1,11,c\n",
    )
    assert daily_files(folder) == {
        NEW_YEAR: b"year,month,day,x\n2013,1,1,b\n",
        date(2013, 1, 11): b"year,month,day,x\n2013,1,11,a\n2013,1,11,c\n",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"day,month,year\n1,1,2013\n", "columns"),
        (b'year,month,day,x\n2013,1,1,"a\nb"\n', "quoted"),
        (b"year,month,day,x\n2013,1,1,a\nNA,1,1,b\n", "line 3"),
        (b"year,month,day,x\n2013,1,1,a\n2013,1,1,b", "line 3"),
    ],
)
def test_a_source_that_changed_its_form_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        daily_files(package(tmp_path / "data", content))


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / data.FLIGHTS).write_bytes(b"not a zip file")
    with pytest.raises(SourceError, match=r"flights\.csv\.zip cannot be read.*mesh install"):
        daily_files(tmp_path)


def test_a_lake_that_refuses_is_a_lake_error(
    lake: Lake, tmp_path: Path, reference_data: Path
) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "landing").write_text("a file where a folder belongs")
    with pytest.raises(LakeError, match="landing/flights/flights"):
        deliver(lake, reference_data, [NEW_YEAR])
