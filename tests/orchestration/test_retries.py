"""Which failures of a step are tried again, and how often."""

from collections.abc import Iterator

import dagster as dg
import pytest

from dagster_project.failures import LakeError, MeshError, TransientLakeError
from dagster_project.orchestration import retries
from dagster_project.orchestration.retries import retried
from dagster_project.settings import get_settings


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0)
    monkeypatch.setenv("MESH_STEP_RETRIES", "2")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def run(*failures: Exception) -> tuple[dg.ExecuteInProcessResult, list[int]]:
    """A step that fails with these, one after the other, and passes then; its tries."""
    tries: list[int] = []
    waiting = list(failures)

    @dg.multi_asset(specs=[dg.AssetSpec("table")])
    @retried
    def step(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        tries.append(context.retry_number)
        if waiting:
            raise waiting.pop(0)
        yield dg.MaterializeResult(metadata={"rows": 3})

    return dg.materialize([step], raise_on_error=False), tries


def test_what_can_pass_by_itself_is_tried_again() -> None:
    result, tries = run(TransientLakeError("away"), TransientLakeError("still away"))
    assert result.success
    assert tries == [0, 1, 2]
    (made,) = result.get_asset_materialization_events()
    assert made.materialization.metadata["rows"].value == 3


def test_and_no_more_often_than_is_set() -> None:
    result, tries = run(*(TransientLakeError(f"away for the {n}th time") for n in range(5)))
    assert not result.success
    assert tries == [0, 1, 2]
    (failed,) = result.get_step_failure_events()
    assert "away for the 2th time" in failed.step_failure_data.error_display_string


@pytest.mark.parametrize("failure", [LakeError("no such bucket"), KeyError("a mistake")])
def test_what_a_rerun_cannot_mend_is_not(failure: MeshError | KeyError) -> None:
    result, tries = run(failure)
    assert not result.success
    assert tries == [0]


def test_a_step_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    result, _ = run(TransientLakeError("away"), TransientLakeError("still away"))
    waits = [
        event.event_specific_data.seconds_to_wait
        for event in result.all_events
        if event.is_step_up_for_retry
    ]
    assert waits == [0.01, 0.01 * retries.LONGER]
