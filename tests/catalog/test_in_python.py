"""Assets in Python, which no file declares, are told of as the others are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import dagster as dg
import pytest

from dagster_project.catalog.datasets import Dataset, Models
from dagster_project.catalog.files import as_record
from dagster_project.catalog.metadata import InPython, assets, of_domain, static_metadata
from dagster_project.cli import in_python as module
from dagster_project.cli.in_python import in_python
from dagster_project.domain import domain_names
from dagster_project.failures import DeclarationError
from dagster_project.identity import Table, Urns
from dagster_project.locations import location
from dagster_project.settings import PROJECT, get_settings
from dagster_project.transformation.project import read_manifest

PLANES = ("fleet", "dim_planes")
SHAPE = dg.TableSchema([dg.TableColumn("manufacturer", "text", "Who built it.")])


@dg.asset(
    key_prefix="fleet",
    deps=[list(PLANES), ["elsewhere"]],
    kinds={"python", "postgres"},
    metadata={"dagster/column_schema": SHAPE},
)
def seats_by_manufacturer() -> None:
    """Seats of all aircraft by manufacturer."""


@dg.asset(key_prefix=["fleet", "reports"], deps=[seats_by_manufacturer])
def poster() -> None:
    """A picture (of seats, many)."""


@dg.asset_check(asset=seats_by_manufacturer, blocking=True)
def seats_positive() -> dg.AssetCheckResult:
    """No manufacturer has fewer than one seat."""
    return dg.AssetCheckResult(passed=True)


@dg.asset(key_prefix="fleet")
def registrations() -> None:
    """What somebody has asked a register for."""


@dg.asset_check(asset=registrations)
def registrations_found() -> dg.AssetCheckResult:
    """The register has answered."""
    return dg.AssetCheckResult(passed=True)


DEFINITIONS = dg.Definitions(
    assets=[seats_by_manufacturer, poster, registrations],
    asset_checks=[seats_positive, registrations_found],
)


@pytest.fixture
def found(
    urns: Urns, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> InPython:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "seats.py").write_text("# There is Python here.\n")
    monkeypatch.setattr(module, "domain_folder", lambda name: folder)
    monkeypatch.setattr(location, "domain_definitions", lambda name: DEFINITIONS)
    return in_python(urns, "fleet", {PLANES: urns.table(Table(*PLANES))})


def test_each_is_a_dataset_with_what_it_is_made_of(found: InPython, urns: Urns) -> None:
    _, poster, seats = found.datasets
    table = urns.table(Table("fleet", "seats_by_manufacturer"))
    assert (seats.urn, seats.kind) == (table, "Table")
    assert seats.upstreams == (urns.table(Table(*PLANES)),)
    assert [(each.name, each.type) for each in seats.columns] == [("manufacturer", "text")]
    assert seats.description == "Seats of all aircraft by manufacturer."
    assert poster.urn == "urn:li:dataset:(urn:li:dataPlatform:dagster,fleet/reports/poster,DEV)"
    assert poster.upstreams == (table,)


def test_all_of_it_is_told(found: InPython, urns: Urns) -> None:
    dbt = Models(read_manifest(), {}, {})
    told = of_domain(urns, "fleet", dbt, found.datasets, found.checks, "http://ui")
    records = [as_record(proposal) for proposal in told]
    of = {
        (record["entityUrn"], record["aspectName"]): record["aspect"]["json"] for record in records
    }
    for dataset in found.datasets:
        assert (dataset.urn, "ownership") in of
        assert of[dataset.urn, "domains"]["domains"] == [urns.domain("fleet")]
        job = of[urns.job("fleet", dataset.asset_key), "dataJobInputOutput"]
        assert [edge["destinationUrn"] for edge in job["outputDatasetEdges"]] == [dataset.urn]
    # What columns a picture has, nobody has said; of a table its own connector may.
    asked, poster, seats = found.datasets
    assert (poster.urn, "schemaMetadata") not in of
    assert [field["fieldPath"] for field in of[seats.urn, "schemaMetadata"]["fields"]]
    check = urns.check(("fleet", "seats_by_manufacturer"), "seats_positive")
    said = of[check, "assertionInfo"]
    assert said["description"] == "No manufacturer has fewer than one seat."
    assert said["customProperties"] == {"severity": "critical", "blocking": "true"}
    # Of what is no table, too: verdicts name it.
    check = urns.check(("fleet", "registrations"), "registrations_found")
    assert of[check, "assertionInfo"]["customAssertion"]["entity"] == asked.urn
    assert asked.urn == "urn:li:dataset:(urn:li:dataPlatform:dagster,fleet/registrations,DEV)"


def test_what_runs_did_of_them_is_told_of_these_datasets(found: InPython) -> None:
    known = assets(get_settings(), lambda _, name, __: found if name == "fleet" else InPython())
    for dataset in found.datasets:
        assert known.datasets[dataset.asset_key] == dataset.urn
    assert known.datasets[PLANES].startswith("urn:li:dataset:(urn:li:dataPlatform:postgres,")


def test_what_is_made_of_another_domain_s_python_is_found_whichever_is_named_first() -> None:
    """Fleet is used by flights, and weather by it too."""
    there: dict[str, list[str]] = {}

    def find(urns: Urns, name: str, known: Mapping[tuple[str, ...], str]) -> InPython:
        there[name] = [key[0] for key in known if key[1:] == ("in_python",)]
        key = (name, "in_python")
        return InPython([Dataset(urns.asset(key), key, name, "in_python", "Asset", "", ())])

    assets(get_settings(), find)
    assert set(there["flights"]) >= {"fleet", "weather"}
    there.clear()
    list(static_metadata(get_settings(), in_python=find))
    assert set(there["flights"]) >= {"fleet", "weather"}
    assert there.keys() == set(domain_names())


def test_a_domain_without_python_is_not_loaded(urns: Urns, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Iterator[None]:
        raise AssertionError(name)

    monkeypatch.setattr(location, "domain_definitions", load)
    assert in_python(urns, "fleet", {}) == InPython()


def test_python_that_does_not_load_is_a_mistake_in_the_domain_s_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing that the deliverer breaks at."""

    def broken(name: str) -> dg.Definitions:
        raise SyntaxError("invalid syntax (seats.py, line 3)")

    monkeypatch.setattr(location, "domain_definitions", broken)
    monkeypatch.setattr(module, "domain_folder", lambda name: PROJECT / "dagster_project")
    with pytest.raises(DeclarationError, match=r"does not load: SyntaxError: .*seats\.py, line 3"):
        in_python(Urns("DEV", "warehouse", "file:///lake"), "fleet", {})
