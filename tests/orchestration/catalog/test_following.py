"""The process that delivers: what it does while it cannot, and whom it tells."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg
import pytest

from dagster_project.catalog.bookkeeping import read_progress
from dagster_project.cli.in_python import in_python
from dagster_project.failures import DeclarationError
from dagster_project.orchestration import following
from dagster_project.orchestration.delivery import Delivered, Deliverer
from dagster_project.orchestration.problem import standing
from dagster_project.settings import get_settings
from tests.catalog.gms import RecordingGms
from tests.orchestration.catalog.told_runs import Seen, run, until
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
