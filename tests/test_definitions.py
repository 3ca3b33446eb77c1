"""What the code locations define, as the UI shows it, and what loading them may not do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster import AssetKey

from dagster_project.domain import domain_names, read_domain
from dagster_project.locations.location import domain_definitions, job_name
from dagster_project.settings import DEFS, EXPECTATIONS, PROJECT, WORKSPACE, get_settings
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.versions import node_table
from tests.checkout import Checkout

DOMAINS = domain_names()
HEAVY = ("great_expectations", "datahub", "pandas", "airbyte_cdk", "superset", "kubernetes")
#: Where data comes in: the graph has no gap if every mart goes back to one of these.
ORIGINS = ("source", "landing")

LOAD = """
import importlib, json, sys, warnings

warnings.filterwarnings("ignore")
seen = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "sqlite3.connect"):
        seen.append(f"{event}: {arguments[1:]}")

sys.addaudithook(watch)
for name in sys.argv[1].split(","):
    importlib.import_module(name).defs().get_repository_def()
modules = {name.split(".")[0] for name in sys.modules}
print(json.dumps({"seen": seen, "modules": sorted(modules)}))
"""


@pytest.fixture(scope="session", autouse=True)
def manifest() -> Any:
    """The dbt project, parsed as any command does it first."""
    return read_manifest()


@pytest.fixture(scope="session")
def graphs() -> dict[str, dg.AssetGraph]:
    """The asset graph of each code location."""
    return {name: domain_definitions(name).resolve_asset_graph() for name in DOMAINS}


@pytest.fixture(scope="session")
def specs(graphs: dict[str, dg.AssetGraph]) -> dict[AssetKey, tuple[str, Any]]:
    """Every asset once, with the domain whose location defines it."""
    found: dict[AssetKey, tuple[str, Any]] = {}
    for domain, graph in graphs.items():
        for key in graph.get_all_asset_keys():
            node = graph.get(key)
            if not node.metadata.get("dagster/auto_created_stub_asset"):
                assert key not in found, f"{key} is defined twice"
                found[key] = (domain, node)
    return found


def public_marts(manifest: Any) -> dict[str, set[str]]:
    """The public models of each domain."""
    found: dict[str, set[str]] = {name: set() for name in DOMAINS}
    for node in manifest["nodes"].values():
        if node["resource_type"] == "model" and node["access"] == "public":
            found[node["group"]].add(node["name"])
    return found


def kind_of(key: AssetKey) -> str:
    return key.path[0] if len(key.path) > 2 else key.path[0].rpartition("_")[2]


# Loading


@pytest.fixture(scope="session")
def loads(manifest: Any) -> dict[str, dict[str, Any]]:
    """What each location did when it loaded by itself, and all together, in fresh processes.

    A listener stands for the warehouse, for Dagster's storage and for the sources: a library that
    opens a connection behind Python's back is seen there.
    """
    modules = {name: f"dagster_project.locations.{name}" for name in DOMAINS}
    modules["all"] = ",".join(["dagster_project.definitions", *modules.values()])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MESH_")},
            "MESH_HOME": str(get_settings().home),
            "MESH_WAREHOUSE_URL": f"postgresql://mesh:secret@{address}/warehouse",
            "MESH_DAGSTER_URL": f"postgresql://mesh:secret@{address}/dagster",
            "MESH_REFERENCE_URL": f"http://{address}",
        }
        processes = {
            name: subprocess.Popen(
                [sys.executable, "-c", LOAD, module],
                cwd=PROJECT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, module in modules.items()
        }
        found = {}
        for name, process in processes.items():
            out, said = process.communicate(timeout=300)
            assert process.returncode == 0, f"{name}: {said[-3000:]}"
            found[name] = json.loads(out.splitlines()[-1])
        with pytest.raises(BlockingIOError):
            listener.accept()
    return found


@pytest.mark.parametrize("name", [*DOMAINS, "all"])
def test_a_location_loads_by_itself_and_imports_nothing_heavy(
    name: str, loads: dict[str, dict[str, Any]]
) -> None:
    assert not set(HEAVY) & set(loads[name]["modules"])


@pytest.mark.parametrize("name", [*DOMAINS, "all"])
def test_loading_reaches_no_network_and_no_database(
    name: str, loads: dict[str, dict[str, Any]]
) -> None:
    assert loads[name]["seen"] == []


@pytest.mark.parametrize("name", DOMAINS)
def test_a_location_loads_no_other_domain(name: str, loads: dict[str, dict[str, Any]]) -> None:
    graph = domain_definitions(name).resolve_asset_graph()
    assert {graph.get(key).group_name for key in graph.materializable_asset_keys} == {name}


def test_the_entry_for_tooling_defines_what_the_locations_do(
    specs: dict[AssetKey, tuple[str, Any]],
) -> None:
    from dagster_project.definitions import defs

    everything = defs().resolve_asset_graph()
    assert everything.get_all_asset_keys() == specs.keys()
    assert {job.name for job in defs().jobs or ()} == {job_name(name) for name in DOMAINS}


def test_workspace_and_folders_agree() -> None:
    entries = [
        entry["python_module"] for entry in yaml.safe_load(WORKSPACE.read_text())["load_from"]
    ]
    assert entries == [
        {"module_name": f"dagster_project.locations.{name}", "location_name": name}
        for name in DOMAINS
    ]
    modules = {path.stem for path in (PROJECT / "dagster_project" / "locations").glob("*.py")}
    assert modules == {"__init__", "location", *DOMAINS}
    # A folder without __init__.py is not seen by the rule that a domain imports no other domain.
    assert {path.parent.name for path in DEFS.glob("*/__init__.py")} == set(DOMAINS)
    assert {path.name for path in EXPECTATIONS.iterdir() if path.is_dir()} == set(DOMAINS)


# What an asset shows


def test_every_asset_says_what_it_is_whose_and_where(
    specs: dict[AssetKey, tuple[str, Any]],
) -> None:
    for key, (domain, node) in specs.items():
        name = key.to_user_string()
        assert node.group_name == domain, name
        assert node.owners == [read_domain(domain).owner], name
        assert node.kinds, name
        assert len(node.description) > 20, name
        assert not node.description.startswith(name), name
        for reference in node.metadata["dagster/code_references"].code_references:
            assert Path(reference.file_path).is_file(), name


def test_every_asset_of_a_table_shows_the_table_and_its_columns(
    specs: dict[AssetKey, tuple[str, Any]],
) -> None:
    shown = {key: node.metadata["dagster/table_name"] for key, (_, node) in specs.items()}
    assert shown[AssetKey(["source", "weather", "readings", "weather"])] == "readings.weather"
    assert shown[AssetKey(["landing", "flights", "flights"])] == "landing/flights/flights"
    for key, name in shown.items():
        if kind_of(key) not in ORIGINS:
            place = "/".join(key.path[1:]) if key.path[0] == "lake" else ".".join(key.path)
            assert name == place


def test_every_column_of_every_asset_is_described(specs: dict[AssetKey, tuple[str, Any]]) -> None:
    for key, (_, node) in specs.items():
        columns = node.metadata["dagster/column_schema"].columns
        assert columns, key.to_user_string()
        for column in columns:
            assert column.description, f"{key.to_user_string()}.{column.name}"
            assert column.type, f"{key.to_user_string()}.{column.name}"


def test_the_graph_reads_from_source_to_mart_without_a_gap(
    specs: dict[AssetKey, tuple[str, Any]],
) -> None:
    parents = {key: set(node.parent_keys) for key, (_, node) in specs.items()}
    children = {parent for found in parents.values() for parent in found}

    def origins(key: AssetKey) -> set[AssetKey]:
        found: set[AssetKey] = set()
        for parent in parents[key]:
            found |= origins(parent)
        return found or {key}

    for key in specs:
        assert parents[key] <= specs.keys(), f"{key} depends on what nobody defines"
        assert {kind_of(origin) for origin in origins(key)} <= set(ORIGINS), key
        if kind_of(key) in (*ORIGINS, "lake"):
            assert key in children, f"nobody uses {key}"


def test_every_mart_and_every_raw_table_is_checked(
    graphs: dict[str, dg.AssetGraph], specs: dict[AssetKey, tuple[str, Any]]
) -> None:
    for key, (domain, _) in specs.items():
        if kind_of(key) == "raw" or key.path[0] == domain:
            steps = {
                check.name for check in graphs[domain].asset_check_keys if check.asset_key == key
            }
            assert steps, key


# Domains


def test_a_domain_promises_exactly_its_public_marts(manifest: Any) -> None:
    marts = public_marts(manifest)
    for name in DOMAINS:
        promised = [
            table for product in read_domain(name).data_products for table in product.tables
        ]
        assert sorted(promised) == sorted(marts[name]), name


def test_a_domain_depends_on_those_whose_models_it_uses(manifest: Any) -> None:
    uses: dict[str, set[str]] = {name: set() for name in DOMAINS}
    for node in manifest["nodes"].values():
        if node["resource_type"] != "model":
            continue
        for parent in node["depends_on"]["nodes"]:
            if parent.startswith("model."):
                uses[node["group"]].add(manifest["nodes"][parent]["group"])
    for name in DOMAINS:
        assert set(read_domain(name).depends_on) == uses[name] - {name}, name


def test_a_domain_reads_of_others_only_what_they_promise(manifest: Any) -> None:
    for node in manifest["nodes"].values():
        if node["resource_type"] not in ("model", "test"):
            continue
        domain = node["fqn"][1]
        for parent in node["depends_on"]["nodes"]:
            theirs = (manifest["sources"] if parent.startswith("source.") else manifest["nodes"])[
                parent
            ]
            if node["resource_type"] == "model" and parent.startswith("source."):
                assert node_table(theirs).domain == domain, (
                    f"{node['name']} of {domain} reads the source {node_table(theirs)}"
                )
            if parent.startswith("model.") and theirs["group"] != domain in DOMAINS:
                assert theirs["access"] == "public", f"{node['name']} reads {theirs['name']}"


def test_a_model_is_public_with_a_contract_or_private(manifest: Any) -> None:
    for node in manifest["nodes"].values():
        if node["resource_type"] != "model":
            continue
        mart = node["fqn"][2] == "marts"
        assert node["group"] == node["fqn"][1], node["name"]
        assert node["access"] == ("public" if mart else "private"), node["name"]
        assert node["contract"]["enforced"] is mart, node["name"]
        schema = node["group"] if mart else f"{node['group']}_staging"
        assert node["schema"] == schema, node["name"]


def test_a_group_of_dbt_has_the_owner_of_its_domain(manifest: Any) -> None:
    owners = {group["name"]: group["owner"]["name"] for group in manifest["groups"].values()}
    assert owners == {name: read_domain(name).owner for name in DOMAINS}


def test_personal_data_is_of_columns_that_exist(specs: dict[AssetKey, tuple[str, Any]]) -> None:
    for name in DOMAINS:
        for table, columns in read_domain(name).personal_data.items():
            _, node = specs[AssetKey(table.split("."))]
            there = {column.name for column in node.metadata["dagster/column_schema"].columns}
            assert set(columns) <= there, table


# The pipelines


def test_the_last_step_of_a_pipeline_is_not_partitioned(
    graphs: dict[str, dg.AssetGraph],
) -> None:
    """Dagster plans an event an asset and partition if the last step by name is partitioned."""
    nodes = [graphs["flights"].get(key) for key in graphs["flights"].materializable_asset_keys]
    partitions = {node.assets_def.op.name: node.partitions_def for node in nodes}
    job = domain_definitions("flights").resolve_job_def(job_name("flights"))
    last = max(node.name for node in job.nodes)
    assert last.startswith("transform_flights")
    assert partitions[last] is None


def test_only_the_raw_table_and_the_incremental_fact_are_partitioned(
    specs: dict[AssetKey, tuple[str, Any]],
) -> None:
    partitioned = {
        key.to_user_string() for key, (_, node) in specs.items() if node.partitions_def is not None
    }
    assert partitioned == {"flights_raw/flights", "flights/fct_flights"}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_pipeline_carries_everything_the_domain_has(
    name: str, graphs: dict[str, dg.AssetGraph]
) -> None:
    job = domain_definitions(name).resolve_job_def(job_name(name))
    assert job.asset_layer.executable_asset_keys == graphs[name].materializable_asset_keys
    assert job.asset_layer.asset_graph.asset_check_keys == graphs[name].asset_check_keys


# A checkout that somebody works in


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


SHOW = """
import json
from dagster import AssetKey
from dagster_project.locations.fleet import defs
graph = defs().resolve_asset_graph()
node = graph.get(AssetKey({key!r}))
(reference,) = node.metadata["dagster/code_references"].code_references
job = defs().resolve_job_def("fleet_pipeline")
print(json.dumps(dict(
    owners=node.owners, group=node.group_name, kinds=sorted(node.kinds),
    file=reference.file_path, description=node.description,
    runs=AssetKey({key!r}) in job.asset_layer.executable_asset_keys,
)))
"""


def test_an_asset_in_python_is_one_file(checkout: Checkout) -> None:
    path = "dagster_project/defs/fleet/x.py"
    checkout.write(path, "import dagster as dg\n\n\n@dg.asset\ndef x() -> None:\n    return None\n")
    answer = checkout.python(SHOW.format(key=["x"]))
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {
        "owners": [read_domain("fleet").owner],
        "group": "fleet",
        "kinds": ["python"],
        "file": str(checkout.root / path),
        "description": "x, of fleet.",
        "runs": True,
    }


BROKEN = """
from dagster_project.locations import commerce, fleet, flights, weather
from dagster_project.failures import DeclarationError
fleet.defs()
flights.defs()
for location in (weather, commerce):
    try:
        location.defs()
    except Exception as error:
        while error.__cause__ and not isinstance(error, DeclarationError):
            error = error.__cause__
        print(type(error).__name__, error)
"""


def test_a_mistake_stops_its_own_location_alone_and_names_file_and_line(
    checkout: Checkout,
) -> None:
    checkout.write("dagster_project/defs/weather/x.py", "import what_is_not_there\n")
    declaration = checkout.root / "dagster_project" / "defs" / "commerce" / "domain.yaml"
    lines = len(declaration.read_text().splitlines())
    declaration.write_text(declaration.read_text() + "ownr: me\n")
    answer = checkout.python(BROKEN)
    assert answer.returncode == 0, answer.stderr
    weather, commerce = answer.stdout.splitlines()
    assert weather == "ModuleNotFoundError No module named 'what_is_not_there'"
    assert commerce == (
        f"DeclarationError {declaration}:{lines + 1}: ownr: unknown key, did you mean owner? "
        "Allowed here: owner, purpose, data_products, freshness, personal_data, depends_on"
    )


def test_assets_link_to_their_pages_in_datahub_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MESH_DATAHUB_URL", "https://datahub.example/")
    get_settings.cache_clear()
    domain_definitions.cache_clear()
    try:
        nodes = domain_definitions("fleet").resolve_asset_graph().asset_nodes
        links = {node.key.to_user_string(): node.metadata["DataHub"].value for node in nodes}
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
        domain_definitions.cache_clear()
    assert links["fleet/dim_planes"] == (
        "https://datahub.example/dataset/urn%3Ali%3Adataset%3A%28urn%3Ali%3AdataPlatform%3A"
        "postgres%2Cwarehouse.fleet.dim_planes%2CDEV%29"
    )
    assert {key.split("/")[0] for key in links} == {
        "source",
        "lake",
        "fleet_raw",
        "fleet",
        "fleet_staging",
    }
