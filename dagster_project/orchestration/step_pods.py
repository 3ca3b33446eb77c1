"""Steps in pods of their own: all steps of a location, or a single heavy one.

Only imported where it is used: it loads the client of Kubernetes, which no laptop needs.

A step's pod is as its run's: image, environment, secrets, volumes and security context come from
what launched the run. What differs are its resources. Pods share no file system: data goes from
step to step by way of the lake and the warehouse.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.executor_definition import multiple_process_executor_requirements
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext
from dagster_k8s import K8sRunLauncher, PipesK8sClient, k8s_job_executor
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.executor import _K8S_EXECUTOR_CONFIG_SCHEMA
from dagster_k8s.job import construct_dagster_k8s_job
from kubernetes.client import ApiClient

from dagster_project.orchestration.pools import set_limits
from dagster_project.orchestration.storage import wait_for_database

if os.environ.get("DAGSTER_RUN_STEP_KEY"):  # this is the pod of a step
    wait_for_database()

#: The tag of an asset's op with the resources of its step:
#: `op_tags={RESOURCES: {"container_config": {"resources": {"requests": {"memory": "4Gi"}}}}}`.
RESOURCES = "dagster-k8s/config"
#: The label of a pod, that its network policy and its log are found by.
COMPONENT = "app.kubernetes.io/component"


@dg.executor(
    name="k8s_job",
    config_schema=_K8S_EXECUTOR_CONFIG_SCHEMA,
    requirements=multiple_process_executor_requirements(),
)
def step_pods(init_context: InitExecutorContext) -> Executor:
    """Runs each step in a Kubernetes Job of its own: dagster-k8s' executor with our pools.

    A step's resources are the run's, unless the op's tag RESOURCES says otherwise. Its Job goes
    with the run's pod: else the step of a run that was lost would work on, beside the one that is
    started in its place.
    """
    wait_for_database()
    set_limits(init_context.instance)
    create = k8s_job_executor.executor_creation_fn
    assert create
    config = {"enable_owner_references": True, **_chosen(init_context.executor_config)}
    return create(init_context._replace(executor_config=config))


def _chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody asked for, in the launchpad say, without the defaults that say no."""
    return {name: value for name, value in config.items() if value is not False}


def run_in_pod(
    context: dg.AssetExecutionContext,
    command: Sequence[str],
    resources: Mapping[str, Mapping[str, str]],
    extras: Mapping[str, Any] | None = None,
) -> dg.PipesClientCompletedInvocation:
    """Run the one heavy command of a step in a pod with these resources, and wait for it.

    The command speaks Dagster Pipes (`dagster_pipes.open_dagster_pipes`), which brings its
    messages, materialisations and checks back. `resources` are those of a container, with
    `requests` and `limits`. Where runs are no pods, on a laptop, the command is a process of this
    machine. Raises DagsterPipesExecutionError if it fails.
    """
    launcher = context.instance.run_launcher
    if not isinstance(launcher, K8sRunLauncher):
        return dg.PipesSubprocessClient().run(
            context=context.op_execution_context, command=list(command), extras=dict(extras or {})
        )
    pod = pod_like_run(context.run, launcher, resources)
    return PipesK8sClient().run(
        context=context.op_execution_context,
        command=list(command),
        namespace=launcher.get_container_context_for_run(context.run).namespace,
        base_pod_meta=pod["metadata"],
        base_pod_spec=pod["spec"],
        extras=dict(extras or {}),
    )


def pod_like_run(
    run: dg.DagsterRun, launcher: K8sRunLauncher, resources: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The metadata and spec of a pod as the run's own, with other resources, as Kubernetes' JSON.

    The image is the one that the run was launched with, whatever its location has by now.
    """
    context = launcher.get_container_context_for_run(run).merge(
        K8sContainerContext(resources=resources)
    )
    assert run.job_code_origin
    job = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(
            job_image=run.job_code_origin.repository_origin.container_image, run_launcher=launcher
        ),
        args=None,
        job_name=f"dagster-run-{run.run_id}",  # the pod is not named after it
        component="step_worker",
        user_defined_k8s_config=context.run_k8s_config,
        labels={"dagster/run-id": run.run_id, "dagster/job": run.job_name},
    )
    template = ApiClient().sanitize_for_serialization(job.spec.template)
    del template["metadata"]["name"]  # each pod gets one of its own
    return dict(template)
