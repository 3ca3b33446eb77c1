"""The models' SQL as dbt compiles it: without a database, and once a version of the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagster_project.failures import DeclarationError
from dagster_project.settings import Settings
from dagster_project.transformation import compiled, project
from dagster_project.transformation.compiled import read_compiled

PROFILES = """\
mesh:
  target: warehouse
  outputs:
    warehouse: {type: postgres, host: 127.0.0.1, port: 1, user: u, password: p, dbname: d,
                schema: s, threads: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "dbt"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "one.sql").write_text("select {{ 1 + 1 }} as id")
    (folder / "models" / "two.sql").write_text("select * from {{ ref('one') }}")
    (folder / "dbt_project.yml").write_text(
        "name: mesh\nversion: 1.0.0\nprofile: mesh\nmodel-paths: [models]\n"
    )
    (folder / "profiles.yml").write_text(PROFILES)
    monkeypatch.setattr(project, "DBT_PROJECT_DIR", folder)
    return folder


def test_models_are_compiled_once_without_a_database_and_again_when_a_file_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, compiles = Settings(home=tmp_path / "home"), []
    compile_ = compiled._compile

    def counted(target: Path, manifest: Path) -> dict[str, str]:
        compiles.append(target)
        return compile_(target, manifest)

    monkeypatch.setattr(compiled, "_compile", counted)
    assert (
        read_compiled(settings)
        == read_compiled(settings)
        == {
            "model.mesh.one": "select 2 as id",
            "model.mesh.two": 'select * from "d"."s"."one"',
        }
    )
    assert len(compiles) == 1
    (folder / "models" / "two.sql").write_text(
        "{% if execute %}{{ exceptions.raise_compiler_error('not so') }}{% endif %}"
    )
    with pytest.raises(DeclarationError, match=r"(?s)does not compile:.*not so"):
        read_compiled(settings)
    assert len(compiles) == 2
    assert not any(target.exists() for target in compiles)
