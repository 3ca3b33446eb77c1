"""What is gone is told to be gone, and nothing else is taken from anybody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from datahub.metadata.schema_classes import StatusClass
from datahub.specific.dataproduct import DataProductPatchBuilder

from dagster_project.catalog.aspects import owned, upserts
from dagster_project.catalog.assertions import Check, assertion_proposals
from dagster_project.catalog.files import as_record
from dagster_project.catalog.graph import read_graph
from dagster_project.catalog.withdrawal import Record, takes_back
from dagster_project.catalog.withdrawal import withdrawn as withdrawn_by
from dagster_project.identity import Table, Urns
from tests.catalog.gms import KEYS, patched

ONE, TWO = (
    f"urn:li:dataset:(urn:li:dataPlatform:postgres,warehouse.fleet.{name},DEV)"
    for name in ("one", "two")
)
PRODUCT = "urn:li:dataProduct:fleet.register"
ANN, BOB = "urn:li:corpuser:ann", "urn:li:corpuser:bob"
Records = list[dict[str, Any]]


def withdrawn(before: Iterable[Record], now: Iterable[Record]) -> Iterator[Record]:
    """By the environment that speaks for all."""
    return withdrawn_by(before, now, speaks_for_all=True)


def dataset(urn: str, owner: str) -> Records:
    proposals = chain(upserts(urn, StatusClass(removed=False)), owned(urn, owner))
    return [as_record(proposal) for proposal in proposals]


def product(*assets: str) -> Records:
    patch = DataProductPatchBuilder(PRODUCT).set_name("Register")
    for asset in assets:
        patch.add_asset(asset, output_port=True)
    return [as_record(proposal) for proposal in patch.build()]


def test_what_is_still_so_is_not_taken_back() -> None:
    before = [*dataset(ONE, ANN), *product(ONE)]
    assert list(withdrawn(before, [*before, *dataset(TWO, BOB)])) == []
    assert list(withdrawn([], before)) == []


def test_a_dataset_that_is_gone_is_marked_removed_until_it_is_there_again() -> None:
    before, now = [*dataset(ONE, ANN), *dataset(TWO, ANN)], dataset(ONE, ANN)
    gone = list(withdrawn(before, now))
    assert gone[-1]["entityUrn"] == TWO
    assert gone[-1]["aspect"] == {"json": {"removed": True}}
    assert all(takes_back(record) for record in gone)
    assert list(withdrawn([*now, *gone], now)) == gone
    assert list(withdrawn([*now, *gone], before)) == []
    assert read_graph([*now, *gone]).nodes.keys() == {ONE}


def test_what_returns_has_the_owner_and_the_assets_of_now_and_not_of_then() -> None:
    first = [*dataset(ONE, ANN), *product(ONE, TWO)]
    then = list(withdrawn(first, []))
    now = [*dataset(ONE, BOB), *product(TWO)]
    server: dict[tuple[str, str], dict[str, Any]] = {}
    for record in (*first, *then, *now, *withdrawn(then, now)):
        where = record["entityUrn"], record["aspectName"]
        said = record["aspect"]["json"]
        is_patch = record["changeType"] == "PATCH"
        keys = KEYS.get(record["aspectName"], {})
        server[where] = patched(server.get(where, {}), said, keys) if is_patch else said
    assert server[ONE, "status"] == {"removed": False}
    assert [each["owner"] for each in server[ONE, "ownership"]["owners"]] == [BOB]
    offered = server[PRODUCT, "dataProductProperties"]
    assert offered["name"] == "Register"
    assert [each["destinationUrn"] for each in offered["assets"]] == [TWO]


def test_an_owner_who_is_no_longer_named_is_removed_and_no_other() -> None:
    before, now = dataset(ONE, ANN), dataset(ONE, BOB)
    (gone,) = withdrawn(before, now)
    told = next(record for record in before if record["aspectName"] == "ownership")
    (added,) = told["aspect"]["json"]["patch"]
    assert gone["aspect"]["json"] == {
        "arrayPrimaryKeys": told["aspect"]["json"]["arrayPrimaryKeys"],
        "patch": [{"op": "remove", "path": added["path"], "value": {}}],
    }
    assert ANN in added["path"]
    assert takes_back(gone)
    assert list(withdrawn([*now, gone], now)) == [gone]
    assert list(withdrawn([*now, gone], before)) != [gone]
    assert read_graph([*now, gone]).nodes[ONE].owners == [BOB]


def test_a_table_that_a_data_product_has_no_more_leaves_it() -> None:
    (gone,) = withdrawn(product(ONE, TWO), product(TWO))
    assert gone["aspect"]["json"] == [{"op": "remove", "path": f"/assets/{ONE}", "value": {}}]


def test_another_environment_takes_back_only_what_is_its_own() -> None:
    """What staging has no more may still be production's."""
    domain = [as_record(each) for each in owned("urn:li:domain:fleet", ANN)]
    there = [as_record(each) for each in upserts(PRODUCT, StatusClass(removed=False))]
    shared = [*product(ONE), *there, *domain]
    gone = list(withdrawn_by([*dataset(ONE, ANN), *shared], [], speaks_for_all=False))
    assert [(r["entityUrn"], r["aspectName"]) for r in gone] == [
        (ONE, "ownership"),
        (PRODUCT, "dataProductProperties"),
        (ONE, "status"),
    ]
    everything = withdrawn([*dataset(ONE, ANN), *shared], [])
    assert len(list(everything)) == len(gone) + 2


def test_a_check_that_is_gone_is_marked_removed_and_one_that_asks_something_else_is_not() -> None:
    urns, table = Urns("DEV", "warehouse", "file:///lake"), Table("fleet", "one")

    def told(**limits: int) -> Records:
        checks = [
            Check(
                *(table.asset_key, name, "d", "dbt", "k"),
                blocks=True,
                severity="s",
                arguments={"most": most},
            )
            for name, most in limits.items()
        ]
        proposals = assertion_proposals(urns, checks, {ONE}, "http://ui")
        return [*dataset(ONE, ANN), *map(as_record, proposals)]

    before, now = told(seats=400, engines=4), told(seats=500)
    (gone,) = withdrawn(before, now)
    assert (gone["entityUrn"], gone["aspectName"]) == (
        urns.check(table.asset_key, "engines"),
        "status",
    )
    assert gone["aspect"] == {"json": {"removed": True}}
    assert list(withdrawn([*now, gone], now)) == [gone]
    assert list(withdrawn([*now, gone], before)) == []
