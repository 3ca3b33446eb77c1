"""A dataset as DataHub's aspects."""

from __future__ import annotations

from typing import Any

import pytest

from dagster_project.catalog.aspects import field_type
from dagster_project.ingestion import kinds
from dagster_project.ingestion.feed import _TYPES as FEED_TYPES

#: By what a column holds, what PostgreSQL, Parquet and JSON call it.
TYPES = {
    "Number": ["bigint", "integer", "numeric(12,2)", "numeric", "int64", "float64", "number"],
    "Boolean": ["boolean", "bool"],
    "String": ["text", "string", "string (email)", "string or object"],
    "Date": ["date", "date32", "string (date)"],
    "Time": ["timestamptz", "timestamp with time zone", "string (date-time)"],
    "Bytes": ["jsonb", "object"],
    "Array": ["array", "text[]"],
    "Null": ["something of an extension"],
}


@pytest.mark.parametrize(
    ("native", "expected"), [(name, kind) for kind, names in TYPES.items() for name in names]
)
def test_a_type_of_each_system_has_datahub_s_word(native: str, expected: str) -> None:
    assert type(field_type(native).type).__name__ == f"{expected}TypeClass"


def test_every_type_that_a_stream_or_a_feed_can_have_is_known() -> None:
    declared = [kind for kind in vars(kinds).values() if isinstance(kind, kinds.Kind)]
    assert declared
    for native in (
        *FEED_TYPES,
        *(name for kind in declared for name in (kind.arrow, kind.postgres)),
    ):
        assert type(field_type(native).type).__name__ != "NullTypeClass", native


def test_a_key_is_never_null_and_says_that_it_is_one(datasets: dict[str, dict[str, Any]]) -> None:
    planes = next(d for urn, d in datasets.items() if "postgres,warehouse.fleet.dim_planes," in urn)
    told = planes["schemaMetadata"]
    assert told["primaryKeys"] == ["tailnum"]
    keys = {f["fieldPath"]: (f["isPartOfKey"], f["nullable"]) for f in told["fields"]}
    assert keys["tailnum"] == (True, False)
    assert keys["manufacturer"] == (False, True)
