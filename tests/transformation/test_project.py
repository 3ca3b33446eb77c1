"""The parsed dbt project: made when needed, once for all who need it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dagster_project.failures import DeclarationError
from dagster_project.settings import Settings, get_settings
from dagster_project.transformation import project
from dagster_project.transformation.project import (
    dbt_environment,
    ensure_manifest,
    parse_manifest,
    read_manifest,
)

PROFILES = """\
mesh:
  target: warehouse
  outputs:
    warehouse: {type: postgres, host: 127.0.0.1, port: 1, user: u, password: p, dbname: d,
                schema: s, threads: 1}
"""


class Project:
    """A dbt project of one model, and how often it was parsed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "dbt"
        self.model = self.folder / "models" / "one.sql"
        self.model.parent.mkdir(parents=True)
        self.model.write_text("select 1 as id")
        (self.folder / "dbt_project.yml").write_text(
            "name: mesh\nversion: 1.0.0\nprofile: mesh\nmodel-paths: [models]\n"
        )
        (self.folder / "profiles.yml").write_text(PROFILES)
        self.settings = Settings(home=folder / "home")
        self.parses = 0
        parse = project._parse

        def counted(target: Path) -> None:
            self.parses += 1
            parse(target)

        monkeypatch.setattr(project, "DBT_PROJECT_DIR", self.folder)
        monkeypatch.setattr(project, "_parse", counted)

    def models(self) -> set[str]:
        nodes = read_manifest(self.settings)["nodes"].values()
        return {node["name"] for node in nodes if node["resource_type"] == "model"}


@pytest.fixture
def dbt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    return Project(tmp_path, monkeypatch)


def test_the_project_is_parsed_once_for_all_and_again_when_a_file_changed(dbt: Project) -> None:
    together = threading.Barrier(4)

    def ask() -> Path:
        together.wait()
        return ensure_manifest(dbt.settings)

    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(ask) for _ in range(4)]}
    assert found == {dbt.settings.dbt_target / "manifest.json"}
    assert dbt.parses == 1
    assert dbt.models() == {"one"}
    assert dbt.parses == 1

    (dbt.folder / "target").mkdir()
    (dbt.folder / "target" / "run.sql").write_text("what dbt wrote is no source")
    assert dbt.models() == {"one"}
    assert dbt.parses == 1

    (dbt.model.parent / "two.sql").write_text("select * from {{ ref('one') }}")
    assert dbt.models() == {"one", "two"}
    assert dbt.parses == 2


def test_a_mistake_in_a_model_is_told_in_dbts_words_and_is_not_taken_for_parsed(
    dbt: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    dbt.model.write_text("select {{ ref('nobody' }}")
    with pytest.raises(DeclarationError, match="the dbt project does not parse") as caught:
        ensure_manifest(dbt.settings)
    assert "models/one.sql" in str(caught.value)
    assert dbt.parses == 1
    again: list[Path] = []
    monkeypatch.setattr(project, "_parse", again.append)
    ensure_manifest(dbt.settings)
    assert again == [dbt.settings.dbt_target]


def everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


def test_what_an_image_was_built_with_is_read_and_never_written(
    dbt: Project, tmp_path: Path
) -> None:
    baked = tmp_path / "baked"
    dbt.settings = Settings(home=tmp_path / "home", dbt_target_dir=baked)
    with pytest.raises(DeclarationError, match="holds nothing that was parsed: run `mesh deploy p"):
        ensure_manifest(dbt.settings)
    assert not baked.exists()

    parse_manifest(dbt.settings)
    before = everything_in(baked)
    assert dbt.models() == {"one"}
    assert ensure_manifest(dbt.settings) == baked / "manifest.json"
    assert everything_in(baked) == before
    assert dbt.parses == 1

    dbt.model.write_text("select 2 as id")
    with pytest.raises(DeclarationError, match="was parsed from other files") as caught:
        dbt.models()
    assert "run `mesh deploy prepare`" in str(caught.value)
    assert str(baked) in str(caught.value)
    assert everything_in(baked) == before
    assert dbt.parses == 1
    assert not (tmp_path / "home").exists()

    parse_manifest(dbt.settings)
    assert dbt.models() == {"one"}
    assert dbt.parses == 2


def test_what_people_do_with_dbt_is_written_beside_what_an_image_was_built_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_settings: None
) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MESH_DBT_TARGET_DIR", str(tmp_path / "baked"))
    get_settings.cache_clear()
    written = {dbt_environment(None)[name] for name in ("DBT_TARGET_PATH", "DBT_LOG_PATH")}
    assert written == {str(tmp_path / "home" / "dbt")}
    assert get_settings().dbt_runs == tmp_path / "home" / "dbt" / "runs"


def test_dbt_is_told_the_warehouse_by_its_environment_and_the_password_by_a_scrubbed_variable() -> (
    None
):
    found = dbt_environment("postgresql://us%40er:p%40ss@h:7/d")
    assert found["DBT_MESH_USER"] == "us@er"
    assert (found["DBT_MESH_HOST"], found["DBT_MESH_PORT"]) == ("h", "7")
    assert found["DBT_MESH_DATABASE"] == "d"
    assert [name for name, value in found.items() if "p@ss" in value] == [
        "DBT_ENV_SECRET_MESH_PASSWORD"
    ]
    assert "DBT_MESH_HOST" not in dbt_environment(None)
