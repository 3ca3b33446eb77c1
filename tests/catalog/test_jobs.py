"""Whatever an asset of ours makes, a job has made, be it of nothing; what others make, none has."""

from __future__ import annotations

from typing import Any

import pytest

from dagster_project.catalog.aspects import dataset_proposals
from dagster_project.catalog.datasets import Dataset
from dagster_project.catalog.files import as_record
from dagster_project.catalog.jobs import job_proposals, jobs_of
from dagster_project.domain import read_domain
from dagster_project.identity import Table, Urns

URNS = Urns("DEV", "warehouse", "file:///lake")
CALENDAR = Table("fleet", "calendar")


def dataset(**more: Any) -> Dataset:
    return Dataset(
        urn=URNS.table(CALENDAR),
        asset_key=CALENDAR.asset_key,
        domain="fleet",
        name="calendar",
        kind="Table",
        description="The days of a year.",
        columns=(),
        **more,
    )


def told(of: Dataset) -> dict[tuple[str, str], Any]:
    proposals = [
        *dataset_proposals(URNS, of, "urn:li:corpuser:ann"),
        *job_proposals(URNS, "fleet", read_domain("fleet"), [of], "http://ui"),
    ]
    records = [as_record(each) for each in proposals]
    return {(each["entityUrn"], each["aspectName"]): each["aspect"]["json"] for each in records}


@pytest.mark.parametrize("upstreams", [(), (URNS.table(Table("fleet", "dim_planes")),)])
def test_what_is_made_of_nothing_has_a_job_and_says_so(upstreams: tuple[str, ...]) -> None:
    """What it was made of before is no longer in its lineage then."""
    of = dataset(upstreams=upstreams)
    ((job, read),) = jobs_of(URNS, [of])
    assert read == list(upstreams)
    found = told(of)
    edges = found[job, "dataJobInputOutput"]
    assert [edge["destinationUrn"] for edge in edges["inputDatasetEdges"]] == list(upstreams)
    assert [edge["destinationUrn"] for edge in edges["outputDatasetEdges"]] == [of.urn]
    lineage = found[of.urn, "upstreamLineage"]
    assert [each["dataset"] for each in lineage["upstreams"]] == list(upstreams)


def test_what_a_system_outside_makes_has_no_job_and_its_lineage_is_left_to_people() -> None:
    of = dataset(is_from_outside=True)
    assert list(jobs_of(URNS, [of])) == []
    found = told(of)
    assert (of.urn, "upstreamLineage") not in found
    assert {urn for urn, _ in found} == {of.urn, URNS.flow("fleet")}
