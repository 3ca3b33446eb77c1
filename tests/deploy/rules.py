"""What must hold of values, and the chart's own schema lets pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

from tests.deploy.charts import Values, defaults, extra_manifests, merge, schema

#: Seconds that dbt needs to cancel its queries, and a connector to end its page, and some.
SHORTEST_GRACE = 120


def schema_faults(chart: str, values: Values) -> list[str]:
    """What the chart's schema says of the values, merged over the chart's own."""
    known = schema(chart)
    validator = jsonschema.validators.validator_for(known)(known)
    whole = merge(defaults(chart), values)
    return [
        f"{'.'.join(str(part) for part in fault.absolute_path)}: {fault.message}"
        for fault in validator.iter_errors(whole)
    ]


def unknown_keys(chart: str, values: Values) -> list[str]:
    """Keys that the chart does not know, at any depth: most of them it ignores in silence."""
    root = schema(chart)
    return list(_unknown(root, root, values, defaults(chart), ""))


def _unknown(root: Values, part: Values, value: Any, default: Any, path: str) -> Iterator[str]:
    part = _resolved(root, part)
    choices = [_resolved(root, each) for each in part.get("anyOf", ())]
    if choices:
        kind = "array" if isinstance(value, list) else "object"
        part = next((each for each in choices if each.get("type") == kind), {})
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown(root, part.get("items", {}), item, {}, f"{path}[{number}]")
    properties = part.get("properties")
    if not isinstance(value, Mapping) or not properties:
        return
    also = default if isinstance(default, Mapping) else {}
    for key, below in value.items():
        here = f"{path}.{key}".lstrip(".")
        if key in properties:
            yield from _unknown(root, properties[key], below, also.get(key), here)
        elif key not in also:  # `extraManifests` is in no schema
            yield f"{here}: the chart knows no such key"


def _resolved(root: Values, part: Values) -> Values:
    while "$ref" in part:
        found: Any = root
        for key in part["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        part = found
    return part


def secrets_in_values(values: Any, path: str = "") -> list[str]:
    """Passwords, tokens and keys that stand in the values themselves."""
    found = []
    if isinstance(values, Mapping):
        for key, value in values.items():
            here = f"{path}.{key}".lstrip(".")
            word = str(key).lower()
            secret = any(part in word for part in ("password", "token", "accesskey", "credential"))
            if secret and isinstance(value, str) and value and "secret" not in word:
                found.append(f"{here}: a secret has no place in a file")
            found += secrets_in_values(value, here)
        name, value = str(values.get("name", "")), values.get("value")
        if value and any(part in name for part in ("PASSWORD", "SECRET", "TOKEN")):
            found.append(f"{path}: {name} has no place in a file")
    elif isinstance(values, list):
        for number, value in enumerate(values):
            found += secrets_in_values(value, f"{path}[{number}]")
    return found


def image_faults(image: Mapping[str, Any], path: str) -> list[str]:
    tag = image.get("tag")
    faults = []
    if not tag or not isinstance(tag, str) or tag == "latest":
        faults.append(f"{path}.tag: every build has a tag, as text; {tag!r} is none")
    if image.get("pullPolicy") != "IfNotPresent":
        faults.append(f"{path}.pullPolicy: IfNotPresent, as a tag is never given again")
    return faults


def container_faults(
    pod: Mapping[str, Any], container: Mapping[str, Any], mounts: list[Any], path: str
) -> list[str]:
    """What a container may do, and where it may write."""
    faults = []
    if not (pod.get("runAsNonRoot") and isinstance(pod.get("runAsUser"), int)):
        faults.append(f"{path}: runs as a user with a number that is not root's")
    if not (
        container.get("readOnlyRootFilesystem")
        and container.get("allowPrivilegeEscalation") is False
        and container.get("capabilities") == {"drop": ["ALL"]}
    ):
        faults.append(f"{path}: may write to its image, or gain privileges")
    needed = {"/opt/dagster/home", "/var/lib/mesh", "/tmp"} - {each["mountPath"] for each in mounts}
    faults += [f"{path}: nowhere to write in {folder}" for folder in sorted(needed)]
    return faults


def domain_faults(values: Values) -> list[str]:
    """Of the values of a domain's release."""
    faults = unknown_keys("dagster-user-deployments", values) + secrets_in_values(values)
    if len(values["deployments"]) != 1:
        return [*faults, "deployments: a release has one domain's"]
    (own,) = values["deployments"]
    path = "deployments[0]"
    faults += image_faults(own.get("image", {}), f"{path}.image")
    kinds = [kind for kind in ("dagsterApiGrpcArgs", "codeServerArgs") if own.get(kind)]
    if kinds != ["dagsterApiGrpcArgs"]:
        faults.append(f"{path}: dagsterApiGrpcArgs, and not codeServerArgs: {kinds or 'neither'}")
    if not own.get("includeConfigInLaunchedRuns", {}).get("enabled"):
        faults.append(f"{path}: its runs would have neither its secrets nor its volumes")
    for probe in ("readinessProbe", "livenessProbe"):
        if own.get(probe, {}).keys() >= {"exec", "enabled"}:
            faults.append(f"{path}.{probe}: `enabled` would be passed on, and Kubernetes refuse it")
    if own.get("podSecurityContext", {}).get("fsGroup") is None:
        faults.append(f"{path}: an fsGroup, or the volumes are root's")
    return faults + container_faults(
        own.get("podSecurityContext", {}),
        own.get("securityContext", {}),
        own.get("volumeMounts", []),
        path,
    )


def platform_faults(values: Values) -> list[str]:
    """Of the values of the release `dagster`."""
    faults = unknown_keys("dagster", values) + secrets_in_values(values)
    for key in ("dagsterWebserver", "dagsterDaemon"):
        own = values[key]
        faults += image_faults(own["image"], f"{key}.image")
        faults += container_faults(
            own.get("podSecurityContext", {}),
            own.get("securityContext", {}),
            own.get("volumeMounts", []),
            key,
        )
    web = values["dagsterWebserver"]
    port = web["service"]["port"]
    if port < 1024:
        faults.append("dagsterWebserver.service.port: who is not root listens from 1024 on")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if web.get(probe, {}).get("httpGet", {}).get("port") != port:
            faults.append(f"dagsterWebserver.{probe}: asks another port than {port}")
    if values["telemetry"]["enabled"] or values["postgresql"]["enabled"]:
        faults.append("telemetry and the chart's own PostgreSQL are off")
    if values["generatePostgresqlPasswordSecret"]:
        faults.append("generatePostgresqlPasswordSecret: would write the chart's own password")
    daemon = values["dagsterDaemon"]
    if (
        daemon["runMonitoring"]["pollIntervalSeconds"] > 10
        or not daemon["runRetries"]["maxRetries"]
    ):
        faults.append("dagsterDaemon: a lost run is noticed within 10 s and started again")
    return faults + launcher_faults(values)


def launcher_faults(values: Values) -> list[str]:
    own = values["runLauncher"]["config"]["k8sRunLauncher"]
    path = "runLauncher.config.k8sRunLauncher"
    faults = []
    if own.get("imagePullPolicy") != "IfNotPresent":
        faults.append(f"{path}.imagePullPolicy: IfNotPresent")
    if own.get("jobNamespace"):
        faults.append(f"{path}.jobNamespace: another namespace has no Role for it")
    run = own.get("runK8sConfig", {})
    pod = run.get("podSpecConfig", {})
    grace = pod.get("terminationGracePeriodSeconds", 30)
    if grace < SHORTEST_GRACE:
        faults.append(f"{path}: {grace} s are too few for dbt and a sync to stop in")
    if values["dagsterDaemon"]["runMonitoring"].get("cancelTimeoutSeconds", 180) <= grace:
        faults.append("cancelTimeoutSeconds: shorter than what a run's pod is given to end")
    container = run.get("containerConfig", {})
    if not container.get("resources", {}).get("requests", {}).get("memory"):
        faults.append(f"{path}: a run without a request is put onto full nodes, and evicted first")
    # Where it may write comes from the code server's values.
    return faults + container_faults(
        pod.get("securityContext", {}),
        container.get("securityContext", {}),
        [{"mountPath": each} for each in ("/opt/dagster/home", "/var/lib/mesh", "/tmp")],
        path,
    )


def manifest_faults(values: Values) -> list[str]:
    """Of what the values add to the chart."""
    faults = []
    for manifest in extra_manifests(values):
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] not in ("Job", "Deployment"):
            continue
        pod = manifest["spec"]["template"]["spec"]
        for container in pod["containers"]:
            faults += container_faults(
                pod.get("securityContext", {}),
                container.get("securityContext", {}),
                container.get("volumeMounts", []),
                name,
            )
            if not container.get("resources", {}).get("limits", {}).get("memory"):
                faults.append(f"{name}: no limit of memory")
            mounted = {each["name"] for each in container.get("volumeMounts", [])}
            if mounted != {each["name"] for each in pod.get("volumes", [])}:
                faults.append(f"{name}: volumes and mounts differ")
    return faults
