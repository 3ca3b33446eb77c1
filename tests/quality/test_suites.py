"""Suites of expectations: every fault in one is named by its file and line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dagster_project.domain import domain_names
from dagster_project.failures import DeclarationError
from dagster_project.quality import suites
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


def having(*expectations: dict[str, Any]) -> dict[str, Any]:
    return SUITE | {"expectations": list(expectations)}


def meta(**own: Any) -> dict[str, Any]:
    return having(EXPECTATION | {"meta": {"check": "id_present"} | own})


def write(folder: Path, suite: Any, name: str = "shop_raw.orders", domain: str = "shop") -> Path:
    path = folder / domain / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(suite if isinstance(suite, bytes) else json.dumps(suite, indent=1).encode())
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(DeclarationError) as caught:
        read_suite(path)
    return str(caught.value).splitlines()


def test_the_suites_of_the_checkout_are_whole() -> None:
    for domain in domain_names():
        found = read_suites(domain)
        assert {suite.table.domain for suite in found} == {domain}


def test_a_suite_is_of_its_table(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, SUITE))
    assert str(suite.table) == "shop_raw.orders"
    assert [(e.check, e.severity) for e in suite.expectations] == [
        ("id_present", Severity.CRITICAL)
    ]
    assert not suite.expectations[0].meta.quarantine
    assert suite.meta.drift is not None


# The suite is written with indents: the line is that of the key.
@pytest.mark.parametrize(
    ("suite", "line", "said"),
    [
        (b"{", 1, "not valid JSON"),
        (b'{\n "name": 1,\n}', 3, "not valid JSON"),
        (b'{"name": NaN}', 1, "not valid JSON: NaN is no number of JSON"),
        (b'{"name":\n "\xff"}', 1, "not UTF-8 text"),
        (b"[]", 1, "the file: Input should be a valid dictionary"),
        (SUITE | {"expectations": []}, 3, "expectations: List should have at least 1 item"),
        (without(SUITE, "name"), 1, "name: required, but not there: the table, as schema.table"),
        (SUITE | {"nam": 1}, 16, "nam: unknown key, did you mean name?"),
        (SUITE | {"name": "orders"}, 2, "name: 'orders' is not of the form schema.table"),
        (SUITE | {"name": "shop_raw.others"}, 2, "name: the file is of another table: name it"),
        (having(without(EXPECTATION, "kwargs")), 4, "kwargs: required, but not there"),
        (
            having(without(EXPECTATION, "severity")),
            4,
            "expectations.0.severity: required, but not there: say what a failure does: critical",
        ),
        (
            having(EXPECTATION | {"severity": "fatal"}),
            9,
            "expectations.0.severity: Input should be 'critical', 'warning' or 'info'",
        ),
        (having(EXPECTATION | {"description": " "}), 10, "description: required, but not there"),
        (having(EXPECTATION | {"kwarg": {}}), 14, "kwarg: unknown key, did you mean kwargs?"),
        (having(without(EXPECTATION, "meta")), 4, "meta: required, but not there: name the asset"),
        (meta(check="Not A Name"), 12, "'Not A Name' cannot be a check's name: begin with"),
        (meta(check=7), 12, "expectations.0.meta.check: Input should be a valid string"),
        (meta(quarantene=True), 13, "quarantene: unknown key, did you mean quarantine?"),
        (meta(quarantine="yes"), 13, "meta.quarantine: Input should be a valid boolean"),
        (having(*[EXPECTATION] * 2), 23, "the check of line 12 is called id_present too"),
        (SUITE | {"meta": {"drift": True}}, 17, "meta.drift: must be false, or {"),
        (SUITE | {"meta": {"drift": {"leave": []}}}, 18, "unknown key Allowed here: exclude"),
    ],
)
def test_a_fault_is_named_by_its_file_and_line(
    tmp_path: Path, suite: Any, line: int, said: str
) -> None:
    path = write(tmp_path, suite)
    (fault,) = faults(path)
    assert fault.startswith(f"{path}:{line}: ")
    assert said in fault


def test_all_faults_of_all_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "EXPECTATIONS", tmp_path)
    bad = having(without(EXPECTATION, "severity"), EXPECTATION | {"description": ""}, EXPECTATION)
    one = write(tmp_path, bad)
    two = write(tmp_path, SUITE, name="shop_raw.others")
    write(tmp_path, SUITE | {"name": "shop_raw.paid"}, name="shop_raw.paid")
    with pytest.raises(DeclarationError) as caught:
        read_suites("shop")
    # By line; the name that three have is told of the second and of the third.
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{one}:{line}" for line in (4, 20, 22, 33)
    ] + [f"{two}:2"]


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(SUITE, indent=1).replace(
        '"severity": "critical",', '"severity": "critical",\n"severity": "info",'
    )
    path = write(tmp_path, text.encode())
    assert faults(path) == [f"{path}:10: severity: is there twice, only one of them would count"]


@pytest.mark.parametrize(
    "written",
    [
        {"description": 'Grüße \U0001f600 \u2028 und "mehr" \\ \x7f\x85 / \t\n'},
        {"description": "x" * 2000, "kwargs": {"column": "y" * 2000}},
    ],
)
@pytest.mark.parametrize("layout", [{"ensure_ascii": True}, {"ensure_ascii": False}])
def test_lines_are_found_whatever_the_text_holds(
    tmp_path: Path, written: dict[str, Any], layout: dict[str, bool]
) -> None:
    suite = having(EXPECTATION | written, without(EXPECTATION, "severity") | {"id": None})
    text = json.dumps(suite, indent="\t", **layout).replace('"meta"', '"meta" ')
    path = write(tmp_path, text.replace("\n", "\r\n").encode())
    # The second expectation lacks its severity, and has the name of the first.
    assert [fault.split(": ")[0] for fault in faults(path)] == [f"{path}:15", f"{path}:22"]


def test_what_great_expectations_itself_writes_is_read(tmp_path: Path) -> None:
    own = {"id": "0b5d", "notes": ["n"], "rendered_content": [{"value": {}}]}
    suite = read_suite(
        write(
            tmp_path,
            having(EXPECTATION | own)
            | {
                "id": "8a7c",
                "notes": None,
                "suite_parameters": {},
                "meta": {"great_expectations_version": "1.24.1"},
            },
        )
    )
    (expectation,) = suite.expectations
    # What it would not take back is left out of what it is given.
    given = expectation.model_dump(mode="json", exclude_none=True)
    assert given.keys() == {*EXPECTATION, "id", "notes"}


def test_a_suite_says_what_becomes_of_rows_and_of_drift(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, meta(quarantine=True) | {"meta": {"drift": False}}))
    assert suite.expectations[0].meta.quarantine
    assert suite.meta.drift is None
    suite = read_suite(write(tmp_path, SUITE | {"meta": {"drift": {"exclude": ["id"]}}}))
    assert suite.meta.drift is not None
    assert suite.meta.drift.exclude == ["id"]


def test_a_domain_does_not_check_anothers_tables(tmp_path: Path) -> None:
    path = write(tmp_path, SUITE, domain="post")
    (fault,) = faults(path)
    assert fault.startswith(f"{path}:2: name: shop_raw.orders is of the domain shop, not of post")


def test_reading_suites_imports_no_great_expectations() -> None:
    program = (
        "import sys; from dagster_project.quality.suites import read_suites; "
        "assert read_suites('fleet'); print('great_expectations' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout == "False\n"
