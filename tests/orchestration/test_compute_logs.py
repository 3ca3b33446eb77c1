"""What steps print is kept in the lake, and read from there by who never saw the step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeIOType

from dagster_project.lake.store import Lake
from dagster_project.orchestration.compute_logs import LakeComputeLogManager
from dagster_project.settings import get_settings

CONFIG = {
    "telemetry": {"enabled": False},
    "compute_logs": {
        "module": "dagster_project.orchestration.compute_logs",
        "class": "LakeComputeLogManager",
    },
}


@dg.op
def speaks() -> None:
    print("a word of the step")


@dg.job(executor_def=dg.in_process_executor)
def speaking() -> None:
    speaks()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MESH_LAKE_URL", (tmp_path / "lake").as_uri())
    get_settings.cache_clear()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text(yaml.safe_dump(CONFIG))
    yield tmp_path / "home"
    get_settings.cache_clear()


def log_key(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    (event,) = [
        record.event_log_entry.dagster_event
        for record in instance.get_records_for_run(run_id).records
        if record.event_log_entry.dagster_event_type is dg.DagsterEventType.LOGS_CAPTURED
    ]
    assert event
    return [run_id, "compute_logs", event.logs_captured_data.file_key]


def test_a_log_is_read_from_the_lake_by_another_machine(home: Path, tmp_path: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = speaking.execute_in_process(instance=instance)
        key = log_key(instance, run.run_id)

    elsewhere = LakeComputeLogManager()
    try:
        assert elsewhere.is_capture_complete(key)
        found = elsewhere.get_log_data(key)
        assert found.stdout
        assert b"a word of the step\n" in found.stdout
        shown = elsewhere.get_log_metadata(key)
        assert shown.stdout_location == f"{(tmp_path / 'lake').as_uri()}/_logs/{'/'.join(key)}.out"
        # Where the webserver gives it, which reads it from the lake.
        assert shown.stdout_download_url == f"/logs/{'/'.join(key)}/out"
        keys = elsewhere.get_log_keys_for_log_key_prefix(key[:-1], ComputeIOType.STDOUT)
        assert keys == [key]
    finally:
        elsewhere.dispose()


def test_of_a_step_that_nobody_ran_there_is_no_log(home: Path) -> None:
    manager = LakeComputeLogManager()
    assert not manager.is_capture_complete(["nobody", "compute_logs", "knows"])
    assert manager.get_log_data(["nobody", "compute_logs", "knows"]).stdout is None
    manager.dispose()


def test_a_deleted_run_leaves_no_log(home: Path, tmp_path: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        kept, gone = (speaking.execute_in_process(instance=instance).run_id for _ in range(2))
        instance.compute_log_manager.delete_logs(prefix=[gone])
    left = {item.key.split("/")[1] for item in Lake((tmp_path / "lake").as_uri()).list("_logs")}
    assert left == {kept}


def test_a_lake_that_is_away_costs_the_log_and_not_the_step(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A file where its folder should be.
    (tmp_path / "lake").write_text("")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert speaking.execute_in_process(instance=instance).success
    assert "is not kept: the lake at" in caplog.text


def test_where_in_the_lake_they_lie_can_be_chosen(home: Path, tmp_path: Path) -> None:
    config = {**CONFIG, "compute_logs": {**CONFIG["compute_logs"], "config": {"prefix": "_x/y/"}}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        speaking.execute_in_process(instance=instance)
    lake = Lake((tmp_path / "lake").as_uri())
    assert all(item.key.startswith("_x/y/") for item in lake.list("_x"))
    assert list(lake.list("_x"))
