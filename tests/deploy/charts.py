"""The values as Helm merges them, and what Dagster's chart makes of them.

`instance`, `workspace`, `webserver`, `daemon` and `code_server` say in Python what the chart's
templates say (helm/dagster/templates/configmap-instance.yaml, helpers/instance/*.tpl,
helpers/_deployment-webserver.tpl, deployment-daemon.yaml, and of dagster-user-deployments
deployment-user.yaml and helpers/_helpers.tpl), of what our values use. test_rendered.py holds them
against the chart itself where it is at hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dagster_project.settings import PROJECT

DEPLOY = PROJECT / "deploy"
VALUES = DEPLOY / "helm" / "dagster"
SCHEMA = VALUES / "schema"
ENVIRONMENTS = ("staging", "production", "kind")
#: The release, and its namespace.
RELEASE, NAMESPACE = "dagster", "mesh"
INSTANCE = f"{RELEASE}-instance"

Values = dict[str, Any]
Spec = dict[str, Any]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Values:
    """As Helm does: maps are merged, everything else is replaced; null takes a key away."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        elif value is None and isinstance(merged.get(key), Mapping):
            del merged[key]
        else:
            merged[key] = value
    return merged


def read(path: Path) -> Values:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


@lru_cache
def _json(name: str) -> str:
    return (SCHEMA / name).read_text()


def schema(chart: str) -> Values:
    name = "values" if chart == "dagster" else "user-deployments.values"
    found: Values = json.loads(_json(f"{name}.schema.json"))
    return found


def defaults(chart: str) -> Values:
    """What the chart itself has."""
    found: Values = json.loads(_json("values.defaults.json"))
    if chart == "dagster":
        return found
    own: Values = found["dagster-user-deployments"]
    return {
        "global": {**dict.fromkeys(found["global"], "")},
        "includeInstance": False,
        "imagePullSecrets": own["imagePullSecrets"],
        "celeryConfigSecretName": "",
        "rbacEnabled": True,
        "extraManifests": [],
    }


def platform(environment: str | None = None) -> Values:
    """The values of the release `dagster`, as they are in an environment."""
    found = read(VALUES / "values.yaml")
    if environment:
        found = merge(found, read(VALUES / f"values-{environment}.yaml"))
    return found


def domains() -> dict[str, Values]:
    """The values of each domain's release."""
    return {path.stem: read(path) for path in sorted((VALUES / "domains").glob("*.yaml"))}


def instance(values: Values) -> Values:
    """dagster.yaml."""
    values = merge(defaults("dagster"), values)
    postgres = values["postgresql"]
    storage = {
        "postgres_db": {
            "username": postgres["postgresqlUsername"],
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "hostname": postgres["postgresqlHost"],
            "db_name": postgres["postgresqlDatabase"],
            "port": postgres["service"]["port"],
            "params": postgres["postgresqlParams"],
        }
    }
    found: Values = {
        "scheduler": {"module": "dagster.core.scheduler", "class": "DagsterDaemonScheduler"},
        "run_launcher": {
            "module": "dagster_k8s",
            "class": "K8sRunLauncher",
            "config": _launcher(values),
        },
        "compute_logs": values["computeLogManager"]["config"]["customComputeLogManager"],
        "telemetry": {"enabled": values["telemetry"]["enabled"]},
        "concurrency": _concurrency(values["concurrency"]),
        "retention": {
            _snake(kind): {"purge_after_days": kept["purgeAfterDays"]}
            for kind, kept in values["retention"].items()
            if kind != "enabled"
        },
    }
    for kind, module, name in (
        ("schedule_storage", "schedule_storage", "PostgresScheduleStorage"),
        ("run_storage", "run_storage", "PostgresRunStorage"),
        ("event_log_storage", "event_log", "PostgresEventLogStorage"),
    ):
        found[kind] = {"module": f"dagster_postgres.{module}", "class": name, "config": storage}
    daemon = values["dagsterDaemon"]
    assert not daemon["runCoordinator"]["enabled"]
    retries, monitoring = daemon["runRetries"], daemon["runMonitoring"]
    found["run_retries"] = {
        "enabled": retries["enabled"],
        "max_retries": retries["maxRetries"],
        "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
    }
    found["run_monitoring"] = {_snake(key): value for key, value in monitoring.items()}
    for kind in ("sensors", "schedules"):
        found[kind] = {_snake(key): value for key, value in daemon[kind].items()}
    return {**found, **values["additionalInstanceConfig"]}


def _launcher(values: Values) -> Values:
    config = values["runLauncher"]["config"]["k8sRunLauncher"]
    found = {
        "load_incluster_config": config["loadInclusterConfig"],
        "job_namespace": config["jobNamespace"] or NAMESPACE,
        "image_pull_policy": config["imagePullPolicy"],
        "service_account_name": values["serviceAccount"]["name"],
        "dagster_home": values["global"]["dagsterHome"],
        "instance_config_map": INSTANCE,
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
        "run_k8s_config": {_snake(key): part for key, part in config["runK8sConfig"].items()},
    }
    if config["kubeconfigFile"]:
        found["kubeconfig_file"] = config["kubeconfigFile"]
    if config["resources"]:
        found["resources"] = config["resources"]
    return found


def _concurrency(values: Values) -> Values:
    assert values["enabled"]
    return {
        "pools": {
            "default_limit": values["pools"]["defaultLimit"],
            "granularity": values["pools"]["granularity"],
        },
        "runs": {
            "max_concurrent_runs": values["runs"]["maxConcurrentRuns"],
            "tag_concurrency_limits": values["runs"]["tagConcurrencyLimits"],
        },
    }


def workspace(values: Values) -> Values:
    """The workspace that webserver and daemon are given."""
    return {
        "load_from": [
            {
                "grpc_server": {
                    "host": server["host"],
                    "port": server["port"],
                    "location_name": server["name"],
                }
            }
            for server in values["dagsterWebserver"]["workspace"]["servers"]
        ]
    }


def config_maps(values: Values, domains: Mapping[str, Values]) -> dict[str, dict[str, str]]:
    """The ConfigMaps that the charts make."""
    home = {"DAGSTER_HOME": values["global"]["dagsterHome"]}
    found = {
        INSTANCE: {"dagster.yaml": yaml.safe_dump(instance(values))},
        f"{RELEASE}-workspace-yaml": {"workspace.yaml": yaml.safe_dump(workspace(values))},
        f"{RELEASE}-webserver-env": home,
        f"{RELEASE}-daemon-env": home,
    }
    for name, domain in domains.items():
        found[f"{_code(name)}-user-deployments-shared-env"] = {
            "DAGSTER_HOME": domain["dagsterHome"]
        }
        found[f"{_code(name)}-{name}-user-env"] = {}
    return found


def _code(domain: str) -> str:
    """How the chart of a domain's release names what it makes."""
    return f"{domain}-dagster-user-deployments"


def webserver(values: Values) -> Spec:
    """The pod of the webserver."""
    port = values["dagsterWebserver"]["service"]["port"]
    command = f"dagster-webserver -h 0.0.0.0 -p {port} -w /dagster-workspace/workspace.yaml"
    return _system(values, "dagsterWebserver", "webserver", command)


def daemon(values: Values) -> Spec:
    """The pod of the daemon."""
    command = "dagster-daemon run -w /dagster-workspace/workspace.yaml"
    spec = _system(values, "dagsterDaemon", "daemon", command)
    tolerance = str(values["dagsterDaemon"]["heartbeatTolerance"])
    spec["containers"][0]["env"].append(
        {"name": "DAGSTER_DAEMON_HEARTBEAT_TOLERANCE", "value": tolerance}
    )
    return spec


def _system(values: Values, key: str, name: str, command: str) -> Spec:
    own = merge(defaults("dagster"), values)[key]
    home = values["global"]["dagsterHome"]
    return {
        "serviceAccountName": values["serviceAccount"]["name"],
        "securityContext": own["podSecurityContext"],
        "containers": [
            {
                "name": "dagster",
                "image": f"{own['image']['repository']}:{own['image']['tag']}",
                "imagePullPolicy": own["image"]["pullPolicy"],
                "securityContext": own["securityContext"],
                "command": ["/bin/bash", "-c", command],
                "env": [_password(values["global"]["postgresqlSecretName"]), *own["env"]],
                "envFrom": [
                    {"configMapRef": {"name": f"{RELEASE}-{name}-env"}},
                    *({"configMapRef": each} for each in own["envConfigMaps"]),
                    *({"secretRef": each} for each in own["envSecrets"]),
                ],
                "volumeMounts": [
                    *own["volumeMounts"],
                    _file("dagster-instance", f"{home}/dagster.yaml"),
                    {"name": "dagster-workspace-yaml", "mountPath": "/dagster-workspace/"},
                ],
                "resources": own["resources"],
            }
        ],
        "volumes": [
            *own["volumes"],
            {"name": "dagster-instance", "configMap": {"name": INSTANCE}},
            {
                "name": "dagster-workspace-yaml",
                "configMap": {"name": f"{RELEASE}-workspace-yaml"},
            },
        ],
    }


def code_server(domain: str, values: Values) -> Spec:
    """The pod of a domain's code server."""
    (own,) = values["deployments"]
    image = f"{own['image']['repository']}:{own['image']['tag']}"
    context = json.dumps({"k8s": container_context(domain, values)})
    listen = ["-h", "0.0.0.0", "-p", str(own["port"])]
    return {
        "serviceAccountName": values["serviceAccount"]["name"],
        "securityContext": own["podSecurityContext"],
        "containers": [
            {
                "name": "dagster-user-deployments",
                "image": image,
                "imagePullPolicy": own["image"]["pullPolicy"],
                "securityContext": own["securityContext"],
                "args": ["dagster", "api", "grpc", *listen, *own["dagsterApiGrpcArgs"]],
                "env": [
                    {"name": "DAGSTER_CURRENT_IMAGE", "value": image},
                    _password(values["postgresqlSecretName"]),
                    {"name": "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT", "value": context},
                    *own["env"],
                ],
                "envFrom": [
                    {"configMapRef": {"name": f"{_code(domain)}-user-deployments-shared-env"}},
                    {"configMapRef": {"name": f"{_code(domain)}-{domain}-user-env"}},
                    *({"configMapRef": each} for each in own["envConfigMaps"]),
                    *({"secretRef": each} for each in own["envSecrets"]),
                ],
                "volumeMounts": own["volumeMounts"],
                "resources": own.get("resources", {}),
            }
        ],
        "volumes": own["volumes"],
    }


def probe(values: Values, kind: str) -> list[str]:
    """The command of a code server's probe: the chart's own where the values have none."""
    (own,) = values["deployments"]
    check = ["dagster", "api", "grpc-health-check", "-p", str(own["port"])]
    found: list[str] = own[kind].get("exec", {}).get("command", check)
    return found


def container_context(domain: str, values: Values) -> Values:
    """What of a code server goes for its runs as well."""
    (own,) = values["deployments"]
    assert own["includeConfigInLaunchedRuns"]["enabled"]
    found: Values = {
        "image_pull_policy": own["image"]["pullPolicy"],
        "env_config_maps": [
            f"{_code(domain)}-{domain}-user-env",
            *(each["name"] for each in own["envConfigMaps"]),
        ],
        "env_secrets": [each["name"] for each in own["envSecrets"]],
        "volume_mounts": own["volumeMounts"],
        "volumes": own["volumes"],
        "namespace": NAMESPACE,
        "service_account_name": values["serviceAccount"]["name"],
        "env": own["env"],
        "run_k8s_config": {"pod_spec_config": {"automount_service_account_token": True}},
    }
    if own.get("resources"):
        found["resources"] = own["resources"]
    return found


def extra_manifests(values: Values) -> list[Values]:
    """What the values add to the chart, with their references to values filled in."""
    text = json.dumps(values["extraManifests"])

    def fill(reference: re.Match[str]) -> str:
        root, *path = reference[1].split(".")
        if root == "Release":
            return {"Name": RELEASE, "Namespace": NAMESPACE}[path[0]]
        found: Any = values
        for key in path:
            found = found[key]
        return str(found)

    filled = re.sub(r"{{ \.((?:Release|Values)[.\w]+) }}", fill, text)
    assert "{{" not in filled, "a template that these tests do not know"
    manifests: list[Values] = json.loads(filled)
    return manifests


def _password(secret: str) -> Values:
    reference = {"secretKeyRef": {"name": secret, "key": "postgresql-password"}}
    return {"name": "DAGSTER_PG_PASSWORD", "valueFrom": reference}


def _file(volume: str, path: str) -> Values:
    return {"name": volume, "mountPath": path, "subPath": path.rpartition("/")[2]}


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", name)
