"""Expectations as asset checks: what a critical one stops, and what a warning lets pass."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from dagster_project.components import drift_check
from dagster_project.components.expectation_suites import suite_checks
from dagster_project.quality.drift_report import DriftReport
from dagster_project.quality.suites import Severity, Suite
from dagster_project.settings import get_settings

TABLE = dg.AssetKey(["shop_raw", "orders"])


@pytest.fixture
def orders(warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A raw table of three rows, one without an amount."""
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    get_settings.cache_clear()
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop_raw")
        connection.execute("CREATE TABLE shop_raw.orders (id bigint, amount bigint)")
        connection.execute("INSERT INTO shop_raw.orders VALUES (1, 10), (2, NULL), (3, 30)")
    yield warehouse_url
    get_settings.cache_clear()


def suite(severity: str, column: str = "amount") -> Suite:
    return Suite.model_validate(
        {
            "name": "shop_raw.orders",
            "expectations": [
                {
                    "type": "expect_column_values_to_not_be_null",
                    "kwargs": {"column": column},
                    "severity": severity,
                    "description": "Every order has an amount.",
                    "meta": {"check": "amount_is_there"},
                },
                {
                    "type": "expect_table_row_count_to_equal",
                    "kwargs": {"value": 3},
                    "severity": "critical",
                    "description": "Three orders.",
                    "meta": {"check": "three_orders"},
                },
            ],
        }
    )


def run(checked: Suite) -> tuple[dg.ExecuteInProcessResult, list[str]]:
    """Materialise the table, its checks, and an asset downstream; the assets that were made."""

    @dg.asset(key=TABLE)
    def table() -> None: ...

    @dg.asset(key="downstream", deps=[TABLE])
    def downstream() -> None: ...

    definitions = dg.Definitions(
        assets=[table, downstream],
        asset_checks=[suite_checks(checked)],
        jobs=[dg.define_asset_job("all", dg.AssetSelection.all())],
    )
    result = definitions.resolve_job_def("all").execute_in_process(raise_on_error=False)
    made = [
        event.step_materialization_data.materialization.asset_key.to_user_string()
        for event in result.all_events
        if event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION
    ]
    return result, made


@pytest.mark.usefixtures("orders")
def test_a_failed_critical_expectation_stops_what_is_downstream() -> None:
    result, made = run(suite("critical"))

    assert not result.success
    assert made == ["shop_raw/orders"]
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not found["amount_is_there"].passed
    assert found["amount_is_there"].metadata["unexpected rows"].value == 1
    link = found["amount_is_there"].metadata["full result"].value
    assert result.run_id in str(link)
    assert list((get_settings().home / "lake" / "_quality").rglob(f"*{result.run_id}.json"))
    assert found["three_orders"].passed


@pytest.mark.usefixtures("orders")
def test_a_failed_warning_is_reported_and_stops_nothing() -> None:
    result, made = run(suite("warning"))

    assert result.success
    assert made == ["shop_raw/orders", "downstream"]
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not found["amount_is_there"].passed
    assert found["amount_is_there"].severity is dg.AssetCheckSeverity.WARN


@pytest.mark.usefixtures("orders")
def test_an_expectation_that_cannot_be_evaluated_says_so_and_stops_where_critical() -> None:
    result, made = run(suite("critical", column="price"))

    assert not result.success
    assert made == ["shop_raw/orders"]
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert "could not be evaluated" in (found["amount_is_there"].description or "")


@pytest.mark.usefixtures("orders")
def test_one_expectation_is_run_alone() -> None:
    checks = suite_checks(suite("critical"))
    key = dg.AssetCheckKey(TABLE, "three_orders")
    definitions = dg.Definitions(
        asset_checks=[checks],
        jobs=[dg.define_asset_job("one", dg.AssetSelection.checks(key))],
    )
    result = definitions.resolve_job_def("one").execute_in_process()

    assert [check.check_name for check in result.get_asset_check_evaluations()] == ["three_orders"]


@pytest.mark.usefixtures("orders")
def test_refused_rows_are_set_aside_and_the_rest_goes_on(orders: str) -> None:
    checked = suite("critical")
    meta = checked.expectations[0].meta.model_copy(update={"quarantine": True})
    first = checked.expectations[0].model_copy(update={"meta": meta})
    last = checked.expectations[1].model_copy(update={"severity": Severity.WARNING})
    result, made = run(checked.model_copy(update={"expectations": [first, last]}))

    assert result.success
    assert made == ["shop_raw/orders", "downstream"]
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert found["amount_is_there"].passed
    assert found["amount_is_there"].metadata["quarantined rows"].value == 1
    assert not found["rejects"].passed
    assert found["rejects"].severity is dg.AssetCheckSeverity.WARN
    with psycopg.connect(orders) as connection:
        assert connection.execute("SELECT id FROM shop_raw.orders ORDER BY 1").fetchall() == [
            (1,),
            (3,),
        ]
        rejected = connection.execute("SELECT count(*) FROM shop_raw.orders__rejects").fetchone()
    assert rejected == (1,)


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize("personal", [(), ("amount",)])
def test_drift_that_cannot_be_judged_is_a_warning_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, personal: tuple[str, ...]
) -> None:
    def broken(*arguments: object) -> DriftReport:
        raise RuntimeError("no quantile of 'anna' at postgresql://mesh:s3cr3t@host/db")

    job = dg.define_asset_job("checks", dg.AssetSelection.all_asset_checks())
    definitions = dg.Definitions(
        asset_checks=[suite_checks(suite("warning"), None, personal)], jobs=[job]
    )

    def checked(instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
        result = definitions.resolve_job_def("checks").execute_in_process(instance=instance)
        assert result.success
        return {check.check_name: check for check in result.get_asset_check_evaluations()}

    with dg.DagsterInstance.ephemeral() as instance:
        with monkeypatch.context() as patched:
            patched.setattr(drift_check, "examine", broken)
            found = checked(instance)
        assert found["three_orders"].passed
        assert not found["amount_is_there"].passed
        drift = found["drift"]
        assert (drift.passed, drift.severity) == (False, dg.AssetCheckSeverity.WARN)
        said = drift.description or ""
        assert said.startswith("could not be evaluated: RuntimeError: no quantile of")
        assert "s3cr3t" not in said
        assert ("anna" in said) == (not personal)
        # The same rows are looked at anew: what nobody could judge is no verdict.
        assert checked(instance)["drift"].passed
