"""The process that delivers: what it does while it cannot, and whom it tells."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg
import psycopg
import pytest

from dagster_project.catalog import metadata
from dagster_project.catalog.bookkeeping import books_of, read_progress
from dagster_project.catalog.dead_letters import read_dead_letters
from dagster_project.cli.in_python import in_python
from dagster_project.failures import DeclarationError
from dagster_project.orchestration import following, known_assets
from dagster_project.orchestration.delivery import Delivered, Deliverer
from dagster_project.orchestration.problem import standing
from dagster_project.settings import get_settings
from tests.catalog.gms import RecordingGms
from tests.orchestration.catalog.told_runs import TABLE, Seen, deliver, deliverer, run, until
from tests.orchestration.webhook import Webhook

ENDED = ["STARTED", "SUCCESS"]


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK", "FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(following, name, 0.05)
    monkeypatch.setattr(Deliverer, "declare", lambda self, version: Delivered())


@contextmanager
def followed(said: list[str]) -> Iterator[threading.Thread]:
    """While somebody follows the log."""
    ending = threading.Event()
    arguments = (get_settings(), said.append, ending, in_python)
    thread = threading.Thread(target=following.follow, args=arguments)
    thread.start()
    try:
        yield thread
    finally:
        ending.set()
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_what_happens_is_told_as_it_happens(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    with followed([]):
        for _ in range(2):
            seen = Seen(gms, run(instance))
            until(lambda seen=seen: seen.results() == ENDED)


def test_what_keeps_it_is_said_once_and_is_an_alert_if_it_lasts(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "PATIENCE", timedelta(seconds=0.5))
    said: list[str] = []
    with Webhook() as webhook:
        monkeypatch.setenv("MESH_ALERTS_WEBHOOK", webhook.url)
        get_settings.cache_clear()
        home = get_settings().home
        with gms.down():
            with followed(said):
                seen = Seen(gms, run(instance))
                until(lambda: webhook.messages)
            (progress,) = read_progress(url)
            assert "does not answer" in (progress.failure or "")
            (problem,) = standing(home)["catalog"]
            assert problem.key == f"catalog not told: {gms.url}"
            # That it does not answer, and the alert.
            assert len(said) == 2
        # The process after it tells that it is over.
        with followed(said):
            until(lambda: seen.results() == ENDED)
            until(lambda: len(webhook.messages) == 2)
    assert "recovered" in webhook.messages[1]["text"]
    assert standing(home)["catalog"] == []
    assert read_progress(url)[0].failure is None


def test_it_ends_when_what_it_knows_has_changed(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has read is of before, so it tells none of it as what the files have become."""
    version = ["one"]
    told: list[str] = []

    def declare(self: Deliverer, version: str) -> Delivered:
        told.append(version)
        return Delivered()

    monkeypatch.setattr(following, "declared_version", lambda settings: version[0])
    monkeypatch.setattr(Deliverer, "declare", declare)
    with followed([]) as thread:
        until(lambda: read_progress(url) and told)
        version[0] = "another"
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert set(told) == {"one"}


def test_a_mistake_in_the_declarations_keeps_nothing_that_happens(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(self: Deliverer, version: str) -> Delivered:
        raise DeclarationError("domain.yaml:3: no such thing")

    monkeypatch.setattr(Deliverer, "declare", mistaken)
    said: list[str] = []
    with followed(said):
        seen = Seen(gms, run(instance))
        until(lambda: seen.results() == ENDED)
        until(lambda: read_progress(url)[0].failure)
    assert "domain.yaml:3: no such thing" in said
    # It is over once the files are right, although nothing happens.
    monkeypatch.setattr(Deliverer, "declare", lambda self, version: Delivered())
    with followed(said):
        until(lambda: not read_progress(url)[0].failure)


def test_files_that_became_mistaken_keep_nothing_of_what_was_known(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a new process, which has read none of them before, finds them."""
    with books_of(url, gms.url):
        deliver_before = Seen(gms, run(instance))
    assert deliver(url, instance) == 5
    assert deliver_before.results() == ENDED

    def mistaken(*_: object) -> metadata.Assets:
        raise DeclarationError("weather/domain.yaml:3: no such thing")

    monkeypatch.setattr(known_assets, "assets", mistaken)
    seen = Seen(gms, run(instance))
    instance.report_runless_asset_event(
        dg.AssetMaterialization(["fleet", "new"], metadata={"dagster/row_count": 1})
    )
    assert deliver(url, instance) == 6
    assert seen.results() == ENDED
    assert seen.results("fleet/dim_planes") == ENDED
    assert seen.of_table("_raw.planes", "operation")
    # What nobody can know of is not left out in silence.
    (letter,) = read_dead_letters(url, gms.url)
    assert letter.reason.startswith("fleet/new is not known, as weather/domain.yaml:3")
    # Once the files are right, it is told as it has to be.
    known = metadata.Assets({("fleet", "new"): TABLE.format(".new")}, {})
    monkeypatch.setattr(known_assets, "assets", lambda *_: known)
    with deliverer(url, instance) as each:
        each.replay(each._books.dead_letters())
        assert each._books.dead_letters() == []
    assert (TABLE.format(".new"), "datasetProfile") in gms.aspects


def test_files_that_were_mistaken_from_the_first_are_waited_for(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> metadata.Assets:
        raise DeclarationError("weather/domain.yaml:3: no such thing")

    seen = Seen(gms, run(instance))
    with monkeypatch.context() as patch:
        patch.setattr(known_assets, "assets", mistaken)
        with pytest.raises(DeclarationError):
            deliver(url, instance)
    assert deliver(url, instance) == 5
    assert seen.results() == ENDED


def test_a_server_that_asks_for_days_is_asked_again_before(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LONGEST_ASKED", 0.2)
    # Not even a clock can wait for that.
    gms.answer(429, Retry_After="99999999999999")
    seen = Seen(gms, run(instance))
    with followed([]):
        until(lambda: seen.results() == ENDED)


def test_dead_letters_are_one_alert_until_they_are_gone(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = TABLE.format("_raw.planes")
    with Webhook() as webhook:
        monkeypatch.setenv("MESH_ALERTS_WEBHOOK", webhook.url)
        get_settings.cache_clear()
        home = get_settings().home
        with followed([]):
            gms.chokes_on = {planes}
            run(instance)
            until(lambda: webhook.messages)
            gms.chokes_on = set()
            seen = Seen(gms, run(instance))
            until(lambda: seen.results() == ENDED)
        (problem,) = standing(home)["catalog"]
        assert problem.key == f"catalog refuses: {gms.url}"
        assert "2 of what it was told it does not take" in problem.what
        # Another process does not tell it again.
        gms.chokes_on = {planes}
        with followed([]):
            run(instance)
            until(lambda: len(read_dead_letters(url, gms.url)) == 4)
        gms.chokes_on = set()
        with deliverer(url, instance) as each:
            first, *others = each._books.dead_letters()
            each.replay(others)
            each._books.discard([first])
        assert len(webhook.messages) == 1
        with followed([]):
            until(lambda: len(webhook.messages) == 2)
    assert "recovered" in webhook.messages[1]["text"]
    assert standing(home)["catalog"] == []


def test_a_webhook_that_is_away_is_not_asked_all_the_time(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_ALERTS_WEBHOOK", "http://127.0.0.1:9/")
    monkeypatch.setattr(following, "LONGEST_PAUSE", 60.0)
    get_settings.cache_clear()
    gms.chokes_on = {TABLE.format("_raw.planes")}
    said: list[str] = []
    with followed(said):
        run(instance)
        until(lambda: any("webhook" in each for each in said))
        gms.chokes_on = set()
        for _ in range(3):
            seen = Seen(gms, run(instance))
            until(lambda seen=seen: seen.results() == ENDED)
    assert len([each for each in said if "webhook" in each]) == 1


def test_who_waited_for_another_is_no_alert_at_the_first_failure(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE", timedelta(seconds=1))
    said: list[str] = []
    with gms.down():
        with books_of(url, gms.url):
            follow = followed(said)
            follow.__enter__()
            until(lambda: said)
            threading.Event().wait(1.2)
            run(instance)
        monkeypatch.setattr(following, "LONGEST_PAUSE", 60.0)
        monkeypatch.setattr(following, "FIRST_PAUSE", 60.0)
        until(lambda: any("does not answer" in each for each in said))
        follow.__exit__(None, None, None)
    assert standing(get_settings().home).get("catalog", []) == []


def test_a_mistake_of_ours_is_known_before_the_process_ends(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE", timedelta(0))

    def broken(self: Deliverer, version: str) -> Delivered:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Deliverer, "declare", broken)
    arguments = (get_settings(), print, threading.Event(), in_python)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            following.follow(*arguments)
    (progress,) = read_progress(url)
    assert "ZeroDivisionError: by nothing" in (progress.failure or "")
    (problem,) = standing(get_settings().home)["catalog"]
    assert "ZeroDivisionError" in problem.what


def test_a_log_that_is_away_is_waited_for(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is Dagster's own storage that finds out."""
    said: list[str] = []
    with followed(said):
        until(lambda: read_progress(url))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("ALTER TABLE event_logs RENAME TO away")
            try:
                until(lambda: any('event_logs" does not exist' in each for each in said))
            finally:
                connection.execute("ALTER TABLE away RENAME TO event_logs")
        seen = Seen(gms, run(instance))
        until(lambda: seen.results() == ENDED)
