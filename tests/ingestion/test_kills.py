"""Killed at any step and run again, a sync brings what an undisturbed one does: nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dagster_project.settings import PROJECT
from tests.ingestion import kills
from tests.ingestion.scripted import WHOLE, Shop, assert_gone, wait_for


def test_a_sync_that_is_killed_at_any_step_is_made_good_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ingestion.kills", str(tmp_path)]
    run = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
    moments = [json.loads(line) for line in run.stdout.splitlines()]
    *killed, undisturbed = moments
    print(f"killed at {len(killed)} moments")
    assert len(killed) >= 50
    assert undisturbed["ended"] == 0
    assert undisturbed["data"] == {
        "users": [*range(25)],
        "events": [*range(1, 41)],
        "visits": [*range(1, 13)],
    }
    for number, moment in enumerate(moments, 1):
        assert moment["again"] == 0, number
        assert moment["data"] == undisturbed["data"], number
        assert moment["left"] == [], number
        assert moment["secrets"] == [], number
        assert moment["complete"][-1], number
    # Some of the killed ones had got to a checkpoint.
    assert {moment["commits"] for moment in killed} > {undisturbed["commits"] - 2}


@pytest.mark.parametrize("after", [0, 3, 26, 28, 38, 39, 40, 60, 72, 85])
def test_a_connector_that_is_killed_after_any_message_is_run_again(
    shop: Shop, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills.engine, "CHECKPOINT_SECONDS", 0)
    shop.connection = kills.CONNECTION
    counting = f"""
    said, plain = 0, say

    def say(message):
        global said
        if said == {after}:
            os.kill(os.getpid(), 9)
        said += 1
        plain(message)
    """
    body = textwrap.dedent(counting) + kills.CONNECTOR
    with pytest.raises(kills.engine.SourceError, match="it ended by SIGKILL"):
        shop.sync(body)
    shop.sync(kills.CONNECTOR)
    found = kills.found(shop.folder)
    assert found["data"] == {
        "users": [*range(25)],
        "events": [*range(1, 41)],
        "visits": [*range(1, 13)],
    }
    assert (found["left"], found["secrets"]) == ([], [])


def test_a_connector_and_what_it_started_end_with_a_killed_sync(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"""
    import subprocess
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    child = subprocess.Popen([sys.executable, "-S", "-c", stubborn])
    record("users", id=1)
    open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(99)
    """
    with shop.apart(body) as process:
        wait_for(pids)
        secrets = list(shop.folder.rglob("config.json"))
        process.kill()
    assert_gone(pids)
    # What it leaves is removed by the next of any connection of this home.
    assert [path.parent.stat().st_mode & 0o777 for path in secrets] == [0o700]
    shop.sync(WHOLE)
    assert not list(shop.folder.rglob("config.json"))
