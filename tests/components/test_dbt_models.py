"""dbt models as assets: what is built, what is left alone, what a failed test does next time."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psycopg
import pytest

from dagster_project.components import column_lineage, dbt_inputs, dbt_models, dbt_tests, soundness
from dagster_project.identity import Table
from dagster_project.lake.store import Lake
from dagster_project.locations.location import domain_definitions
from dagster_project.quality.blocking import Why, blocks
from dagster_project.settings import get_settings
from dagster_project.transformation.versions import read_built

STEPS = [f"transform_fleet_{table}" for table in ("airlines", "airports", "planes")]
MARTS = {"dim_airlines", "dim_airports", "dim_planes"}
RAW = """
CREATE SCHEMA fleet_raw;
CREATE TABLE fleet_raw.planes (_airbyte_raw_id text, _airbyte_extracted_at timestamptz,
    _airbyte_meta jsonb, _airbyte_generation_id bigint, tailnum text PRIMARY KEY, year bigint,
    type text, manufacturer text, model text, engines bigint, seats bigint, speed bigint,
    engine text);
CREATE TABLE fleet_raw.airports (_airbyte_raw_id text, _airbyte_extracted_at timestamptz,
    _airbyte_meta jsonb, _airbyte_generation_id bigint, faa text PRIMARY KEY, name text,
    lat double precision, lon double precision, alt bigint, tz bigint, dst text, tzone text);
CREATE TABLE fleet_raw.airlines (_airbyte_raw_id text, _airbyte_extracted_at timestamptz,
    _airbyte_meta jsonb, _airbyte_generation_id bigint, carrier text PRIMARY KEY, name text);
INSERT INTO fleet_raw.planes (tailnum, year, type, manufacturer, model, engines, seats, engine)
    VALUES ('N1', 2004, 'Fixed wing multi engine', 'EMBRAER', 'E', 2, 55, 'Turbo-fan');
INSERT INTO fleet_raw.airports VALUES
    (NULL, NULL, NULL, NULL, 'EWR', 'Newark', 40.7, -74.2, 18, -5, 'A', 'America/New_York');
INSERT INTO fleet_raw.airlines VALUES (NULL, NULL, NULL, NULL, 'UA', 'United Air Lines Inc.');
"""


@pytest.fixture
def raw(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Fleet's raw tables with a row each."""
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


def build(
    instance: dg.DagsterInstance,
    selection: dg.AssetSelection | None = None,
    *,
    rebuild: bool = False,
) -> dg.ExecuteInProcessResult:
    """Fleet's dbt steps alone, or of these some models."""
    definitions = domain_definitions("fleet")
    keys = [
        key
        for key in definitions.resolve_asset_graph().materializable_asset_keys
        if key.path[0] in ("fleet", "fleet_staging")
    ]
    assets = [
        asset
        for asset in definitions.assets or ()
        if isinstance(asset, dg.AssetsDefinition) and set(asset.keys) <= set(keys)
    ]
    config = {"ops": {step: {"config": {"rebuild": True}} for step in STEPS}} if rebuild else None
    return dg.materialize(
        assets, instance=instance, run_config=config, raise_on_error=False, selection=selection
    )


def built(result: dg.ExecuteInProcessResult) -> set[str]:
    """The models that were built, rather than found to be up to date."""
    return {
        event.materialization.asset_key.path[-1]
        for event in result.get_asset_materialization_events()
        if "up to date" not in event.materialization.metadata
    }


def failed(result: dg.ExecuteInProcessResult) -> set[str]:
    return {check.check_name for check in result.get_asset_check_evaluations() if not check.passed}


def artifacts(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, str]]:
    """By key in the lake, how the nodes fared that dbt built or tested in the run."""
    lake = Lake(get_settings().lake)
    found = {}
    for item in lake.list(f"_dbt/{result.run_id}"):
        said = lake.read_json(item.key)
        known = lake.read_json(said["metadata"]["env"]["manifest"])["nodes"]
        found[item.key] = {each["unique_id"]: each["status"] for each in said["results"]}
        assert set(found[item.key]) <= set(known)
    return found


def test_only_what_changed_is_built(raw: str, instance: dg.DagsterInstance) -> None:
    builds = get_settings().dbt_target / "runs"
    before = set(builds.glob("*"))
    first = build(instance)
    assert first.success
    assert len(built(first)) == 6
    checks = len(first.get_asset_check_evaluations())
    assert checks > 10

    results = artifacts(first)
    assert {Path(key).parts[2].rpartition("-")[0] for key in results} == set(STEPS)
    of_models = {node for said in results.values() for node in said if ".dim_" in node}
    assert {node.rpartition(".")[2] for node in of_models if node.startswith("model.")} == MARTS

    second = build(instance)
    assert second.success
    assert built(second) == set()
    assert artifacts(second) == {}, "dbt was not run"
    assert len(second.get_asset_check_evaluations()) == checks, "the verdicts stand"

    with psycopg.connect(raw) as connection:
        connection.execute("DROP TABLE fleet.dim_airlines")
    assert built(build(instance)) == {"dim_airlines"}

    password = urlsplit(raw).password or ""
    files = [path for path in get_settings().home.rglob("*") if path.is_file()]
    assert files
    assert set(builds.glob("*")) == before, "nothing failed"
    assert [path for path in files if password.encode() in path.read_bytes()] == []


def test_what_the_columns_are_made_of_is_shown_once_it_is_known(
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim, read = Table("fleet", "dim_airlines"), Table("fleet_staging", "stg_fleet__airlines")
    known = {dim: {"airline_name": frozenset({(read, "airline_name")})}}
    monkeypatch.setattr(column_lineage, "kept_lineage", lambda settings: known)
    built = {
        event.asset_key.path[-1]: event.materialization.metadata
        for event in build(instance).get_asset_materialization_events()
    }
    lineage = built["dim_airlines"]["dagster/column_lineage"].value
    (origin,) = lineage.deps_by_column["airline_name"]
    assert (origin.asset_key.path, origin.column_name) == ([*read.asset_key], "airline_name")
    assert "dagster/column_lineage" not in built["dim_planes"]


def test_a_failed_test_is_looked_at_again(raw: str, instance: dg.DagsterInstance) -> None:
    builds = get_settings().dbt_target / "runs"
    before = set(builds.glob("*"))
    with psycopg.connect(raw) as connection:
        connection.execute("UPDATE fleet_raw.airlines SET name = NULL")
    first = build(instance)
    assert not first.success
    broken = failed(first)
    assert broken
    assert "fail" in {how for said in artifacts(first).values() for how in said.values()}
    (left,) = set(builds.glob("*")) - before
    assert list(left.rglob("dbt.log"))
    long_ago = time.time() - 15 * 24 * 3600
    os.utime(left, (long_ago, long_ago))

    # Nothing changed, so nothing is built; and the failure is not forgotten for that.
    second = build(instance)
    assert not second.success
    assert failed(second) & broken
    assert not left.exists()

    with psycopg.connect(raw) as connection:
        connection.execute("UPDATE fleet_raw.airlines SET name = 'United Air Lines Inc.'")
    third = build(instance, rebuild=True)
    assert third.success
    assert len(built(third)) == 6
    assert failed(third) == set()


def test_what_a_build_may_have_changed_does_not_count_as_what_it_was(
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step ends between dbt's commit and its being noted."""
    assert build(instance).success
    before = read_built(raw).models[Table("fleet", "dim_airlines")]
    with psycopg.connect(raw) as connection:
        connection.execute("UPDATE fleet_raw.airlines SET name = 'United'")
        connection.execute(
            "INSERT INTO mesh.tables (table_schema, table_name, version, position, rows, load_id, "
            "changed_at) VALUES ('fleet_raw', 'airlines', 'new', 0, 1, 'a load', now())"
        )
    for module in (dbt_inputs, soundness):
        monkeypatch.setattr(module, "blocks", lambda *_: [])
    with monkeypatch.context() as ended:
        ended.setattr(dbt_models, "record_built", lambda *_: sys.exit("killed"))
        assert not build(instance).success
    version = read_built(raw).models[Table("fleet", "dim_airlines")]
    assert version not in ("", before)
    assert "dim_airlines" in built(build(instance))
    assert read_built(raw).models[Table("fleet", "dim_airlines")] not in (version, before)


def test_a_test_that_a_kill_has_kept_from_being_run_is_run_once_the_model_is_as_it_was(
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, named = Table("fleet", "dim_airlines"), "not_null_dim_airlines_carrier_name"
    assert build(instance).success
    before = read_built(raw).models[table]
    shown = dbt_tests.Tests.shown

    def killed(self: dbt_tests.Tests, result: dg.AssetCheckResult, target: Path) -> object:
        return sys.exit("killed") if result.check_name == named else shown(self, result, target)

    with monkeypatch.context() as ended:
        ended.setattr(dbt_tests.Tests, "shown", killed)
        assert not build(instance, rebuild=True).success
    assert read_built(raw).models[table] == before
    why = {block.check: block.why for block in blocks(raw, [table])}
    assert why[named] is Why.CHANGED
    assert build(instance).success
    assert named not in {block.check for block in blocks(raw, [table])}


def test_a_test_that_is_not_run_with_the_model_does_not_count_as_passed(
    raw: str, instance: dg.DagsterInstance
) -> None:
    table, named = Table("fleet", "dim_airlines"), "not_null_dim_airlines_carrier_name"
    assert build(instance, dg.AssetSelection.all().without_checks()).success
    assert named in {block.check for block in blocks(raw, [table])}
    assert build(instance).success
    assert named not in {block.check for block in blocks(raw, [table])}


def test_a_test_that_was_edited_is_run_again(
    raw: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stands(result: dg.ExecuteInProcessResult) -> set[str]:
        """The checks whose verdict was not found anew."""
        found = result.get_asset_check_evaluations()
        return {check.check_name for check in found if "as found by" in check.metadata}

    assert build(instance).success
    named = "not_null_dim_airlines_carrier_name"
    assert named in stands(build(instance))
    code = dbt_tests._code

    def edited(manifest: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
        config = test["config"] | ({"error_if": ">2"} if test["name"] == named else {})
        return code(manifest, {**test, "config": config})

    monkeypatch.setattr(dbt_tests, "_code", edited)
    again = stands(build(instance))
    assert again
    assert named not in again
