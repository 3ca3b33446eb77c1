"""When automation asks for what is built of others, and when it waits."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from dagster_project.orchestration.conditions import when_inputs_change

STATE = {"broken": False, "sound": True, "version": 0}


@dg.asset
def dim() -> dg.MaterializeResult:
    assert not STATE["broken"], "the source is away"
    return dg.MaterializeResult(data_version=dg.DataVersion("as ever"))


@dg.asset_check(asset=dim, blocking=True)
def dim_sound() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=STATE["sound"])


@dg.asset
def fact() -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion(f"version {STATE['version']}"))


@dg.asset(deps=[dim, fact], automation_condition=when_inputs_change())
def mart() -> None: ...


DEFINITIONS = dg.Definitions(assets=[dim, fact, mart], asset_checks=[dim_sound])


class Platform:
    """An instance, and what automation has seen of it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self._cursor: dg.AutomationConditionEvaluation | None = None
        for each in ([dim, dim_sound], [fact], [mart]):
            assert self.run(*each)
        self.asks()

    def run(self, *what: object) -> bool:
        """One run of these; whether it succeeded."""
        keys = [each.key for each in what if each is not dim_sound]
        selection = dg.AssetSelection.assets(*keys).without_checks()
        if dim_sound in what:
            selection |= dg.AssetSelection.checks(dim_sound)
        job = dg.define_asset_job("some", selection)
        defs = dg.Definitions.merge(DEFINITIONS, dg.Definitions(jobs=[job]))
        resolved = defs.resolve_job_def("some")
        return resolved.execute_in_process(instance=self.instance, raise_on_error=False).success

    def asks(self) -> int:
        """A look of automation: for how many assets it asks."""
        result = dg.evaluate_automation_conditions(
            DEFINITIONS, instance=self.instance, cursor=self._cursor
        )
        self._cursor = result.cursor
        return result.total_requested

    def change(self) -> None:
        """The fact has other data."""
        STATE["version"] += 1
        assert self.run(fact)


@pytest.fixture
def platform() -> Iterator[Platform]:
    STATE.update(broken=False, sound=True)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(instance)


def test_other_data_of_an_input_are_asked_for_once(platform: Platform) -> None:
    assert platform.asks() == 0
    platform.change()
    assert platform.asks() == 1
    assert platform.asks() == 0
    # The same data again.
    assert platform.run(fact)
    assert platform.asks() == 0


def test_as_long_as_a_blocking_check_of_an_input_stands_failed_it_waits(
    platform: Platform,
) -> None:
    STATE["sound"] = False
    assert not platform.run(dim, dim_sound)
    platform.change()
    assert platform.asks() == 0
    STATE["sound"] = True
    assert platform.run(dim, dim_sound)
    assert platform.asks() == 1


def test_a_run_that_failed_before_the_check_holds_up_nobody(platform: Platform) -> None:
    STATE["broken"] = True
    assert not platform.run(dim, dim_sound)
    platform.change()
    assert platform.asks() == 1
