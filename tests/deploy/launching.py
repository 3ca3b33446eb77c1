"""Runs that the launcher of the values launches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.code_pointer import CodePointer, ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun

from tests.deploy.charts import Values, container_context, instance, merge
from tests.deploy.cluster import Cluster

HEAVY = {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}


def with_kubernetes(values: Values, cluster: Cluster) -> Values:
    """The values, with the cluster where none is around the process."""
    outside = {"loadInclusterConfig": False, "kubeconfigFile": cluster.kubeconfig}
    return merge(values, {"runLauncher": {"config": {"k8sRunLauncher": outside}}})


@contextmanager
def local_instance(values: Values, home: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with all that the values say, but for its storage, which is local."""
    config = instance(values)
    for storage in ("run_storage", "event_log_storage", "schedule_storage", "compute_logs"):
        del config[storage]
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(home)) as found:
        yield found


def launched(
    dagster: dg.DagsterInstance,
    domain: str,
    values: Values,
    job: str | None = None,
    code: CodePointer | None = None,
    tags: Mapping[str, str] | None = None,
) -> DagsterRun:
    """A run of the domain (or of other code), as its code server says that it is run."""
    (own,) = values["deployments"]
    repository = RepositoryPythonOrigin(
        executable_path=sys.executable,
        code_pointer=code or ModuleCodePointer(own["dagsterApiGrpcArgs"][-1], "defs"),
        container_image=f"{own['image']['repository']}:{own['image']['tag']}",
        entry_point=["dagster"],
        container_context={"k8s": container_context(domain, values)},
    )
    origin = JobPythonOrigin(job or f"{domain}_pipeline", repository)
    run = dagster.add_run(
        DagsterRun(job_name=origin.job_name, job_code_origin=origin, tags=dict(tags or {}))
    )
    dagster.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    found = dagster.get_run_by_id(run.run_id)
    assert found
    return found
