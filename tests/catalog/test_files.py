"""The file that DataHub ingests: there whole or as it was, and what DataHub would refuse of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dagster_project.catalog.aspects import owned, upserts
from dagster_project.catalog.files import as_record, read, write
from dagster_project.catalog.validation import faults
from dagster_project.failures import CatalogError

PLANES = "urn:li:dataset:(urn:li:dataPlatform:postgres,warehouse.fleet.dim_planes,DEV)"
Record = dict[str, Any]


def told() -> Iterator[Record]:
    from datahub.metadata.schema_classes import (
        DatasetLineageTypeClass,
        DatasetPropertiesClass,
        UpstreamClass,
        UpstreamLineageClass,
    )

    made_of = UpstreamClass(dataset=PLANES, type=DatasetLineageTypeClass.COPY)
    yield from map(as_record, upserts(PLANES, DatasetPropertiesClass(name="größe")))
    yield from map(as_record, upserts(PLANES, UpstreamLineageClass(upstreams=[made_of])))
    yield from map(as_record, owned(PLANES, "urn:li:corpGroup:fleet-data"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog" / "metadata.json"


def test_a_file_is_an_array_with_a_record_a_line(path: Path) -> None:
    write(path, told())
    first, *lines, last = path.read_text(encoding="utf-8").splitlines()
    assert (first, last) == ("[", "]")
    assert [json.loads(line.rstrip(",")) for line in lines] == read(path)
    assert [record["changeType"] for record in read(path)] == ["UPSERT", "UPSERT", "PATCH"]
    assert list(faults(path)) == []


def test_what_else_a_file_holds_can_be_kept_and_is_read_before_it(path: Path) -> None:
    first, second, third, *_ = told()
    write(path, [first])
    # The same again, and more.
    write(path, [first, second], keep=True)
    assert [each.name for each in path.parent.iterdir()] == ["metadata.json"]
    write(path, [third], keep=True)
    write(path, [second], keep=True)
    files = sorted(path.parent.iterdir())
    assert [each.name for each in files] == [
        "metadata-001.json",
        "metadata-002.json",
        "metadata.json",
    ]
    assert [read(each) for each in files] == [[first, second], [third], [second]]


def test_a_file_of_nothing_is_one(path: Path) -> None:
    write(path, ())
    assert read(path) == list(faults(path)) == []


def test_who_reads_the_file_while_it_is_written_anew_reads_one_or_the_other(path: Path) -> None:
    write(path, told())
    before = path.read_text(encoding="utf-8")
    with path.open(encoding="utf-8") as reading:
        write(path, ())
        assert reading.read() == before
    assert read(path) == []


def test_what_fails_in_the_middle_leaves_the_file_as_it_was(path: Path) -> None:
    write(path, told())
    before = path.read_bytes()

    def broken() -> Iterator[Record]:
        yield from told()
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write(path, broken())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not there: `mesh catalog emit` writes it"),
        ("[\n{]", "metadata.json:2: not valid JSON"),
        ("{}", "holds no array of records"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(
    path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    with pytest.raises(CatalogError) as refused:
        read(path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("number", "spoil", "said"),
    [
        (1, lambda r: r.update(entityUrn="urn:li:dataset:planes"), "is no URN"),
        (1, lambda r: r.update(entityUrn="planes"), "is no URN"),
        (1, lambda r: r.update(entityType="chart"), "its URN is of a dataset, not of a chart"),
        (1, lambda r: r.update(aspectName="datasetProps"), "DataHub has no such aspect"),
        (1, lambda r: r.update(aspectName="domainProperties"), "a dataset cannot have this aspect"),
        (1, lambda r: r.pop("aspect"), "is no proposal of an aspect"),
        (1, lambda r: r.update(aspect={"json": {}}), "is no proposal of an aspect"),
        (1, lambda r: r.update(changeType="REPLACE"), "not of DataHub's schema"),
        (1, lambda r: r["aspect"]["json"].update(nom="x"), "has no such field: nom"),
        (
            2,
            lambda r: r["aspect"]["json"]["upstreams"][0].update(kind="COPY"),
            "has no such field: upstreams.kind",
        ),
        (1, lambda r: r["aspect"]["json"].update(name=3), "not of DataHub's schema"),
        (1, lambda r: r.update(aspect=None), "is no proposal of an aspect"),
        (
            2,
            lambda r: r["aspect"]["json"]["upstreams"][0].pop("dataset"),
            "missing required field: dataset",
        ),
        (
            2,
            lambda r: r["aspect"]["json"]["upstreams"][0].update(dataset="urn:li:dataset:(a,b)"),
            "urn:li:dataset:(a,b) is no URN",
        ),
        (3, lambda r: r["aspect"]["json"].update(patch=[]), "no operations of a JSON patch"),
        (3, lambda r: r["aspect"]["json"]["patch"][0].update(op="put"), "adds or removes"),
        (3, lambda r: r["aspect"]["json"]["patch"][0].update(path="owners"), "such as /owners"),
    ],
)
def test_a_record_that_datahub_would_refuse_is_named_with_what_is_wrong(
    path: Path, number: int, spoil: Callable[[Record], Any], said: str
) -> None:
    write(path, told())
    records = copy.deepcopy(read(path))
    spoil(records[number - 1])
    path.write_text(json.dumps(records))
    (fault,) = faults(path)
    assert fault.startswith(f"{path}: record {number}: ")
    assert said in fault
