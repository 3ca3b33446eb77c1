"""`mesh deploy prepare`: what an image is built with, which nobody writes afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dagster_project.domain import domain_names
from dagster_project.settings import PREFIX, PROJECT
from tests.e2e.platform import Platform

#: Loads every code location, and says what was started and what was opened to be written.
LOADS = """
import importlib, json, sys, warnings

warnings.filterwarnings("ignore")
seen = []

def watch(event, arguments):
    if event == "subprocess.Popen":
        seen.append(str(arguments[1]))
    if event == "open" and str(arguments[0]).startswith(sys.argv[1]) and arguments[1] != "r":
        if set(arguments[1] or "") & set("wax+"):
            seen.append(str(arguments[:2]))

sys.addaudithook(watch)
for name in sys.argv[2:]:
    importlib.import_module(f"dagster_project.locations.{name}").defs().get_repository_def()
print(json.dumps(seen))
"""


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    every = (folder, *folder.rglob("*"))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in every}


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an image has it: no warehouse, no home to speak of."""
    folder = tmp_path_factory.mktemp("image")
    done = Platform(folder / "home").mesh(
        "deploy", "prepare", "--database", "marts", MESH_DBT_TARGET_DIR=str(folder / "dbt")
    )
    assert done.code == 0, done.err
    assert "models for the database marts" in done.out
    assert not (folder / "home" / "postgres").exists(), "it started a database"
    return folder / "dbt"


def test_it_is_parsed_for_the_database_that_is_named(baked: Path, tmp_path: Path) -> None:
    manifest = json.loads((baked / "manifest.json").read_bytes())
    assert {node["database"] for node in manifest["nodes"].values()} == {"marts"}
    names = {path.name for path in baked.iterdir()}
    assert {"partial_parse.msgpack", "compiled.json", "column_lineage.json"} <= names
    # The same command with another name is heeded.
    again = Platform(tmp_path / "home").mesh("deploy", "prepare", "--database", "other")
    assert again.code == 0, again.err
    again = Platform(tmp_path / "home").mesh("deploy", "prepare", "--database", "third")
    assert again.code == 0, again.err
    manifest = json.loads((tmp_path / "home" / "dbt" / "manifest.json").read_bytes())
    assert {node["database"] for node in manifest["nodes"].values()} == {"third"}


def test_locations_load_from_it_without_parsing_and_without_writing_there(
    baked: Path, tmp_path: Path
) -> None:
    before = contents(baked)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    given = {
        "MESH_ENV": "production",
        "MESH_HOME": str(tmp_path / "home"),
        "MESH_DBT_TARGET_DIR": str(baked),
        "MESH_WAREHOUSE_URL": "postgresql://mesh:p@127.0.0.1:1/marts",
        "MESH_LAKE_URL": "s3://bucket/lake",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(baked), *domain_names()],
        env=mine | given | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [each for each in json.loads(done.stdout.splitlines()[-1]) if "dbt" in each] == []
    assert contents(baked) == before
    assert not (tmp_path / "home" / "dbt").exists()


def test_a_warehouse_is_not_looked_at(tmp_path: Path) -> None:
    url = "postgresql://mesh:s3cr3t@127.0.0.1:1/marts"
    done = Platform(tmp_path / "home").mesh("deploy", "prepare", MESH_WAREHOUSE_URL=url)
    assert done.code == 2
    assert "MESH_WAREHOUSE_URL is set" in done.err
    assert "s3cr3t" not in done.err
