"""The check of a table's newest profiles against those before them: it warns and stops nothing."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from dagster_project.identity import Table
from dagster_project.quality.drift import examine
from dagster_project.quality.drift_report import DriftReport
from dagster_project.quality.masking import without_values
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.own_checks import DRIFT, DRIFT_ASKS
from dagster_project.quality.suites import Drift
from dagster_project.transformation.versions import Built, read_built
from dagster_project.warehouse.connection import masked
from dagster_project.warehouse.ledger import digest

_EVALUATED = {
    AssetCheckExecutionRecordStatus.SUCCEEDED,
    AssetCheckExecutionRecordStatus.FAILED,
}
#: What a verdict is about.
_VERSION = "version"


def drift_check(table: Table) -> dg.AssetCheckSpec:
    """The check's spec."""
    return dg.AssetCheckSpec(
        name=DRIFT,
        asset=dg.AssetKey(list(table.asset_key)),
        description=DRIFT_ASKS,
    )


def drift_result(
    context: dg.AssetCheckExecutionContext,
    url: str,
    table: Table,
    drift: Drift,
    partitions: Partitions | None,
    personal: Sequence[str],
) -> dg.AssetCheckResult:
    """The verdict; that of the same rows stands, as their profiles do.

    What stops it is the verdict too, and nothing is raised: other checks of the table lose nothing.
    """
    key = dg.AssetCheckKey(dg.AssetKey(list(table.asset_key)), DRIFT)
    about = {"partitions": str(partitions)} if partitions else {}
    try:
        return _judged(context, url, table, drift, partitions, personal, key, about)
    except Exception as error:
        # A trace would quote what personal data the error does.
        context.log.error(f"drift of {table} could not be judged", exc_info=not personal)
        said = without_values(str(error)) if personal else str(error)
        why = f"could not be evaluated: {type(error).__name__}: {masked(said)}"
        # Without the version: the next run looks anew.
        return _verdict(key, False, why, {**about, "could not be evaluated": why})


def _judged(
    context: dg.AssetCheckExecutionContext,
    url: str,
    table: Table,
    drift: Drift,
    partitions: Partitions | None,
    personal: Sequence[str],
    key: dg.AssetCheckKey,
    about: Mapping[str, Any],
) -> dg.AssetCheckResult:
    version = _version(read_built(url), table, partitions)
    history = context.instance.event_log_storage.get_asset_check_execution_history(
        key, limit=1, status=_EVALUATED
    )
    last = history[0].evaluation if history else None
    if version and last and (seen := last.metadata.get(_VERSION)) and seen.value == version:
        return _verdict(key, last.passed, last.description or "", dict(last.metadata))
    report = examine(url, table, partitions, version or context.run.run_id, personal, drift.exclude)
    metadata = {_VERSION: version, **about, **_shown(report)}
    return _verdict(key, report.passed, report.description, metadata)


def _version(built: Built, table: Table, partitions: Partitions | None) -> str:
    """Of what is judged: the table, or these partitions of it; empty if nothing is known of it."""
    if partitions is None:
        return built.version(table)
    held = built.raw_partitions.get(table) or built.model_partitions.get(table) or {}
    known = [f"{key}={held[key]}" for key in partitions.keys if key in held]
    return digest(*known) if known else ""


def _shown(report: DriftReport) -> dict[str, Any]:
    if report.passed:
        return {}
    return {
        "alarms": len(report.alarms),
        "not as usual": dg.MetadataValue.md(report.table),
        "picture": dg.MetadataValue.md(f"```text\n{report.picture}\n```"),
    }


def _verdict(
    key: dg.AssetCheckKey, passed: bool, description: str, metadata: dict[str, Any]
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata=metadata,
    )
