"""Suites of expectations: a fault in one is named by its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from dagster_project.domain import domain_names
from dagster_project.failures import DeclarationError
from dagster_project.quality.suites import Severity, read_suite, read_suites

EXPECTATION: dict[str, Any] = {
    "type": "expect_column_values_to_not_be_null",
    "kwargs": {"column": "id"},
    "severity": "critical",
    "description": "Every order has its number.",
    "meta": {"check": "id_present"},
}
SUITE: dict[str, Any] = {"name": "shop_raw.orders", "expectations": [EXPECTATION]}


def without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


def write(folder: Path, suite: Any, name: str = "shop_raw.orders", domain: str = "shop") -> Path:
    path = folder / domain / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(suite if isinstance(suite, bytes) else orjson.dumps(suite))
    return path


def test_the_suites_of_the_checkout_are_whole() -> None:
    for domain in domain_names():
        suites = read_suites(domain)
        assert {suite.table.domain for suite in suites} == {domain}


def test_a_suite_is_of_its_table(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, SUITE))
    assert str(suite.table) == "shop_raw.orders"
    assert [(e.check, e.severity) for e in suite.expectations] == [
        ("id_present", Severity.CRITICAL)
    ]


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "the suite: Input should be a valid dictionary"),
        (SUITE | {"expectations": []}, "expectations: List should have at least 1 item"),
        (without(SUITE, "name"), "name: Field required"),
        (
            SUITE | {"expectations": [without(EXPECTATION, "severity")]},
            "expectations.0.severity: Field required",
        ),
        (
            SUITE | {"expectations": [EXPECTATION | {"severity": "fatal"}]},
            "expectations.0.severity: Input should be 'critical', 'warning' or 'info'",
        ),
        (
            SUITE | {"expectations": [EXPECTATION | {"kwarg": {}}]},
            "expectations.0.kwarg: Extra inputs are not permitted",
        ),
        (
            SUITE | {"expectations": [EXPECTATION | {"meta": {"check": "Not A Name"}}]},
            "expectations.0.meta.check: String should match pattern",
        ),
        (SUITE | {"expectations": [EXPECTATION] * 2}, "checks of the same name: id_present"),
        (SUITE | {"name": "orders"}, "not of the form schema.table"),
        (SUITE | {"name": "shop_raw.others"}, "name the file shop_raw.others.json"),
    ],
)
def test_a_fault_is_named_by_its_file_and_place(tmp_path: Path, suite: Any, said: str) -> None:
    path = write(tmp_path, suite)
    with pytest.raises(DeclarationError) as caught:
        read_suite(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_domain_does_not_check_anothers_tables(tmp_path: Path) -> None:
    path = write(tmp_path, SUITE, domain="post")
    with pytest.raises(DeclarationError, match="is of the domain shop, not of post"):
        read_suite(path)
