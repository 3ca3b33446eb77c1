"""Objects of the lake: written once and whole, listed in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagster_project.failures import LakeError
from dagster_project.lake.store import AlreadyThereError, Lake


def test_an_object_is_written_once(lake: Lake) -> None:
    lake.create("a/b.txt", b"first")
    with pytest.raises(AlreadyThereError, match=r"a/b\.txt exists already"):
        lake.create("a/b.txt", b"second")
    assert lake.read("a/b.txt") == b"first"


def test_objects_are_listed_in_the_order_of_their_keys_and_of_their_folder_only(
    lake: Lake,
) -> None:
    for key in ("p/10", "p/9", "p/1/x", "q/1", "px/1"):
        lake.create(key, b"12")
    assert [item.key for item in lake.list("p")] == ["p/1/x", "p/10", "p/9"]
    assert [item.key for item in lake.list("p", after="p/10")] == ["p/9"]
    assert {item.size for item in lake.list("p")} == {2}
    assert list(lake.list("nothing/here")) == []


def test_an_object_that_is_written_anew_has_another_version(lake: Lake, tmp_path: Path) -> None:
    lake.create("a", b"one")
    (before,) = lake.list("")
    (tmp_path / "lake" / "a").write_bytes(b"other")
    (after,) = lake.list("")
    assert before.version != after.version


def test_what_cannot_be_read_is_named(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"lake/no/such could not be read"):
        lake.read("no/such")
    lake.create("bad.json", b"{")
    with pytest.raises(LakeError, match=r"bad\.json is not valid JSON"):
        lake.read_json("bad.json")


def test_a_lake_of_an_unknown_scheme_is_refused_at_first_use() -> None:
    with pytest.raises(LakeError, match="tape://vault cannot be opened"):
        Lake("tape://vault").read("x")
