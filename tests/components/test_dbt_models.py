"""dbt models as assets: what is built, what is left alone, what a failed test does next time."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import dagster as dg
import psycopg
import pytest

from dagster_project.locations.location import domain_definitions
from dagster_project.settings import get_settings

STEPS = [f"transform_fleet_{table}" for table in ("airlines", "airports", "planes")]
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


def build(instance: dg.DagsterInstance, rebuild: bool = False) -> dg.ExecuteInProcessResult:
    """Fleet's dbt step alone."""
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
    config = {"ops": {step: {"config": {"rebuild": rebuild}} for step in STEPS}}
    return dg.materialize(assets, instance=instance, run_config=config, raise_on_error=False)


def built(result: dg.ExecuteInProcessResult) -> set[str]:
    """The models that were built, rather than found to be up to date."""
    return {
        event.materialization.asset_key.path[-1]
        for event in result.get_asset_materialization_events()
        if "up to date" not in event.materialization.metadata
    }


def failed(result: dg.ExecuteInProcessResult) -> set[str]:
    return {check.check_name for check in result.get_asset_check_evaluations() if not check.passed}


def test_only_what_changed_is_built(raw: str, instance: dg.DagsterInstance) -> None:
    first = build(instance)
    assert first.success
    assert len(built(first)) == 6
    checks = len(first.get_asset_check_evaluations())
    assert checks > 10

    second = build(instance)
    assert second.success
    assert built(second) == set()
    assert len(second.get_asset_check_evaluations()) == checks, "the verdicts stand"

    with psycopg.connect(raw) as connection:
        connection.execute("DROP TABLE fleet.dim_airlines")
    assert built(build(instance)) == {"dim_airlines"}

    password = urlsplit(raw).password or ""
    files = [path for path in get_settings().home.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if password.encode() in path.read_bytes()] == []


def test_a_failed_test_is_looked_at_again(raw: str, instance: dg.DagsterInstance) -> None:
    with psycopg.connect(raw) as connection:
        connection.execute("UPDATE fleet_raw.airlines SET name = NULL")
    first = build(instance)
    assert not first.success
    broken = failed(first)
    assert broken

    # Nothing changed, so nothing is built; and the failure is not forgotten for that.
    second = build(instance)
    assert not second.success
    assert failed(second) & broken

    with psycopg.connect(raw) as connection:
        connection.execute("UPDATE fleet_raw.airlines SET name = 'United Air Lines Inc.'")
    third = build(instance, rebuild=True)
    assert third.success
    assert len(built(third)) == 6
    assert failed(third) == set()
