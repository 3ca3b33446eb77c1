"""The README is true: its commands are run, its examples are done as it says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dagster_project.domain import domain_names
from dagster_project.settings import PROJECT, Settings
from tests.checkout import Checkout
from tests.readme import MESH, TEXT, commands, examples

sys.path.insert(0, str(PROJECT / "scripts"))
import draw_graph

#: What runs a command that is not run by tests/e2e/test_readme.py, which runs every other.
ELSEWHERE = {
    "make run": "tests/e2e/conftest.py::first_run",
    "make ui": "tests/e2e/test_ui_runs.py::test_one_interrupt_ends_all_of_it",
    "make test": ".ci/run::make test",
    "make lint": ".ci/run::make lint",
    "make bench": "tests/test_readme.py::test_the_benchmark_prints_a_ratio",
    "make clean": "tests/e2e/conftest.py::platform",
}
#: What `make` runs for each of them.
RECIPES = {
    "make run": ".venv/bin/mesh run",
    "make ui": ".venv/bin/mesh ui",
    "make test": ".venv/bin/python -m pytest",
    "make bench": ".venv/bin/python -m benchmarks",
    "make clean": ".venv/bin/mesh clean",
}


def test_every_command_is_run_by_a_test() -> None:
    asked = commands()
    assert asked[:2] == ["make run", "make test"]
    assert {command for command in asked if not command.startswith(MESH)} == set(ELSEWHERE)
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        text = (PROJECT / path).read_text()
        if path.endswith(".py"):
            defined = {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)}
            assert name in defined, place
        else:
            assert re.search(rf"^(timed )?{name}$", text, re.MULTILINE), place


@pytest.mark.parametrize(("command", "recipe"), RECIPES.items())
def test_make_runs_what_the_tests_run(command: str, recipe: str) -> None:
    said = subprocess.run(
        ["make", "-n", *command.split()[1:]],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert recipe in said.stdout


def test_the_benchmark_prints_a_ratio() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--no-keep", "--runs", "1", "loading"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"of processor time\W+\d\.\d\d\W+1\.3\W+(within|MISSED)", said.stdout)


def test_the_picture_shows_the_graph_that_there_is() -> None:
    drawn = draw_graph.draw(draw_graph.graph())
    assert draw_graph.PICTURE.read_text() == drawn, "run .venv/bin/python scripts/draw_graph.py"
    assert f"]({draw_graph.PICTURE.relative_to(PROJECT)})" in TEXT


def test_every_file_it_names_is_there() -> None:
    folders = [PROJECT, PROJECT / "dagster_project" / "defs" / "fleet"]
    folders.append(PROJECT / "dbt_project" / "models" / "commerce")
    for name in re.findall(r"`([\w./-]+/(?:[\w.-]+)?)`", TEXT):
        if not name.startswith((".mesh", ".venv")):
            assert any((folder / name).exists() for folder in folders), name


def test_every_setting_it_names_is_one() -> None:
    named = set(re.findall(r"MESH_[A-Z_]*[A-Z]", TEXT))
    assert named
    assert named <= {f"MESH_{name.upper()}" for name in Settings.model_fields}


def test_every_domain_is_in_it() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) >= set(domain_names())


# The examples, done as a reader would do them


SHOW = """
import json
from dagster import AssetKey
from dagster_project.definitions import defs
everything = defs()
graph = everything.resolve_asset_graph()
def shown(*path):
    node = graph.get(AssetKey(path))
    return dict(
        group=node.group_name, owners=node.owners, description=node.description,
        parents=sorted(key.to_user_string() for key in node.parent_keys),
        checks=sorted(k.name for k in graph.asset_check_keys if k.asset_key.path == list(path)),
        columns=[
            column.name
            for column in getattr(node.metadata.get("dagster/column_schema"), "columns", [])
        ],
    )
print(json.dumps({
    "asset": shown("fleet", "seats_by_manufacturer"),
    "lake": shown("lake", "fleet", "register", "airport_names"),
    "raw": shown("fleet_raw", "airport_names"),
    "model": shown("fleet", "planes_by_year"),
    "checked": shown("fleet", "dim_planes")["checks"],
}))
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which everything has been added that the README adds."""
    checkout = Checkout(tmp_path_factory.mktemp("readme") / "checkout")
    for example in examples().values():
        path = checkout.root / example.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            suite = json.loads(path.read_text())
            suite["expectations"].append(json.loads(example.text))
            path.write_text(json.dumps(suite))
        elif example.place == "end":
            path.write_text(path.read_text() + example.text)
        elif example.place:
            before, found, after = path.read_text().partition(f"\n{example.place}\n")
            assert found, example.place
            path.write_text(f"{before.rstrip()}\n\n{example.text}{found}{after}")
        else:
            assert not path.exists(), f"{path} is there already"
            path.write_text(example.text)
    (checkout.root / "dagster_project" / "defs" / "cargo" / "__init__.py").touch()
    neighbour = checkout.root / "dagster_project" / "locations" / "fleet.py"
    (neighbour.parent / "cargo.py").write_text(neighbour.read_text().replace("fleet", "cargo"))
    return checkout


@pytest.fixture(scope="module")
def shown(followed: Checkout) -> dict[str, dict[str, object]]:
    answer = followed.python(SHOW)
    assert answer.returncode == 0, answer.stderr[-3000:]
    found: dict[str, dict[str, object]] = json.loads(answer.stdout.splitlines()[-1])
    return found


def test_the_asset_in_python_is_the_domains(shown: dict[str, dict[str, object]]) -> None:
    assert shown["asset"] == {
        "group": "fleet",
        "owners": ["team:fleet-data"],
        "description": "Seats of all aircraft by manufacturer.",
        "parents": ["fleet/dim_planes"],
        "checks": [],
        "columns": [],
    }


def test_the_stream_is_an_asset_in_the_lake_and_a_raw_table(
    shown: dict[str, dict[str, object]],
) -> None:
    assert shown["lake"]["parents"] == ["source/fleet/register/airport_names"]
    assert shown["raw"]["parents"] == ["lake/fleet/register/airport_names"]
    assert shown["raw"]["columns"][-2:] == ["faa", "name"]


def test_the_model_is_an_asset_with_its_tests_as_checks(
    shown: dict[str, dict[str, object]],
) -> None:
    assert shown["model"]["parents"] == ["fleet_raw/planes", "fleet_staging/stg_fleet__planes"]
    assert shown["model"]["columns"] == ["manufacture_year", "planes"]
    assert len(shown["model"]["checks"]) == 2


def test_the_check_is_an_asset_check(shown: dict[str, dict[str, object]]) -> None:
    assert "seat_count_in_range" in shown["checked"]


def test_the_domain_loads(followed: Checkout) -> None:
    answer = followed.python(
        "from dagster_project.domain import domain_names, read_domain\n"
        "from dagster_project.locations.cargo import defs\n"
        "defs().get_repository_def()\n"
        "print(read_domain('cargo').owner, *domain_names())"
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert answer.stdout.split() == ["team:cargo-data", *sorted([*domain_names(), "cargo"])]


def test_the_examples_pass_the_linter(followed: Checkout) -> None:
    path = next(path for path in examples() if path.endswith(".py"))
    ruff = str(Path(sys.executable).with_name("ruff"))
    for command in (["check"], ["format", "--check"]):
        subprocess.run([ruff, *command, path], cwd=followed.root, check=True, stdout=sys.stderr)
