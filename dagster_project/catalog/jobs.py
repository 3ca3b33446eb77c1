"""What makes the datasets: a code location is a data flow, and what makes an asset is a job of it.

A job reads and writes what its datasets say of themselves, so that the graph is the same one with
jobs and without them. Which runs there were of a job, the runs tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from dagster_project.catalog.aspects import owned, upserts
from dagster_project.catalog.datasets import Dataset
from dagster_project.catalog.links import asset_link
from dagster_project.domain import Domain
from dagster_project.identity import Urns

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal


def job_proposals(
    urns: Urns, name: str, domain: Domain, datasets: Iterable[Dataset], ui: str
) -> Iterator[Proposal]:
    """A domain's code location, with a job for each asset; `ui` is where Dagster's UI answers."""
    from datahub.metadata.schema_classes import DataFlowInfoClass, DomainsClass, StatusClass

    flow, owner = urns.flow(name), urns.owner(domain.owner)
    info = DataFlowInfoClass(
        name=name,
        description=f"The pipelines of {name}: from its sources to its data products.",
        externalUrl=f"{ui}/locations/{name}",
        env=urns.fabric,
    )
    member = DomainsClass(domains=[urns.domain(name)])
    yield from upserts(flow, info, member, StatusClass(removed=False))
    yield from owned(flow, owner)
    # A model and its table, which come one after the other, are one asset.
    for key, parts in groupby(datasets, key=lambda dataset: dataset.asset_key):
        yield from _job(urns, key, list(parts), owner, asset_link(ui, key))


def jobs_of(urns: Urns, datasets: Iterable[Dataset]) -> Iterator[tuple[str, list[str]]]:
    """The jobs that `job_proposals` tells of: each one's URN, and those of what it reads."""
    for key, group in groupby(datasets, key=lambda dataset: dataset.asset_key):
        parts = list(group)
        if not parts[-1].is_from_outside:
            yield urns.job(parts[-1].domain, key), _read(parts)


def _read(parts: list[Dataset]) -> list[str]:
    """What the asset of these datasets is made of."""
    made = {dataset.urn for dataset in parts}
    return sorted({urn for dataset in parts for urn in dataset.upstreams} - made)


def _job(
    urns: Urns, key: tuple[str, ...], parts: list[Dataset], owner: str, link: str
) -> Iterator[Proposal]:
    from datahub.metadata.schema_classes import (
        DataJobInfoClass,
        DataJobInputOutputClass,
        DomainsClass,
        EdgeClass,
        StatusClass,
    )

    last = parts[-1]
    if last.is_from_outside:
        return
    urn = urns.job(last.domain, key)
    yield from upserts(
        urn,
        DataJobInfoClass(
            name="/".join(key),
            type="Dagster asset",
            description=last.description,
            flowUrn=urns.flow(last.domain),
            externalUrl=link,
            env=urns.fabric,
        ),
        DataJobInputOutputClass(
            inputDatasets=[],
            outputDatasets=[],
            inputDatasetEdges=[EdgeClass(destinationUrn=urn) for urn in _read(parts)],
            outputDatasetEdges=[EdgeClass(destinationUrn=last.urn)],
        ),
        DomainsClass(domains=[urns.domain(last.domain)]),
        StatusClass(removed=False),
    )
    yield from owned(urn, owner)
