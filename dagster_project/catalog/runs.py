"""Runs as DataHub's process instances: one of the code location, and one of each asset's job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dagster_project.catalog.aspects import ASSET, upserts
from dagster_project.catalog.events import AssetTold, RunTold, Status
from dagster_project.catalog.links import run_link
from dagster_project.identity import Urns

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal

#: Whom DataHub's own library names as the one that reports runs.
_REPORTER = "urn:li:corpuser:datahub"
#: What a person has typed to ask for a run begins so; no automation can have a name with a space.
_COMMAND = "mesh "
#: DataHub has no word for a run that was stopped; it shows a skipped one as cancelled.
_RESULTS = {Status.SUCCEEDED: "SUCCESS", Status.FAILED: "FAILURE", Status.CANCELED: "SKIPPED"}


def run_proposals(urns: Urns, told: RunTold, ui: str) -> Iterator[Proposal]:
    """A run that began or ended."""
    from datahub.metadata.schema_classes import (
        DataProcessInstancePropertiesClass,
        DataProcessInstanceRelationshipsClass,
        DataProcessTypeClass,
    )

    scheduled, by_hand = DataProcessTypeClass.BATCH_SCHEDULED, DataProcessTypeClass.BATCH_AD_HOC
    is_by_hand = told.started_by is None or told.started_by.startswith(_COMMAND)
    urn = urns.run(told.run_id)
    yield from upserts(
        urn,
        DataProcessInstancePropertiesClass(
            name=told.run_id,
            created=_created(told),
            type=by_hand if is_by_hand else scheduled,
            externalUrl=run_link(ui, told.run_id),
            customProperties=known(
                run_id=told.run_id,
                job=told.job,
                partition=told.partition,
                retries=told.retries,
                started_by=told.started_by,
            ),
        ),
        DataProcessInstanceRelationshipsClass(
            parentTemplate=urns.flow(told.domain),
            upstreamInstances=[urns.run(told.retries)] if told.retries else [],
        ),
    )
    if told.status is Status.STARTED:
        # Which try a retry is, the record does not say.
        yield from upserts(urn, _started(told.at, attempt=None if told.retries else 1))
    else:
        yield from upserts(urn, _completed(told))


def asset_run_proposals(
    urns: Urns,
    told: AssetTold,
    ui: str,
    dataset: str | None,
    jobs: Mapping[str, Sequence[str]],
) -> Iterator[Proposal]:
    """What a run did of an asset, with its dataset and its job if the catalog has them."""
    from datahub.metadata.schema_classes import (
        DataProcessInstanceInputClass,
        DataProcessInstanceOutputClass,
        DataProcessInstancePropertiesClass,
        DataProcessInstanceRelationshipsClass,
    )

    urn, job = urns.run(told.run_id, told.asset_key), urns.job(told.domain, told.asset_key)
    asset = "/".join(told.asset_key)
    yield from upserts(
        urn,
        DataProcessInstancePropertiesClass(
            name=f"{asset} {told.run_id}",
            created=_created(told),
            externalUrl=run_link(ui, told.run_id),
            customProperties=known(run_id=told.run_id, partition=told.partition, **{ASSET: asset}),
        ),
        DataProcessInstanceRelationshipsClass(
            parentTemplate=job if job in jobs else None,
            parentInstance=urns.run(told.run_id),
            upstreamInstances=[],
        ),
    )
    # Not as edges: each run would be a node of the lineage that DataHub draws.
    if read := jobs.get(job):
        yield from upserts(urn, DataProcessInstanceInputClass(inputs=list(read)))
    if dataset and told.status is Status.SUCCEEDED:
        yield from upserts(urn, DataProcessInstanceOutputClass(outputs=[dataset]))
    if told.began is not None:
        yield from upserts(urn, _started(told.began))
    yield from upserts(urn, _completed(told))


def _created(told: RunTold | AssetTold) -> Any:
    """When it began; DataHub sorts the runs of a job by this."""
    from datahub.metadata.schema_classes import AuditStampClass

    began = told.at if told.began is None else told.began
    return AuditStampClass(time=millis(began), actor=_REPORTER)


def _started(at: float, attempt: int | None = None) -> Any:
    from datahub.metadata.schema_classes import (
        DataProcessInstanceRunEventClass,
        DataProcessRunStatusClass,
    )

    status = DataProcessRunStatusClass.STARTED
    return DataProcessInstanceRunEventClass(
        timestampMillis=millis(at), status=status, attempt=attempt, messageId=status
    )


def _completed(told: RunTold | AssetTold) -> Any:
    from datahub.metadata.schema_classes import (
        DataProcessInstanceRunEventClass,
        DataProcessInstanceRunResultClass,
        DataProcessRunStatusClass,
    )

    status = DataProcessRunStatusClass.COMPLETE
    at, took = millis(told.at), None
    if told.began is not None:
        began = millis(told.began)
        took = max(0, at - began)
        # DataHub shows the newest event: with the clocks of two machines an end can lie before the
        # beginning, and the run would seem to go on for ever.
        at = max(at, began + 1)
    return DataProcessInstanceRunEventClass(
        timestampMillis=at,
        status=status,
        result=DataProcessInstanceRunResultClass(
            type=_RESULTS[told.status], nativeResultType="dagster"
        ),
        durationMillis=took,
        messageId=status,
    )


def millis(at: float) -> int:
    """A time in seconds as DataHub has it."""
    return round(at * 1000)


def known(**properties: str | None) -> dict[str, str]:
    """Of these properties, those that are known."""
    return {name: value for name, value in properties.items() if value is not None}
