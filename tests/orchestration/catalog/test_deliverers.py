"""Several who deliver: at once, in turns, of several homes, and of several versions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from dagster_project.catalog.bookkeeping import GIVES_WAY, books_of, read_progress
from dagster_project.catalog.destination import destination_of
from dagster_project.catalog.files import events_folder, read
from dagster_project.cli.in_python import in_python
from dagster_project.failures import BusyError
from dagster_project.orchestration import delivery, following
from dagster_project.orchestration.delivery import Delivered, Deliverer
from dagster_project.settings import get_settings
from tests.catalog.gms import RecordingGms
from tests.orchestration.catalog.told_runs import Seen, deliver, deliverer, run, until

NAME = "http://datahub:8080"


@contextmanager
def following_along(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """While somebody delivers all the time; what it says."""
    monkeypatch.setattr(Deliverer, "declare", lambda self, version: Delivered())
    for name in ("LOOK", "FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(following, name, 0.05)
    said: list[str] = []
    ending = threading.Event()
    arguments = (get_settings(), said.append, ending, in_python)
    thread = threading.Thread(target=following.follow, args=arguments)
    thread.start()
    try:
        yield said
    finally:
        ending.set()
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.mark.parametrize("attempt", range(5))
def test_the_first_ones_make_the_tables_at_once(url: str, attempt: int) -> None:
    together = threading.Barrier(8)

    def begin(number: int) -> int:
        together.wait()
        with books_of(url, f"{NAME}/{number}") as books:
            return books.event_id

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(begin, range(8))) == [0] * 8


def test_books_of_before_are_gone_on_with(url: str) -> None:
    with books_of(url, NAME) as books:
        books.told_events(7)
    with psycopg.connect(url) as connection:
        for column in ("assets", "superseded", "declared_by", "declared_seen_at", "event_mark"):
            connection.execute(f"ALTER TABLE mesh.catalog_destinations DROP COLUMN {column}")
        connection.execute("ALTER TABLE mesh.catalog_destinations DROP COLUMN reached")
        connection.execute("DROP TABLE mesh.migrations")
    with books_of(url, NAME) as books:
        assert (books.event_id, books.event_mark, books.reached) == (7, None, 0)
        books.told_events(8, mark="a")
        assert (books.event_id, books.event_mark, books.reached) == (8, "a", 8)


def test_who_delivers_all_the_time_gives_way_to_a_command_and_goes_on(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with following_along(monkeypatch) as said:
        until(lambda: read_progress(url))
        with books_of(url, gms.url, patience=GIVES_WAY) as books:
            seen = Seen(gms, run(instance))
            assert books.event_id == 0
            until(lambda: any("another process delivers to" in each for each in said))
            assert seen.results() == []
        until(lambda: seen.results() == ["STARTED", "SUCCESS"])


def test_who_cannot_deliver_lets_a_command_try(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as one that knows a token which is still valid."""
    seen = Seen(gms, run(instance))
    with gms.down(), following_along(monkeypatch) as said:
        monkeypatch.setattr(following, "LONGEST_PAUSE", 60.0)
        monkeypatch.setattr(following, "FIRST_PAUSE", 60.0)
        until(lambda: any("does not answer" in each for each in said))
        with books_of(url, gms.url, patience=GIVES_WAY):
            pass
    assert deliver(url, instance) == 5
    assert seen.results() == ["STARTED", "SUCCESS"]


def test_a_command_does_not_wait_for_ever(url: str) -> None:
    with books_of(url, NAME) as books:
        assert not books.are_wanted
        with pytest.raises(BusyError, match="another process delivers"):
            with books_of(url, NAME, patience=0.2):
                pass
        with books_of(url, "another", patience=0.2) as other:
            assert not other.are_wanted


def test_a_lock_does_not_outlive_a_machine_by_hours(url: str) -> None:
    with books_of(url, NAME) as books:
        for name, seconds in (("idle", "30"), ("interval", "10"), ("count", "3")):
            row = books._connection.execute(f"SHOW tcp_keepalives_{name}").fetchone()
            assert row == (seconds,)


def test_each_home_has_files_of_all_that_happens(
    url: str, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(instance)
    written = []
    parsed = get_settings().home / "dbt"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dbt").symlink_to(parsed)
        monkeypatch.setenv("MESH_HOME", str(tmp_path / name))
        get_settings.cache_clear()
        deliver(url, instance)
        written.append([read(path) for path in events_folder(get_settings()).glob("*.json")])
    assert written[0] == written[1] != []


def test_a_home_goes_on_from_where_its_files_are(url: str, instance: dg.DagsterInstance) -> None:
    run(instance)
    deliver(url, instance)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE mesh.catalog_destinations SET destination = 'files'")
    assert deliver(url, instance) == 0
    (progress,) = read_progress(url)
    assert progress.destination == f"files in {events_folder(get_settings()).parent}"


def test_a_home_without_files_takes_nobody_s_place(url: str, instance: dg.DagsterInstance) -> None:
    run(instance)
    with books_of(url, "files") as books:
        books.told_events(10**6)
    assert destination_of(get_settings()).former is None
    assert deliver(url, instance) == 5
    assert len(read_progress(url)) == 2


# Versions


def declares(
    url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, version: str, who: str
) -> Delivered:
    monkeypatch.setattr(delivery, "_who", lambda: who)
    monkeypatch.setattr(delivery, "static_metadata", lambda *_: iter(()))
    with deliverer(url, instance) as each:
        return each.declare(version)


def declared(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT declared FROM mesh.catalog_destinations").fetchone()
    assert row
    return row[0]


def test_an_older_version_does_not_replace_a_newer_one_that_is_there(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declares(url, instance, monkeypatch, "old", "pod-1")
    declares(url, instance, monkeypatch, "new", "pod-2")
    with pytest.raises(BusyError, match="whose declarations are newer"):
        declares(url, instance, monkeypatch, "old", "pod-1")
    assert declared(url) == "new"
    # Gone back to: those who had the newer one are not there any more.
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE mesh.catalog_destinations SET declared_seen_at = now() - interval '1 hour'"
        )
    declares(url, instance, monkeypatch, "old", "pod-1")
    assert declared(url) == "old"
    # Now this is the newer one.
    with pytest.raises(BusyError):
        declares(url, instance, monkeypatch, "new", "pod-2")


def test_a_checkout_that_was_changed_back_is_told_at_once(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version in ("one", "two", "one", "two"):
        declares(url, instance, monkeypatch, version, "laptop:/mesh")
        assert declared(url) == version


def test_who_waits_for_the_books_is_there(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An older one that holds them for long is not to believe that the newer one is gone."""
    declares(url, instance, monkeypatch, "older", "pod-1")
    declares(url, instance, monkeypatch, "newer", "pod-2")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "UPDATE mesh.catalog_destinations SET declared_seen_at = now() - interval '1 hour'"
        )
        monkeypatch.setattr(following, "declared_version", lambda settings: "newer")
        with books_of(url, gms.url) as books:
            with following_along(monkeypatch):
                until(lambda: books.is_outdated("older", "pod-1"))


def test_what_was_told_long_ago_is_remembered_no_longer(url: str) -> None:
    with books_of(url, NAME) as books:
        for number in range(120):
            books.told_declarations(str(number), (), (), "pod-1")
        assert not books.is_outdated("10", "pod-2")
        assert books.is_outdated("30", "pod-2")
        assert books.is_outdated("118", "pod-2")
        assert not books.is_outdated("119", "pod-2")
