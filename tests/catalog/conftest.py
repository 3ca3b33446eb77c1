"""What is told of the reference domains, made once for all tests of it."""

from __future__ import annotations

from typing import Any

import pytest

from dagster_project.catalog.files import as_record
from dagster_project.catalog.graph import Graph, read_graph
from dagster_project.catalog.metadata import static_metadata, urns_of
from dagster_project.identity import Urns
from dagster_project.settings import get_settings


@pytest.fixture(scope="session")
def urns() -> Urns:
    return urns_of(get_settings())


@pytest.fixture(scope="session")
def said() -> list[str]:
    """What was said while the records were made."""
    return []


@pytest.fixture(scope="session")
def records(said: list[str]) -> list[dict[str, Any]]:
    return [as_record(proposal) for proposal in static_metadata(get_settings(), said.append)]


@pytest.fixture(scope="session")
def graph(records: list[dict[str, Any]]) -> Graph:
    return read_graph(records)


@pytest.fixture(scope="session")
def datasets(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By URN, the aspects of each dataset."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["entityType"] == "dataset":
            found.setdefault(record["entityUrn"], {})[record["aspectName"]] = record["aspect"][
                "json"
            ]
    return found
