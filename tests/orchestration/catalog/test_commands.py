"""`mesh catalog deliver`, `dead-letters`, `replay` and `discard`, and how the process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from dagster_project.catalog import metadata
from dagster_project.catalog.dead_letters import read_dead_letters
from dagster_project.cli.app import app
from dagster_project.failures import MeshError
from dagster_project.orchestration import delivery
from dagster_project.settings import PROJECT
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, Endpoint
from tests.catalog.gms import RecordingGms
from tests.orchestration.catalog.told_runs import TABLE, Seen, run, until

PLANES = TABLE.format("_raw.planes")


@pytest.fixture(autouse=True)
def quick(url: str, postgres: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is declared, which takes a while to tell."""
    monkeypatch.setenv("MESH_WAREHOUSE_URL", postgres.url(MESH, WAREHOUSE))
    monkeypatch.setattr(delivery, "static_metadata", lambda *_: iter(()))


def mesh(*arguments: str) -> Result:
    ended = CliRunner().invoke(app, arguments)
    if ended.exception and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


def test_that_files_changed_while_they_were_told_is_no_success(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(gms, run(instance))
    versions = iter(["before", "after"])
    monkeypatch.setattr(metadata, "declared_version", lambda settings: next(versions))
    with pytest.raises(MeshError, match="were changed while they were told"):
        mesh("catalog", "deliver")
    assert seen.results() == ["STARTED", "SUCCESS"]
    # What was told is not taken for what they have become.
    monkeypatch.setattr(metadata, "declared_version", lambda settings: "after")
    monkeypatch.setattr(delivery, "static_metadata", metadata.static_metadata)
    assert "the declarations in 2," in mesh("catalog", "deliver").output
    assert "nothing new" in mesh("catalog", "deliver").output


def test_what_was_refused_is_told_again_or_let_go(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    gms.chokes_on = {PLANES}
    run(instance)
    assert mesh("catalog", "deliver").exit_code == 1
    first, second = read_dead_letters(url, gms.url)
    for wrong in ([], ["--all", str(first.id)]):
        assert (
            "either the ids of dead letters, or --all" in mesh("catalog", "discard", *wrong).output
        )
    with pytest.raises(MeshError, match="no dead letter has the id 999999"):
        mesh("catalog", "discard", str(first.id), "999999")
    assert mesh("catalog", "discard", str(first.id)).output == "dead letters discarded: 1\n"
    assert read_dead_letters(url, gms.url) == [second]
    assert mesh("catalog", "discard", "--all").output == "dead letters discarded: 1\n"
    assert read_dead_letters(url, gms.url) == []


SILENT = """
import sys
from dagster_project.cli import delivering
from dagster_project.orchestration import delivery

delivery.Deliverer.declare = lambda *_: delivery.Delivered()
sys.exit(delivering.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_waits_for_a_silent_server_ends_when_told_to(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, number: signal.Signals
) -> None:
    seen = Seen(gms, run(instance))
    # It is waited for, for 30 s.
    gms.slow = 600.0
    process = subprocess.Popen([sys.executable, "-c", SILENT], cwd=PROJECT)
    try:
        until(lambda: gms.waiting)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 20
    finally:
        process.kill()
    assert seen.results() == []
