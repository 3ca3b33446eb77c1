"""What Dagster's chart makes of the values, where the chart is at hand: CHART=<its folder>.

DEPLOY_PYTHON is a Python that has what requirements/deploy.txt locks.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dagster_project.domain import domain_names
from dagster_project.settings import PROJECT
from tests.deploy.charts import (
    ENVIRONMENTS,
    RELEASE,
    Values,
    code_server,
    config_maps,
    daemon,
    domains,
    instance,
    platform,
    webserver,
)

CHART = os.environ.get("CHART", "")
#: The oldest Kubernetes that is promised, and a newer one.
VERSIONS = ("1.28", "1.32", "1.36")

pytestmark = pytest.mark.skipif(not CHART, reason="CHART names no folder of Dagster's chart")


def render(chart: Path, release: str, values: Values, tmp_path: Path) -> dict[tuple[str, str], Any]:
    """What the chart makes, by kind and name; all of it valid for Kubernetes."""
    python = os.environ.get("DEPLOY_PYTHON")
    assert python, "DEPLOY_PYTHON: a Python that has what requirements/deploy.txt locks"
    path = tmp_path / "values.json"
    path.write_text(json.dumps(values))
    script = str(PROJECT / "tests" / "deploy" / "render.py")
    done = subprocess.run(
        [python, script, str(chart), release, str(path), *VERSIONS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == []
    return {(each["kind"], each["metadata"]["name"]): each for each in found["manifests"]}


def assert_pod(made: dict[str, Any], said: dict[str, Any]) -> None:
    """That the pod is the one that the tests start, in all that they know of it."""
    spec = made["spec"]["template"]["spec"]
    (container,), (ours,) = spec["containers"], said["containers"]
    assert spec["securityContext"] == said["securityContext"]
    assert spec["serviceAccountName"] == said["serviceAccountName"]
    for key in ("image", "imagePullPolicy", "securityContext", "envFrom", "resources"):
        assert (container.get(key) or {}) == (ours[key] or {}), key
    for key in ("command", "args"):
        words = [" ".join(part.split()) for part in container.get(key, [])]
        assert words == list(ours.get(key, [])), key
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert mounts == {each["mountPath"]: each for each in ours["volumeMounts"]}
    variables = {each["name"]: each for each in container["env"]}
    context = "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT"
    for variable in ours["env"]:
        if variable["name"] == context:
            assert json.loads(variables[context]["value"]) == json.loads(variable["value"])
        else:
            assert variables[variable["name"]] == variable


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_platform_is_what_the_tests_take_it_for(environment: str, tmp_path: Path) -> None:
    values = platform(environment)
    made = render(Path(CHART), RELEASE, values, tmp_path)
    ours = config_maps(values, {})
    config = yaml.safe_load(made["ConfigMap", f"{RELEASE}-instance"]["data"]["dagster.yaml"])
    for key, said in instance(values).items():
        assert config[key] == said, key
    assert not {"storage", "run_coordinator"} & config.keys()
    servers = made["ConfigMap", f"{RELEASE}-workspace-yaml"]["data"]["workspace.yaml"]
    assert yaml.safe_load(servers) == yaml.safe_load(
        ours[f"{RELEASE}-workspace-yaml"]["workspace.yaml"]
    )
    assert_pod(made["Deployment", f"{RELEASE}-dagster-webserver"], webserver(values))
    assert_pod(made["Deployment", f"{RELEASE}-daemon"], daemon(values))
    for key in (
        ("Job", f"{RELEASE}-migrate"),
        ("Deployment", f"{RELEASE}-catalog"),
        ("PodDisruptionBudget", f"{RELEASE}-webserver"),
        ("NetworkPolicy", f"{RELEASE}-code-servers"),
        ("LimitRange", f"{RELEASE}-defaults"),
    ):
        assert key in made
    assert not [name for kind, name in made if kind == "Secret"]
    read_only = ("Deployment", f"{RELEASE}-dagster-webserver-read-only")
    assert (read_only in made) == values["dagsterWebserver"]["enableReadOnly"]
    # The network policies go by the labels that the chart gives.
    for name, component in (
        ("dagster-webserver", "dagster-webserver"),
        ("daemon", "dagster-daemon"),
    ):
        labels = made["Deployment", f"{RELEASE}-{name}"]["spec"]["template"]["metadata"]["labels"]
        assert labels["component"] == component


@pytest.mark.parametrize("domain", domain_names())
def test_a_domain_is_what_the_tests_take_it_for(domain: str, tmp_path: Path) -> None:
    values = domains()[domain]
    chart = Path(CHART) / "charts" / "dagster-user-deployments"
    made = render(chart, domain, values, tmp_path)
    deployment = made["Deployment", f"{domain}-dagster-user-deployments-{domain}"]
    assert_pod(deployment, code_server(domain, values))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["component"] == "user-deployments"
    (port,) = made["Service", domain]["spec"]["ports"]
    assert port["port"] == values["deployments"][0]["port"]
    assert ("ServiceAccount", f"mesh-{domain}") in made
    assert not [name for kind, name in made if kind == "Secret"]
