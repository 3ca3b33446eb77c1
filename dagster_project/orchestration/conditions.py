"""When assets run by themselves: because of what happened to what they depend on.

An update is a change of the data version: what was loaded or built again and is the same starts
nothing. What a run makes together with what it depends on is handled by that run. The rest waits
until everything that is going has ended, so that a burst of updates becomes one run, and as long as
a blocking check of something that is read stands failed.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

#: For a check that is made by the step of its asset. Automation that asks for such a step names the
#: check, and then takes only the checks that are named; unless one of them has a condition: then
#: it takes all.
NEVER_ALONE: dg.AutomationCondition[Any] = (
    dg.AutomationCondition.in_progress() & ~dg.AutomationCondition.in_progress()
).with_label("with its asset only")


def _changed() -> dg.AutomationCondition[Any]:
    """Of what an asset depends on: it has other data, and no run has made both."""
    elsewhere = ~dg.AutomationCondition.executed_with_root_target()
    return dg.AutomationCondition.data_version_changed() & elsewhere


def _unsound() -> dg.AutomationCondition[Any]:
    """Of what an asset depends on: a blocking check of it failed, or is about to be run.

    Not that it has passed: where a run failed before a check, because a source was away, the check
    has said nothing since, and what it is of may have been sound for a year. Who reads the table
    asks what the check said last, anyway.
    """
    open_ = dg.AutomationCondition.check_failed() | dg.AutomationCondition.in_progress()
    return dg.AutomationCondition.any_checks_match(open_, blocking_only=True)


def _once_all_is_quiet(
    updated: dg.AutomationCondition[Any], label: str
) -> dg.AutomationCondition[Any]:
    return (
        updated.since_last_handled()
        & ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_match(_unsound())
    ).with_label(label)


def when_inputs_change() -> dg.AutomationCondition[Any]:
    """For what is built whole: once any of its inputs has other data, and these are sound."""
    updated = dg.AutomationCondition.any_deps_match(_changed())
    return _once_all_is_quiet(updated, "when its inputs have changed and passed")


def when_synced() -> dg.AutomationCondition[Any]:
    """For a raw table: with the sync if that is asked for, after it if it brought anything."""
    updated = dg.AutomationCondition.any_deps_match(
        _changed() | dg.AutomationCondition.will_be_requested()
    )
    return _once_all_is_quiet(updated, "when its stream was synced")


def when_source_reports() -> dg.AutomationCondition[Any]:
    """For what brings data from a source system: once somebody reports that there are new ones."""
    reported = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.newly_updated())
    return (reported.since_last_handled() & ~dg.AutomationCondition.in_progress()).with_label(
        "when its source reports new data"
    )


def automation(domain: str) -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions of a domain's assets, all together, from the first day on."""
    return dg.AutomationConditionSensorDefinition(
        name=f"{domain}_automation",
        target=dg.AssetSelection.groups(domain),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=5,
        description="Runs what has to be made anew because of what happened to its inputs.",
    )
