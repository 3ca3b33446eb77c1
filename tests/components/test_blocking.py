"""What a failed critical check stops: what needs the bad table, in this run and in the next."""

from collections.abc import Iterator

import dagster as dg
import psycopg
import pytest

from dagster_project.identity import Table
from dagster_project.locations.location import domain_definitions
from dagster_project.quality.standing import blocked_tables
from dagster_project.settings import get_settings
from tests.components.test_dbt_models import RAW

pytestmark = pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")


@pytest.fixture
def raw(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Fleet's raw tables, sound but for the number of their rows."""
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setenv("MESH_HOME", str(tmp_path_factory.getbasetemp() / "dbt-home"))
    get_settings.cache_clear()
    domain_definitions.cache_clear()
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(RAW)
    yield warehouse_url
    get_settings.cache_clear()
    domain_definitions.cache_clear()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


#: The checks of the raw tables' keys; the other checks want whole tables.
CHECKS = {"planes": "tailnum_unique", "airports": "faa_unique", "airlines": "carrier_unique"}
DUPLICATE = (
    "ALTER TABLE fleet_raw.planes DROP CONSTRAINT planes_pkey;"
    "INSERT INTO fleet_raw.planes (tailnum, year) VALUES ('N1', 2004)"
)
MENDED = "DELETE FROM fleet_raw.planes WHERE type IS NULL"


def run(instance: dg.DagsterInstance, *checks: str) -> dg.ExecuteInProcessResult:
    """Fleet's models, and these checks of its raw tables, in one run."""
    definitions = domain_definitions("fleet")
    keys = [
        key
        for key in definitions.resolve_asset_graph().materializable_asset_keys
        if key.path[0] in ("fleet", "fleet_staging")
    ]
    selection = dg.AssetSelection.assets(*keys).without_checks()
    if checks:
        selection |= dg.AssetSelection.checks(
            *(dg.AssetCheckKey(dg.AssetKey(["fleet_raw", t]), CHECKS[t]) for t in checks)
        )
    job = dg.define_asset_job("some", selection)
    whole = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
    resolved = whole.resolve_job_def("some")
    return resolved.execute_in_process(instance=instance, raise_on_error=False)


def made(result: dg.ExecuteInProcessResult) -> set[str]:
    return {
        event.materialization.asset_key.path[-1]
        for event in result.get_asset_materialization_events()
    }


def reasons(result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(
        str(event.step_failure_data.user_failure_data or event.step_failure_data.error)
        for event in result.get_step_failure_events()
    )


AIRLINES = {"stg_fleet__airlines", "dim_airlines"}
AIRPORTS = {"stg_fleet__airports", "dim_airports"}
PLANES = {"stg_fleet__planes", "dim_planes"}


def test_what_needs_a_bad_table_is_left_out_and_nothing_else(
    raw: str, instance: dg.DagsterInstance
) -> None:
    """Three streams of one sync, one of them bad."""
    with psycopg.connect(raw) as connection:
        connection.execute(DUPLICATE.encode())
    result = run(instance, *CHECKS)
    assert not result.success
    assert made(result) == AIRLINES | AIRPORTS
    failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert [(check.asset_key.path[-1], check.check_name) for check in failed] == [
        ("planes", "tailnum_unique")
    ]
    assert failed[0].metadata["unexpected rows"].value == 2
    assert "tailnum_unique" in reasons(result)
    left = [event.step_key for event in result.all_events if event.is_step_skipped]
    started = {event.step_key for event in result.all_events if event.is_step_start}
    assert "transform_fleet_planes" not in started
    assert left == []


def test_it_is_left_out_of_later_runs_until_the_check_passes(
    raw: str, instance: dg.DagsterInstance
) -> None:
    with psycopg.connect(raw) as connection:
        connection.execute(DUPLICATE.encode())
    run(instance, *CHECKS)
    # Nobody checks anew: what was found stands.
    later = run(instance)
    assert not later.success
    assert made(later) == AIRLINES | AIRPORTS
    said = reasons(later)
    assert "left out: stg_fleet__planes, dim_planes" in said
    assert "fleet_raw.planes: tailnum_unique" in said

    with psycopg.connect(raw) as connection:
        connection.execute(MENDED.encode())
    mended = run(instance, "planes")
    assert mended.success
    assert made(mended) == AIRLINES | AIRPORTS | PLANES
    assert blocked_tables(raw, [Table("fleet_raw", "planes")]) == {}


def test_a_domain_does_not_use_a_product_of_another_that_failed(
    raw: str, instance: dg.DagsterInstance
) -> None:
    """The marts of flights read fleet's products."""
    assert run(instance, *CHECKS).success
    with psycopg.connect(raw) as connection:
        connection.execute(
            "INSERT INTO mesh.failures VALUES "
            "('fleet', 'dim_planes', 'tailnum_unique', '', 'critical', 2, now(), 'a run')"
        )
    table, definitions = dg.AssetKey(["flights", "reference_gaps"]), domain_definitions("flights")
    job = dg.define_asset_job("gaps", dg.AssetSelection.assets(table).without_checks())
    whole = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
    result = whole.resolve_job_def("gaps").execute_in_process(
        instance=instance, raise_on_error=False
    )
    assert not result.success
    assert made(result) == set()
    assert "fleet.dim_planes: tailnum_unique" in reasons(result)
