"""Objects of the lake: written once and whole, listed in order. On disk and on S3 alike."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import obstore
import pytest

from dagster_project.failures import LakeError
from dagster_project.lake import store
from dagster_project.lake.store import AlreadyThereError, Lake


def keys(lake: Lake, prefix: str, after: str | None = None) -> list[str]:
    return [item.key for item in lake.list(prefix, after=after)]


def test_an_object_is_written_once(lake: Lake) -> None:
    lake.create("a/b.txt", b"first")
    with pytest.raises(AlreadyThereError, match=r"a/b\.txt exists already"):
        lake.create("a/b.txt", b"second")
    assert lake.read("a/b.txt") == b"first"


def test_what_was_read_is_counted(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, 5000, 20_000):
        lake.create(f"{size}", bytes(range(250)) * (size // 250))
    monkeypatch.setattr(store, "LARGE", 10_000)
    for size in (0, 5000, 20_000):
        assert lake.read(f"{size}") == bytes(range(250)) * (size // 250)
    assert lake.bytes_read == 25_000


def test_writing_the_same_again_is_no_error(lake: Lake) -> None:
    lake.create("a", b"one")
    lake.create("a", b"one")
    assert lake.read("a") == b"one"


def test_of_writers_of_one_object_exactly_one_succeeds(lake: Lake) -> None:
    def write(key: str, writer: int) -> int | None:
        try:
            # Each has a store of its own, as each process has.
            Lake(lake.url).create(key, f"{writer}".encode() * 10_000)
        except AlreadyThereError:
            return None
        return writer

    with ThreadPoolExecutor(4) as pool:
        for key in ("a", "b", "c"):
            written = pool.map(write, [key] * 4, range(4))
            (winner,) = [writer for writer in written if writer is not None]
            assert lake.read(key) == f"{winner}".encode() * 10_000


def test_objects_are_listed_in_the_order_of_their_keys_and_of_their_folder_only(
    lake: Lake,
) -> None:
    for key in ("p/10", "p/9", "p/1/x", "q/1", "px/1"):
        lake.create(key, b"12")
    assert keys(lake, "p") == ["p/1/x", "p/10", "p/9"]
    assert keys(lake, "p", after="p/10") == ["p/9"]
    assert {item.size for item in lake.list("p")} == {2}
    assert keys(lake, "nothing/here") == []


def test_a_key_may_hold_what_a_url_may_not(lake: Lake) -> None:
    key = "landing/día 1/100% a+b&c=d.csv"
    lake.create(key, b"x")
    assert keys(lake, "landing") == [key]
    assert lake.read(key) == b"x"
    lake.delete([key])
    assert keys(lake, "landing") == []


def test_an_object_tells_when_it_was_written(lake: Lake) -> None:
    lake.create("a", b"x")
    (item,) = lake.list("")
    assert item.modified.utcoffset() == timedelta(0)
    # S3 tells whole seconds.
    assert abs(datetime.now(UTC) - item.modified) < timedelta(minutes=1)


def test_an_object_that_is_written_anew_has_another_version(lake: Lake) -> None:
    lake.create("a", b"one")
    (before,) = lake.list("")
    time.sleep(0.01)
    obstore.put(lake.store, "a", b"two")
    (after,) = lake.list("")
    assert before.version != after.version


def test_deleted_objects_are_gone_and_missing_ones_are_no_error(lake: Lake) -> None:
    for key in ("p/1", "p/2", "p/3", "q/1"):
        lake.create(key, b"x")
    lake.delete(iter(["p/3", "p/none", "nowhere/none", "p/1"]))
    assert keys(lake, "") == ["p/2", "q/1"]
    lake.delete(["p/1", "p/2", "q/1"])
    lake.delete([])
    assert keys(lake, "") == []
    lake.create("p/1", b"again")
    assert keys(lake, "") == ["p/1"]


def test_more_objects_than_a_page_holds(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagster_project.lake.store.PAGE", 7)
    names = [f"p/{number:03d}" for number in range(30)]
    for name in names:
        lake.create(name, b"x")
    assert keys(lake, "p") == names
    assert keys(lake, "p", after="p/011") == names[12:]
    lake.delete(names[1:])
    assert keys(lake, "p") == names[:1]


def test_what_cannot_be_read_is_named(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"lake/no/such could not be read: there is no such obj"):
        lake.read("no/such")
    lake.create("bad.json", b"{")
    with pytest.raises(LakeError, match=r"bad\.json is not valid JSON"):
        lake.read_json("bad.json")
    lake.create_json("good.json", {"a": [1, None]})
    assert lake.read_json("good.json") == {"a": [1, None]}


def test_a_lake_of_an_unknown_scheme_is_refused_at_first_use() -> None:
    with pytest.raises(LakeError, match="tape://vault cannot be opened"):
        Lake("tape://vault").read("x")
