"""What a failed critical check stops: what needs the bad table, in this run and in the next."""

from collections.abc import Iterator

import dagster as dg
import psycopg
import pytest

from dagster_project.identity import Table
from dagster_project.locations.location import domain_definitions
from dagster_project.quality import standing
from dagster_project.quality.outcome import Outcome
from dagster_project.quality.standing import blocks, record, versions_held
from dagster_project.quality.suites import critical_checks
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
PLANES_TABLE = Table("fleet_raw", "planes")
MENDED = "DELETE FROM fleet_raw.planes WHERE type IS NULL"


def run(
    instance: dg.DagsterInstance,
    *checks: str,
    schemas: tuple[str, ...] = ("fleet", "fleet_staging"),
) -> dg.ExecuteInProcessResult:
    """Fleet's models of these schemas, and these checks of its raw tables, in one run."""
    definitions = domain_definitions("fleet")
    keys = [
        key
        for key in definitions.resolve_asset_graph().materializable_asset_keys
        if key.path[0] in schemas
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
#: As if the key's were the only critical check of planes.
CRITICAL = {PLANES_TABLE: ["tailnum_unique"]}


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


def test_a_bad_table_stops_what_reads_it_by_way_of_a_view_that_is_not_in_the_run(
    raw: str, instance: dg.DagsterInstance
) -> None:
    assert run(instance).success
    with psycopg.connect(raw) as connection:
        connection.execute(DUPLICATE.encode())
    result = run(instance, *CHECKS, schemas=("fleet",))
    assert made(result) == {"dim_airlines", "dim_airports"}
    order = [event.step_key for event in result.all_events if event.is_step_start]
    for table in ("airlines", "airports"):
        check = f"expect_fleet_raw_{table}"
        assert order.index(check) < order.index(f"transform_fleet_{table}")


def test_it_is_left_out_of_later_runs_until_the_check_passes(
    raw: str, instance: dg.DagsterInstance
) -> None:
    with psycopg.connect(raw) as connection:
        connection.execute(DUPLICATE.encode())
    run(instance, *CHECKS)
    # Nobody checks anew: what was found stands.
    later = run(instance)
    assert not later.success
    assert made(later) == AIRLINES | AIRPORTS | {"stg_fleet__planes"}
    said = reasons(later)
    assert "left out: dim_planes" in said
    assert "fleet_raw.planes: tailnum_unique failed" in said

    with psycopg.connect(raw) as connection:
        connection.execute(MENDED.encode())
    mended = run(instance, "planes")
    assert mended.success
    assert made(mended) == AIRLINES | AIRPORTS | PLANES
    assert blocks(raw, [PLANES_TABLE]) == []


def loaded(url: str, version: str) -> None:
    """Note that planes were loaded, as a load does."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO mesh.tables (table_schema, table_name, version, position, rows, load_id, "
            "changed_at) VALUES ('fleet_raw', 'planes', %s, 0, 1, 'a load', now()) "
            "ON CONFLICT (table_schema, table_name) DO UPDATE SET version = excluded.version",
            [version],
        )


def test_what_changed_since_it_was_checked_is_not_built_on(
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "critical_checks", lambda table: CRITICAL.get(table, []))
    versions_held(raw, PLANES_TABLE)
    loaded(raw, "the first")
    before = run(instance)
    assert made(before) == AIRLINES | AIRPORTS | {"stg_fleet__planes"}
    assert "fleet_raw.planes: tailnum_unique not run since the data changed" in reasons(before)
    assert "Run these checks" in reasons(before)

    assert run(instance, "planes").success
    # Other checks of the same table say nothing of this one.
    loaded(raw, "the second")
    monkeypatch.setitem(CHECKS, "planes", "tailnum_well_formed")
    run(instance, "planes")
    assert made(run(instance)) == AIRLINES | AIRPORTS | {"stg_fleet__planes"}
    monkeypatch.setitem(CHECKS, "planes", "tailnum_unique")
    assert run(instance, "planes").success
    assert run(instance).success
    assert blocks(raw, [PLANES_TABLE]) == []


def test_what_is_loaded_while_a_check_looks_is_not_taken_for_checked(raw: str) -> None:
    versions_held(raw, PLANES_TABLE)
    loaded(raw, "the first")
    seen = versions_held(raw, PLANES_TABLE)
    loaded(raw, "the second")
    sound = [Outcome(check, True) for check in critical_checks(PLANES_TABLE)]
    severities = {outcome.check: "critical" for outcome in sound}
    record(raw, PLANES_TABLE, sound, severities, None, seen, "a run")
    assert {block.check for block in blocks(raw, [PLANES_TABLE])} == set(severities)
    assert not any(block.failed for block in blocks(raw, [PLANES_TABLE]))
    seen = versions_held(raw, PLANES_TABLE)
    record(raw, PLANES_TABLE, sound, severities, None, seen, "a run")
    assert blocks(raw, [PLANES_TABLE]) == []


def gaps(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """A mart of flights that reads fleet's products, alone."""
    table, definitions = dg.AssetKey(["flights", "reference_gaps"]), domain_definitions("flights")
    job = dg.define_asset_job("gaps", dg.AssetSelection.assets(table).without_checks())
    whole = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
    resolved = whole.resolve_job_def("gaps")
    return resolved.execute_in_process(instance=instance, raise_on_error=False)


def test_a_domain_does_not_use_a_product_of_another_that_failed(
    raw: str, instance: dg.DagsterInstance
) -> None:
    assert run(instance, *CHECKS).success
    with psycopg.connect(raw) as connection:
        connection.execute(
            "INSERT INTO mesh.verdicts VALUES ('fleet', 'dim_planes', 'tailnum_unique', '', "
            "'critical', false, 2, '', now(), 'a run')"
        )
    result = gaps(instance)
    assert not result.success
    assert made(result) == set()
    said = reasons(result)
    assert "fleet.dim_planes: tailnum_unique failed" in said
    # Nor one that nobody has checked.
    airlines = "carrier_code_present, carrier_code_unique, carrier_name_present, row_count"
    assert f"fleet.dim_airlines: {airlines} not run since the data changed" in said
