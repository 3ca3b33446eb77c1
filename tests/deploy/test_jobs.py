"""The Jobs that Dagster makes of the values: of a run, of a step, of a single heavy command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.api import create_execution_plan
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import DOCKER_IMAGE_TAG
from dagster_k8s import K8sRunLauncher

from dagster_project.orchestration.step_pods import RESOURCES, pod_like_run, step_pods
from dagster_project.settings import Executor, Settings, get_settings
from tests.deploy.charts import NAMESPACE, domains, platform
from tests.deploy.cluster import Cluster
from tests.deploy.launching import HEAVY, launched, local_instance, with_kubernetes


@pytest.fixture
def dagster(kept: Cluster, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with local_instance(with_kubernetes(platform(), kept), tmp_path / "home") as found:
        yield found


def pod_of(kept: Cluster, number: int = -1) -> dict[str, Any]:
    found: dict[str, Any] = list(kept.jobs.values())[number]["spec"]["template"]
    return found


def test_a_runs_job_is_what_the_values_say(kept: Cluster, dagster: dg.DagsterInstance) -> None:
    run = launched(dagster, "fleet", domains()["fleet"])
    (job,) = kept.jobs.values()
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "run_worker"
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
    assert job["spec"]["backoffLimit"] == 0  # who starts it again is Dagster
    pod = pod_of(kept)
    # So that nodes wait for it, if they can.
    assert pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    spec = pod["spec"]
    assert spec["serviceAccountName"] == "mesh-fleet"
    assert spec["terminationGracePeriodSeconds"] == 180
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    assert container["image"] == "mesh-with-connectors:0.1.0"
    assert run.tags[DOCKER_IMAGE_TAG] == container["image"]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert "command" not in container  # the image has no ENTRYPOINT in its way
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": "1Gi"},
        "limits": {"memory": "3Gi"},
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    # No dagster.yaml: a run is given its instance as an argument.
    assert mounted.keys() == {"/opt/dagster/home", "/var/lib/mesh", "/tmp"}
    assert set(mounted.values()) == {each["name"] for each in spec["volumes"]}
    sources = [next(iter(each.values()))["name"] for each in container["envFrom"]]
    assert sources == [
        "fleet-dagster-user-deployments-fleet-user-env",
        "mesh-settings",
        "mesh-object-store",
        "mesh-warehouse",
        "mesh-fleet",
    ]
    variables = {each["name"]: each for each in container["env"]}
    assert variables["MESH_EXECUTOR"]["value"] == "multiprocess"
    assert variables["DAGSTER_HOME"]["value"] == "/opt/dagster/home"
    password = variables["DAGSTER_PG_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert password == {"key": "postgresql-password", "name": "mesh-dagster-database"}


def test_a_domain_has_its_own_image_account_and_secrets(
    kept: Cluster, dagster: dg.DagsterInstance
) -> None:
    changed = domains()["flights"]
    changed["deployments"][0]["image"]["tag"] = "0.2.0"
    launched(dagster, "fleet", domains()["fleet"])
    launched(dagster, "flights", changed)
    fleet, flights = (pod_of(kept, number)["spec"] for number in (0, 1))
    assert fleet["containers"][0]["image"] == "mesh-with-connectors:0.1.0"
    assert flights["containers"][0]["image"] == "mesh:0.2.0"
    assert flights["serviceAccountName"] == "mesh-flights"
    secrets = [
        each.get("secretRef", {}).get("name") for each in flights["containers"][0]["envFrom"]
    ]
    assert "mesh-flights" in secrets
    assert "mesh-fleet" not in secrets


def test_a_code_servers_resources_go_before_those_of_runs(
    kept: Cluster, dagster: dg.DagsterInstance
) -> None:
    # The chart passes them on: that is why our values have none, unless runs are to have them.
    values = domains()["fleet"]
    values["deployments"][0]["resources"] = {"requests": {"memory": "6Gi"}}
    launched(dagster, "fleet", values)
    found = pod_of(kept)["spec"]["containers"][0]["resources"]
    assert found["requests"] == {"cpu": "1", "memory": "6Gi"}
    assert found["limits"] == {"memory": "3Gi"}


def test_a_run_may_ask_for_more_by_its_tags(kept: Cluster, dagster: dg.DagsterInstance) -> None:
    tag = '{"container_config": {"resources": {"requests": {"memory": "5Gi"}}}}'
    launched(dagster, "fleet", domains()["fleet"], tags={RESOURCES: tag})
    found = pod_of(kept)["spec"]["containers"][0]["resources"]
    assert found["requests"]["memory"] == "5Gi"


@dg.asset(op_tags={RESOURCES: {"container_config": {"resources": HEAVY}}})
def heavy() -> None:
    """An asset whose step needs more than the others."""


@dg.asset
def light() -> None:
    """An asset of the usual size."""


def launch_steps(
    dagster: dg.DagsterInstance, run: DagsterRun, config: Mapping[str, Any] | None = None
) -> None:
    """Have the executor launch each step of the two assets, as it does in the run's pod."""
    from dagster._core.definitions.reconstruct import ReconstructableJob
    from dagster._core.execution.context_creation_job import (
        PlanOrchestrationContextManager,
        orchestration_context_event_generator,
    )
    from dagster._core.executor.step_delegating import StepHandlerContext
    from dagster._grpc.types import ExecuteStepArgs

    job = ReconstructableJob.for_module("tests.deploy.test_jobs", "steps_job")
    plan = create_execution_plan(job, run_config=config or {})
    manager = PlanOrchestrationContextManager(
        context_event_generator=orchestration_context_event_generator,
        job=job,
        execution_plan=plan,
        run_config=dict(config or {}),
        dagster_run=run,
        instance=dagster,
        raise_on_error=True,
    )
    list(manager.prepare_context())
    context = manager.get_context()
    for key in plan.step_keys_to_execute:
        assert run.job_code_origin
        step = StepHandlerContext(
            instance=dagster,
            plan_context=context,
            steps=[plan.get_step_by_key(key)],
            execute_step_args=ExecuteStepArgs(
                run.job_code_origin, run.run_id, [key], dagster.get_ref()
            ),
            dagster_run=run,
        )
        list(context.executor._step_handler.launch_step(step))


def steps_job() -> dg.JobDefinition:
    defs = dg.Definitions(
        assets=[heavy, light],
        jobs=[dg.define_asset_job("steps", executor_def=step_pods)],
    )
    return defs.get_job_def("steps")


def test_a_steps_job_has_its_own_resources_and_the_rest_of_its_run(
    kept: Cluster, dagster: dg.DagsterInstance
) -> None:
    run = launched(dagster, "fleet", domains()["fleet"])
    launch_steps(dagster, run)
    of_run, *of_steps = (job["spec"]["template"]["spec"] for job in kept.jobs.values())
    steps = {
        job["metadata"]["labels"]["dagster/op"]: job
        for job in kept.jobs.values()
        if job["metadata"]["labels"]["app.kubernetes.io/component"] == "step_worker"
    }
    assert steps.keys() == {"heavy", "light"}
    resources = {
        name: job["spec"]["template"]["spec"]["containers"][0]["resources"]
        for name, job in steps.items()
    }
    assert resources["heavy"] == HEAVY
    assert resources["light"] == of_run["containers"][0]["resources"]
    for step in of_steps:
        assert step["serviceAccountName"] == "mesh-fleet"
        assert step["terminationGracePeriodSeconds"] == 180
        (container,) = step["containers"]
        assert container["args"] == ["dagster", "api", "execute_step"]
        for same in ("image", "envFrom", "volumeMounts", "securityContext"):
            assert container[same] == of_run["containers"][0][same], same


def test_the_pod_of_a_heavy_command_is_as_its_runs_with_resources_of_its_own(
    kept: Cluster, dagster: dg.DagsterInstance
) -> None:
    run = launched(dagster, "weather", domains()["weather"])
    assert isinstance(dagster.run_launcher, K8sRunLauncher)
    pod = pod_like_run(run, dagster.run_launcher, HEAVY)
    of_run, own = pod_of(kept)["spec"], pod["spec"]
    assert own["containers"][0]["resources"] == HEAVY
    assert "args" not in own["containers"][0]
    for same in ("image", "envFrom", "volumeMounts", "securityContext"):
        assert own["containers"][0][same] == of_run["containers"][0][same], same
    assert own["serviceAccountName"] == "mesh-weather"
    # What the network policy of workers goes by.
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "step_worker"
    assert dagster.run_launcher.job_namespace == NAMESPACE


def test_a_location_is_executed_as_its_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster_project.locations.location import _executor
    from dagster_project.orchestration.execution import forking_executor

    assert Settings().executor is Executor.MULTIPROCESS
    assert _executor() is forking_executor
    monkeypatch.setenv("MESH_EXECUTOR", "k8s_job")
    get_settings.cache_clear()
    try:
        assert _executor() is step_pods
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
