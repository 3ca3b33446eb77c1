"""`mesh deploy check`: a line for each thing that is wrong, which says what to do about it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_project.cli.services import services
from dagster_project.deployment import checks
from dagster_project.deployment.checks import CHECKS, Finding, findings
from dagster_project.deployment.migration import migrate
from dagster_project.ingestion import environments
from dagster_project.settings import get_settings
from dagster_project.transformation.project import ensure_manifest
from tests.catalog.gms import RecordingGms
from tests.deployment.conftest import Staging

WORD = "s3cr3t-w0rd"


def look(staging: Staging, what: str, **settings: str | None) -> Finding:
    """What that check finds; all the others are made, too."""
    found = {each.what: each for each in findings(staging.settings(**settings))}
    assert list(found) == list(CHECKS), "a check was left out"
    for each in found.values():
        assert "\n" not in each.said
        assert WORD not in each.said
    return found[what]


def wrong(staging: Staging, what: str, **settings: str | None) -> str:
    found = look(staging, what, **settings)
    assert not found.is_well, found
    return found.said


def well(staging: Staging, what: str, **settings: str | None) -> str:
    found = look(staging, what, **settings)
    assert found.is_well, found
    return found.said


@pytest.fixture
def migrated(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> Staging:
    monkeypatch.setenv("DAGSTER_HOME", "")
    with services(staging.settings()):
        list(migrate(get_settings()))
    return staging


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens, and nobody else can begin to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_what_an_environment_lacks_is_named(staging: Staging) -> None:
    said = wrong(staging, "settings", MESH_DAGSTER_URL=None, MESH_LAKE_URL="s3://bucket/lake")
    assert said.startswith("MESH_DAGSTER_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY not set")
    assert "staging" in said
    assert "MESH_WAREHOUSE_URL" in wrong(staging, "settings", MESH_WAREHOUSE_URL=None)
    assert "MESH_WAREHOUSE_URL is not set" in wrong(staging, "warehouse", MESH_WAREHOUSE_URL=None)
    well(staging, "settings")


def test_an_object_store_that_a_role_opens_needs_no_key(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    assert checks.missing_settings(staging.settings(MESH_LAKE_URL="s3://bucket/lake")) == ""


def test_settings_that_cannot_be_read_are_a_line_and_nothing_is_looked_at(
    staging: Staging,
) -> None:
    done = staging.mesh("deploy", "check", MESH_WAREHOUSE_ULR=WORD)
    lines = done.out.splitlines()
    assert done.code == 1
    assert len(lines) == len(CHECKS)
    assert lines[0].split()[:2] == ["settings", "wrong"]
    assert "did you mean MESH_WAREHOUSE_URL?" in lines[0]
    assert all("not looked at" in line for line in lines[1:])
    assert WORD not in done.out + done.err


def test_a_database_that_is_away_is_told_and_the_others_are_looked_at(
    staging: Staging, closed_port: int
) -> None:
    away = f"postgresql://mesh:{WORD}@127.0.0.1:{closed_port}/warehouse"
    began = time.monotonic()
    said = wrong(staging, "warehouse", MESH_WAREHOUSE_URL=away)
    assert f"127.0.0.1:{closed_port}/warehouse does not answer" in said
    said = wrong(staging, "Dagster's database", MESH_DAGSTER_URL=away)
    assert "does not answer" in said
    assert look(staging, "lake", MESH_WAREHOUSE_URL=away).is_well
    assert time.monotonic() - began < 60


def test_a_password_that_is_refused_is_not_shown(staging: Staging) -> None:
    before, _, after = staging.warehouse.rpartition("@")
    url = f"{before.rpartition(':')[0]}:{WORD}@{after}"
    assert "authentication failed" in wrong(staging, "warehouse", MESH_WAREHOUSE_URL=url)
    url = f"{before.rpartition(':')[0]}:{WORD.replace('-', '%2D')}%2Fa@{after}"
    assert "authentication failed" in wrong(staging, "warehouse", MESH_WAREHOUSE_URL=url)


def test_a_secret_that_somebody_else_puts_into_an_error_is_taken_out(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tells(*_: object) -> str:
        raise ValueError(f"the token {WORD}\nand {os.environ['AWS_SECRET_ACCESS_KEY']}")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an0ther-secret")
    monkeypatch.setitem(CHECKS, "lake", tells)
    said = wrong(staging, "lake", MESH_DATAHUB_TOKEN=WORD)
    assert said == "ValueError: the token *** and ***"


def test_what_does_not_answer_is_not_waited_for(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PATIENCE", 0.3)
    monkeypatch.setitem(CHECKS, "lake", lambda *_: str(time.sleep(5)))
    assert "no answer within" in wrong(staging, "lake")


def test_a_role_has_to_be_able_to_make_schemas_and_to_own_them(staging: Staging) -> None:
    assert "PostgreSQL 18" in well(staging, "warehouse")
    name = staging.warehouse.rpartition("/")[2]
    staging.administer("CREATE SCHEMA fleet_raw")
    said = wrong(staging, "warehouse")
    assert "the schemas fleet_raw are not the role's: ALTER SCHEMA" in said
    staging.administer("DROP SCHEMA fleet_raw")
    staging.administer(f"ALTER DATABASE {name} OWNER TO postgres")
    staging.administer(f"REVOKE ALL ON DATABASE {name} FROM mesh")
    assert f"GRANT CREATE ON DATABASE {name} TO mesh" in wrong(staging, "warehouse")


def test_a_superuser_is_refused(staging: Staging) -> None:
    url = staging.administrator(staging.warehouse.rpartition("/")[2])
    assert "postgres is a superuser" in wrong(staging, "warehouse", MESH_WAREHOUSE_URL=url)


def test_what_is_not_migrated_is_told_with_what_to_do(staging: Staging) -> None:
    for what in ("tables in the warehouse", "tables beside Dagster's", "Dagster's database"):
        assert wrong(staging, what).endswith("run `mesh deploy migrate`")
    assert staging.run("SELECT to_regclass('runs')", staging.dagster) == [(None,)], "it made some"


def test_what_is_migrated_is_well_and_what_is_of_another_release_is_told(
    migrated: Staging,
) -> None:
    for what in ("tables in the warehouse", "tables beside Dagster's", "Dagster's database"):
        well(migrated, what)
    migrated.run("INSERT INTO mesh.migrations VALUES ('ledger', 2)")
    assert "ledger ahead of this release" in well(migrated, "tables in the warehouse")
    migrated.run("DROP TABLE bulk_actions", migrated.dagster)
    assert "lacks bulk_actions" in wrong(migrated, "Dagster's database")
    for revision, said in (
        ("f495c27d5019", "of an older Dagster: run `mesh deploy migrate`"),
        ("abcabcabcabc", "of a newer Dagster: deploy that release"),
    ):
        migrated.run(f"UPDATE alembic_version SET version_num = '{revision}'", migrated.dagster)
        assert wrong(migrated, "Dagster's database").endswith(said)


def test_a_lake_that_cannot_be_written_is_told(staging: Staging, tmp_path: Path) -> None:
    well(staging, "lake")
    left = [path for path in (tmp_path / "lake").rglob("*") if path.is_file()]
    assert left == [], "the probe was left there"
    (tmp_path / "file").write_text("no folder")
    url = (tmp_path / "file" / "lake").as_uri()
    assert "lake" in wrong(staging, "lake", MESH_LAKE_URL=url)
    assert "cannot be written" in wrong(staging, "home", MESH_HOME=str(tmp_path / "file" / "home"))


def test_a_lake_on_s3_is_probed_with_its_own_credentials(
    staging: Staging, s3_server: object, request: pytest.FixtureRequest
) -> None:
    lake = request.getfixturevalue("s3_lake")
    assert "written, read, listed and deleted" in well(staging, "lake", MESH_LAKE_URL=lake.url)
    assert list(lake.list("_deploy_check")) == []


def test_the_manifest_has_to_be_of_these_files_and_of_this_database(
    staging: Staging, tmp_path: Path
) -> None:
    assert "run `mesh deploy prepare`" in wrong(staging, "dbt project")
    (tmp_path / "home").mkdir(exist_ok=True)
    staging.settings(MESH_HOME=None, MESH_WAREHOUSE_URL=None)
    baked = str(ensure_manifest().parent)
    name = staging.warehouse.rpartition("/")[2]
    said = wrong(staging, "dbt project", MESH_DBT_TARGET_DIR=baked)
    assert said.endswith(f"run `mesh deploy prepare --database {name}`")
    elsewhere = f"{staging.warehouse.rpartition('/')[0]}/warehouse"
    well(staging, "dbt project", MESH_DBT_TARGET_DIR=baked, MESH_WAREHOUSE_URL=elsewhere)


def test_connectors_and_their_variables_are_looked_at_where_they_run(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "starts no connector" in well(staging, "connectors")
    folder = {"MESH_CONNECTORS_DIR": str(tmp_path / "connectors")}
    assert "source-faker" in wrong(staging, "connectors", **folder)
    monkeypatch.setattr(checks, "installed", lambda *_: True)
    said = wrong(staging, "connectors", **folder)
    assert "needs the environment variable MESH_REFERENCE_URL" in said
    well(staging, "connectors", **folder, MESH_REFERENCE_URL="http://sources")
    # Of the domains that are asked for, alone.
    settings = staging.settings(**folder)
    (only,) = [each for each in findings(settings, ["commerce"]) if each.what == "connectors"]
    assert only.is_well, only
    assert environments.installed("source-faker", tmp_path) is False


def test_datahub_is_asked_for_its_version(staging: Staging, closed_port: int) -> None:
    well(staging, "DataHub")
    with RecordingGms() as gms:
        assert "v1.7.0" in well(staging, "DataHub", MESH_DATAHUB_GMS_URL=gms.url)
    away = f"http://127.0.0.1:{closed_port}"
    said = wrong(staging, "DataHub", MESH_DATAHUB_GMS_URL=away, MESH_DATAHUB_TOKEN=WORD)
    assert "does not answer" in said


def test_where_step_logs_are_kept_is_tried(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    for place, is_well in ((tmp_path / "logs", True), (tmp_path / "file" / "logs", False)):
        (tmp_path / "dagster" / "dagster.yaml").write_text(
            "compute_logs:\n  module: dagster._core.storage.local_compute_log_manager\n"
            "  class: LocalComputeLogManager\n"
            f"  config: {{base_dir: {place}}}\n"
        )
        found = look(staging, "step logs")
        assert found.is_well == is_well, found
    assert not [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]


def test_the_command_says_a_line_each_and_its_code_says_whether_all_is_well(
    migrated: Staging,
) -> None:
    done = migrated.mesh("deploy", "check")
    lines = done.out.splitlines()
    assert done.code == 1
    assert len(lines) == len(CHECKS)
    assert {line[:26].split("  ")[0]: line[25:].split()[0] for line in lines} == {
        what: "wrong" if what == "dbt project" else "ok" for what in CHECKS
    }
    assert len({line.index("ok ") for line in lines if "wrong" not in line[:35]}) == 1
    for secret in (migrated.warehouse, migrated.dagster):
        assert secret.rpartition("@")[0].rpartition(":")[2] not in done.out + done.err
