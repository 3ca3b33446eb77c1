"""What a failed critical check stops: what needs the bad table, in this run and in the next."""

from collections.abc import Iterator

import dagster as dg
import psycopg
import pytest

from dagster_project.components import dbt_inputs, dbt_models, soundness
from dagster_project.components.soundness import require_sound
from dagster_project.identity import Table
from dagster_project.locations.location import domain_definitions
from dagster_project.quality import blocking
from dagster_project.quality.blocking import blocks
from dagster_project.quality.outcome import Outcome
from dagster_project.quality.standing import (
    TestVerdict,
    record,
    record_tests,
    versions_held,
)
from dagster_project.quality.suites import EXPECTATIONS, Expectation, Severity, read_suite
from dagster_project.settings import get_settings
from dagster_project.transformation.versions import BUILDING, read_built
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
AIRLINES_TABLE = Table("fleet", "dim_airlines")
AIRLINES_KEY = dg.AssetKey(["fleet", "dim_airlines"])
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
#: The critical checks of planes.
CRITICAL = {
    expectation.check: expectation
    for expectation in read_suite(EXPECTATIONS / "fleet" / f"{PLANES_TABLE}.json").expectations
    if expectation.severity is Severity.CRITICAL
}
ONLY_KEY = {"tailnum_unique": CRITICAL["tailnum_unique"].asked}


@pytest.fixture
def only_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the key's were the only critical check of all."""

    def critical(table: Table) -> dict[str, str]:
        return ONLY_KEY if table == PLANES_TABLE else {}

    monkeypatch.setattr(blocking, "critical_checks", critical)


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
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, only_key: None
) -> None:
    versions_held(raw, PLANES_TABLE)
    loaded(raw, "the first")
    before = run(instance)
    assert made(before) == AIRLINES | AIRPORTS | {"stg_fleet__planes"}
    assert "fleet_raw.planes: tailnum_unique never run" in reasons(before)
    assert "Run these checks" in reasons(before)

    assert run(instance, "planes").success
    # Other checks of the same table say nothing of this one.
    loaded(raw, "the second")
    monkeypatch.setitem(CHECKS, "planes", "tailnum_well_formed")
    run(instance, "planes")
    after = run(instance)
    assert made(after) == AIRLINES | AIRPORTS | {"stg_fleet__planes"}
    assert "fleet_raw.planes: tailnum_unique not run since the data changed" in reasons(after)
    monkeypatch.setitem(CHECKS, "planes", "tailnum_unique")
    assert run(instance, "planes").success
    assert run(instance).success
    assert blocks(raw, [PLANES_TABLE]) == []


def test_what_is_loaded_while_a_check_looks_is_not_taken_for_checked(raw: str) -> None:
    versions_held(raw, PLANES_TABLE)
    loaded(raw, "the first")
    seen = versions_held(raw, PLANES_TABLE)[PLANES_TABLE]
    loaded(raw, "the second")
    sound = [Outcome(check, True) for check in CRITICAL]
    record(raw, PLANES_TABLE, sound, CRITICAL, None, seen, "a run")
    assert {block.check for block in blocks(raw, [PLANES_TABLE])} == set(CRITICAL)
    assert not any(block.failed for block in blocks(raw, [PLANES_TABLE]))
    now = versions_held(raw, PLANES_TABLE)[PLANES_TABLE]
    record(raw, PLANES_TABLE, sound, CRITICAL, None, now, "a run")
    assert blocks(raw, [PLANES_TABLE]) == []
    # One that looked before that load, and comes late.
    bad = [Outcome(check, False, failed={"": 1}) for check in CRITICAL]
    record(raw, PLANES_TABLE, bad, CRITICAL, None, seen, "a slow run")
    assert blocks(raw, [PLANES_TABLE]) == []
    record(raw, PLANES_TABLE, bad, CRITICAL, None, now, "a run")
    assert {block.check for block in blocks(raw, [PLANES_TABLE])} == set(CRITICAL)


def test_a_check_that_was_edited_has_to_be_run_again(raw: str) -> None:
    versions_held(raw, PLANES_TABLE)
    loaded(raw, "the first")
    now = versions_held(raw, PLANES_TABLE)[PLANES_TABLE]

    def edited(name: str, **changed: object) -> Expectation:
        return CRITICAL[name].model_copy(update=changed)

    sound = [Outcome(check, True) for check in CRITICAL]
    other = edited("tailnum_unique", kwargs={"column": "model"})
    record(raw, PLANES_TABLE, sound, CRITICAL | {"tailnum_unique": other}, None, now, "a run")
    told = blocking.reasons(blocks(raw, [PLANES_TABLE]))
    assert told == "fleet_raw.planes: tailnum_unique not run since it was edited"
    # In other words it asks the same.
    other = edited("tailnum_unique", description="Another sentence.")
    record(raw, PLANES_TABLE, sound, CRITICAL | {"tailnum_unique": other}, None, now, "a run")
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
            "INSERT INTO mesh.verdicts SELECT 'fleet', 'dim_planes', 'tailnum_unique', '', "
            "'critical', false, 2, version, now(), 'a run' FROM mesh.models "
            "WHERE table_name = 'dim_planes'"
        )
    result = gaps(instance)
    assert not result.success
    assert made(result) == set()
    said = reasons(result)
    assert "fleet.dim_planes: tailnum_unique failed" in said
    # Nor one that nobody has checked.
    airlines = "carrier_code_present, carrier_code_unique, carrier_name_present, row_count"
    assert f"fleet.dim_airlines: {airlines} never run" in said


def test_a_domain_does_not_use_a_product_whose_dbt_test_failed(
    raw: str, instance: dg.DagsterInstance, only_key: None
) -> None:
    test = dg.AssetCheckKey(AIRLINES_KEY, "not_null_dim_airlines_carrier_name")
    definitions = domain_definitions("fleet")
    selection = dg.AssetSelection.assets(AIRLINES_KEY).without_checks()
    job = dg.define_asset_job("tested", selection | dg.AssetSelection.checks(test))
    whole = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))

    def tested() -> bool:
        resolved = whole.resolve_job_def("tested")
        return resolved.execute_in_process(instance=instance, raise_on_error=False).success

    assert run(instance).success
    with psycopg.connect(raw) as connection:
        connection.execute("UPDATE fleet.dim_airlines SET carrier_name = NULL")
    assert not tested()
    why = {block.check: block.why for block in blocks(raw, [AIRLINES_TABLE])}
    assert why.pop(test.name) is blocking.Why.FAILED
    # The others were not run with the model.
    assert set(why.values()) == {blocking.Why.CHANGED}
    result = gaps(instance)
    assert made(result) == set()
    assert "fleet.dim_airlines: not_null_dim_airlines_carrier_name failed" in reasons(result)
    with psycopg.connect(raw) as connection:
        connection.execute("UPDATE fleet.dim_airlines SET carrier_name = 'United'")
    assert tested()
    assert test.name not in {block.check for block in blocks(raw, [AIRLINES_TABLE])}


def test_what_is_built_of_what_was_loaded_meanwhile_does_not_count(
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, only_key: None
) -> None:
    """A load comes between the judgement of what is read and dbt's reading it."""
    versions_held(raw, PLANES_TABLE)
    loaded(raw, "the first")
    build = dbt_models.dbt_build

    def late(url: str, names: list[str], *arguments: object) -> Iterator[dict[str, object]]:
        if "dim_planes" in names:
            loaded(raw, "the second")
        return build(url, names, *arguments)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(dbt_models, "dbt_build", late)
        result = run(instance, "planes")
    assert not result.success
    assert made(result) == AIRLINES | AIRPORTS | {"stg_fleet__planes"}
    said = reasons(result)
    assert "left out: dim_planes" in said
    assert "fleet_raw.planes: tailnum_unique not run since the data changed" in said
    assert read_built(raw).models[Table("fleet", "dim_planes")] == BUILDING
    assert run(instance, "planes").success
    assert read_built(raw).models[Table("fleet", "dim_planes")] != BUILDING


def test_a_step_waits_for_the_checks_of_another_run(
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, only_key: None
) -> None:
    versions_held(raw, PLANES_TABLE)
    loaded(raw, "the first")
    job = domain_definitions("fleet").resolve_job_def("fleet_pipeline")
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    monkeypatch.setattr(soundness, "WAIT", 0)
    looks = []
    found = soundness.blocks

    def after_a_while(*arguments: object) -> list[blocking.Block]:
        """The other run's checks pass between the second look and the third."""
        blocked = found(*arguments)
        if blocked:
            looks.append(blocked)
        if len(looks) == 2:
            now = versions_held(raw, PLANES_TABLE)[PLANES_TABLE]
            sound = [Outcome(check, True) for check in CRITICAL]
            record(raw, PLANES_TABLE, sound, CRITICAL, None, now, "the other run")
        return blocked

    monkeypatch.setattr(soundness, "blocks", after_a_while)
    result = run(instance)
    assert result.success
    assert made(result) == AIRLINES | AIRPORTS | PLANES
    assert len(looks) == 2
    assert len([event for event in result.all_events if event.is_step_up_for_retry]) == 2


def test_an_asset_in_python_asks_too(
    raw: str, instance: dg.DagsterInstance, only_key: None
) -> None:
    @dg.asset
    def seats() -> None:
        require_sound("fleet_raw.airlines", "fleet_raw.planes")

    def made_of_it() -> dg.ExecuteInProcessResult:
        return dg.materialize([seats], instance=instance, raise_on_error=False)

    assert made_of_it().success
    loaded(raw, "the first")
    assert "fleet_raw.planes: tailnum_unique never run. Run these" in reasons(made_of_it())
    now = versions_held(raw, PLANES_TABLE)[PLANES_TABLE]
    bad = [Outcome("tailnum_unique", False, failed={"": 2})]
    record(raw, PLANES_TABLE, bad, CRITICAL, None, now, "a run")
    assert "fleet_raw.planes: tailnum_unique failed. Mend the data" in reasons(made_of_it())
    record(raw, PLANES_TABLE, [Outcome("tailnum_unique", True)], CRITICAL, None, now, "a run")
    assert made_of_it().success


def test_an_asset_in_python_asks_for_what_its_inputs_were_made_of_too(
    raw: str, instance: dg.DagsterInstance, only_key: None
) -> None:
    made_of = Table("fleet_staging", "stg_fleet__airlines")
    test = TestVerdict("not_null", Severity.CRITICAL, passed=False, version="as it is")
    record_tests(raw, {made_of: [test]}, "a run")

    @dg.asset
    def fleets() -> None:
        require_sound("fleet.dim_airlines")

    result = dg.materialize([fleets], instance=instance, raise_on_error=False)
    assert "fleet_staging.stg_fleet__airlines: not_null failed" in reasons(result)


def test_what_is_made_by_way_of_a_view_of_what_was_disturbed_is_so_too(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node(kind: str, *parents: str) -> dict[str, object]:
        return {
            "resource_type": "model",
            "schema": "shop",
            "name": kind,
            "config": {"materialized": kind},
            "depends_on": {"nodes": list(parents)},
        }

    source = {"resource_type": "source", "schema": "shop_raw", "name": "orders"}
    nodes = {
        "facts": node("table", "orders"),
        "recent": node("view", "facts"),
        "by_day": {**node("table", "recent"), "name": "by_day"},
    }
    manifest = {"nodes": nodes, "sources": {"orders": source}}
    bad = blocking.Block(Table("shop_raw", "orders"), "rows", (), blocking.Why.CHANGED)
    monkeypatch.setattr(dbt_inputs, "blocks", lambda _, tables, __: [bad] if tables else [])
    inputs = dbt_inputs.Inputs(warehouse_url, manifest, nodes)
    assert [inputs.is_disturbed(each) for each in nodes] == [False, False, False]
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(
            "INSERT INTO mesh.tables (table_schema, table_name, version, position, rows, load_id, "
            "changed_at) VALUES ('shop_raw', 'orders', 'new', 0, 1, 'a load', now())"
        )
    assert [inputs.is_disturbed(each) for each in nodes] == [True, False, True]
    assert inputs.disturbed == {"facts": [bad], "by_day": [bad]}
