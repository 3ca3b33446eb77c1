"""The example of a heavy step: a process on a laptop, a pod on Kubernetes, the same asset."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest
from dagster._core.code_pointer import FileCodePointer

from tests.deploy.charts import DEPLOY, config_maps, domains, platform
from tests.deploy.cluster import Cluster
from tests.deploy.launching import HEAVY, launched, local_instance, with_kubernetes


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("heavy", DEPLOY / "examples" / "heavy_asset.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summed(result: dg.ExecuteInProcessResult) -> object:
    (found,) = result.asset_materializations_for_node("fleet__summed")
    return found.metadata["sum"].value


def test_on_a_laptop_it_is_a_process(example: ModuleType) -> None:
    assert summed(dg.materialize([example.summed])) == 499_500


LOCATION = """
import sys
import dagster as dg
from dagster_k8s import pipes

# It waits ten seconds between two looks at its pod.
pipes.PipesK8sClient.__init__.__defaults__ = (None,) * 6 + (0.2,)
sys.path.insert(0, {examples!r})
from heavy_asset import summed

defs = dg.Definitions(assets=[summed], jobs=[dg.define_asset_job("summing")])
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", {}) as found:
        found.secrets = {
            name: {"postgresql-password": ""}
            for name in (
                "mesh-object-store",
                "mesh-warehouse",
                "mesh-dagster-database",
                "mesh-fleet",
            )
        }
        found.secrets["mesh-fleet"] = {"KUBECONFIG": found.kubeconfig}
        found.config_maps = {
            **config_maps(platform(), domains()),
            "mesh-settings": {},
        }
        yield found


def test_on_kubernetes_it_is_a_pod_of_its_size(cluster: Cluster, tmp_path: Path) -> None:
    location = tmp_path / "location.py"
    location.write_text(LOCATION.format(examples=str(DEPLOY / "examples")))
    with local_instance(with_kubernetes(platform(), cluster), tmp_path / "home") as found:
        run = launched(
            found, "fleet", domains()["fleet"], "summing", FileCodePointer(str(location), "defs")
        )
        pod = cluster.run_pod(run.run_id)
        assert pod.process.wait(120) == 0
        (event,) = found.fetch_materializations(dg.AssetKey(["fleet", "summed"]), 1).records
        assert event.asset_materialization
        assert event.asset_materialization.metadata["sum"].value == 499_500
        ended = found.get_run_by_id(run.run_id)
        assert ended
        assert ended.status is dg.DagsterRunStatus.SUCCESS, pod.log
    (step,) = (each for each in cluster.pods.values() if each is not pod)
    assert step.spec["containers"][0]["resources"] == HEAVY
    assert step.spec["containers"][0]["image"] == pod.spec["containers"][0]["image"]
