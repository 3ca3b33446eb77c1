"""What runs did, as DataHub's proposals: instances of jobs, operations, profiles and verdicts.

They follow from the record alone, so that a record that is delivered again changes nothing. DataHub
keeps one event for each entity, millisecond, partition and message id (here the run, or the status
of a run): two partitions, two runs, and a beginning and an end of the same moment are all kept.

What is said of the table of a dbt model is said of the table in PostgreSQL, not of the model: rows
lie there, DataHub's own connectors say it there, contracts and jobs name it, and of two siblings
DataHub shows the figures of the one that has some.

No error, sample, observed value or query is sent: any of them can hold personal data. There is no
`systemMetadata.runId` either: it lets one roll back what an ingestion has added, but what a run of
Dagster did is not undone by forgetting it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dagster_project.catalog.aspects import upserts
from dagster_project.catalog.events import AssetTold, Judged, RunTold, Told, Updated
from dagster_project.catalog.links import check_link
from dagster_project.catalog.runs import asset_run_proposals, known, millis, run_proposals
from dagster_project.identity import Urns

if TYPE_CHECKING:
    from datahub.metadata.schema_classes import PartitionSpecClass

    from dagster_project.catalog.aspects import Proposal

#: By the count of a load, what it did to the table's rows.
CHANGES = {"new": "INSERT", "changed": "UPDATE", "removed": "DELETE"}
_SEVERE = {"critical", "error"}


def told_proposals(
    urns: Urns,
    told: Told,
    ui: str,
    dataset: Callable[[tuple[str, ...]], str | None],
    jobs: Mapping[str, Sequence[str]],
) -> Iterator[Proposal]:
    """What DataHub is told of one record; `ui` is where Dagster's UI answers.

    `dataset` gives the URN of an asset's dataset, of a dbt model's that of its table; None if the
    catalog has none, and then only of processes is told. `jobs` are the data jobs that the
    catalog has, each with what it reads, by URN: an asset's run is one of its job, if it has one.
    """
    if isinstance(told, RunTold):
        yield from run_proposals(urns, told, ui)
    elif isinstance(told, AssetTold):
        yield from asset_run_proposals(urns, told, ui, dataset(told.asset_key), jobs)
    elif urn := dataset(told.asset_key):
        if isinstance(told, Updated):
            yield from _update(urn, told)
        else:
            yield from _verdict(urns, urn, told, ui)


def _update(urn: str, told: Updated) -> Iterator[Proposal]:
    from datahub.metadata.schema_classes import (
        DatasetProfileClass,
        OperationClass,
        OperationSourceTypeClass,
        OperationTypeClass,
    )

    changes = {kind: told.counts.get(count, 0) for count, kind in CHANGES.items()}
    happened = [kind for kind, rows in changes.items() if rows]
    # DataHub shows the last operation as the time when the data changed last.
    if not told.up_to_date and (happened or not told.counts):
        operation = OperationClass(
            timestampMillis=millis(told.at),
            lastUpdatedTimestamp=millis(told.at),
            operationType=happened[0] if len(happened) == 1 else OperationTypeClass.UPDATE,
            numAffectedRows=sum(changes.values()) if told.counts else None,
            partitionSpec=_partition(told.partition),
            messageId=told.run_id,
            sourceType=OperationSourceTypeClass.DATA_PROCESS,
            customProperties=known(run_id=told.run_id)
            | {name: str(rows) for name, rows in sorted(told.counts.items())},
        )
        yield from upserts(urn, operation)
    if told.rows is not None:
        # Of the whole table, whichever partition was loaded; DataHub shows those of partitions
        # apart.
        profile = DatasetProfileClass(
            timestampMillis=millis(told.at),
            rowCount=told.rows,
            columnCount=told.columns,
            messageId=told.run_id,
        )
        yield from upserts(urn, profile)


def _verdict(urns: Urns, urn: str, told: Judged, ui: str) -> Iterator[Proposal]:
    from datahub.metadata.schema_classes import (
        AssertionResultClass,
        AssertionResultErrorClass,
        AssertionResultErrorTypeClass,
        AssertionResultSeverityClass,
        AssertionResultTypeClass,
        AssertionRunEventClass,
        AssertionRunStatusClass,
    )

    severity = error = None
    if not told.evaluated:
        found = AssertionResultTypeClass.ERROR
        error = AssertionResultErrorClass(type=AssertionResultErrorTypeClass.UNKNOWN_ERROR)
    elif told.passed:
        found = AssertionResultTypeClass.SUCCESS
    else:
        found = AssertionResultTypeClass.FAILURE
        is_severe = told.severity.lower() in _SEVERE
        severities = AssertionResultSeverityClass
        severity = severities.HIGH if is_severe else severities.LOW
    event = AssertionRunEventClass(
        timestampMillis=millis(told.at),
        assertionUrn=urns.check(told.asset_key, told.check),
        asserteeUrn=urn,
        runId=told.run_id or "",
        messageId=told.run_id,
        status=AssertionRunStatusClass.COMPLETE,
        partitionSpec=_partition(told.partition),
        result=AssertionResultClass(
            type=found,
            severity=severity,
            rowCount=told.rows,
            unexpectedCount=told.unexpected,
            externalUrl=check_link(ui, told.asset_key, told.check),
            nativeResults={"severity": told.severity},
            error=error,
        ),
    )
    yield from upserts(event.assertionUrn, event)


def _partition(partition: str | None) -> PartitionSpecClass | None:
    """DataHub's server refuses a specification that has the window of time beside the key."""
    from datahub.metadata.schema_classes import PartitionSpecClass

    return None if partition is None else PartitionSpecClass(partition=partition)
