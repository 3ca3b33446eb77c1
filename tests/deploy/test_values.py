"""The Helm values: valid for the chart, sound by rules of ours, and one with the project."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from dagster_project.cli.services import _DAGSTER_YAML
from dagster_project.domain import domain_names
from dagster_project.settings import PREFIX, WORKSPACE
from tests.deploy.charts import (
    ENVIRONMENTS,
    VALUES,
    Values,
    domains,
    extra_manifests,
    instance,
    platform,
    read,
)
from tests.deploy.rules import domain_faults, manifest_faults, platform_faults, schema_faults

DOMAINS = domain_names()


@pytest.mark.parametrize("environment", [None, *ENVIRONMENTS])
def test_the_platforms_values_are_sound(environment: str | None) -> None:
    values = platform(environment)
    assert schema_faults("dagster", values) == []
    assert platform_faults(values) == []
    assert manifest_faults(values) == []


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domains_values_are_sound(domain: str) -> None:
    values = domains()[domain]
    assert schema_faults("dagster-user-deployments", values) == []
    assert domain_faults(values) == []


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_replaces_no_list(environment: str) -> None:
    def lists(value: Any, path: str = "") -> list[str]:
        if isinstance(value, list):
            return [path]
        below = value.items() if isinstance(value, dict) else ()
        return [found for key, part in below for found in lists(part, f"{path}.{key}")]

    assert lists(read(VALUES / f"values-{environment}.yaml")) == []


def typo_in_a_deployment(values: Values) -> None:
    own = values["deployments"][0]
    own["envSecret"] = own.pop("envSecrets")


def no_tag(values: Values) -> None:
    del values["deployments"][0]["image"]["tag"]


def both_kinds_of_arguments(values: Values) -> None:
    own = values["deployments"][0]
    own["codeServerArgs"] = own["dagsterApiGrpcArgs"]


def no_arguments(values: Values) -> None:
    del values["deployments"][0]["dagsterApiGrpcArgs"]


def a_secret_as_a_value(values: Values) -> None:
    values["deployments"][0]["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"})


def an_image_that_can_be_written(values: Values) -> None:
    values["deployments"][0]["securityContext"]["readOnlyRootFilesystem"] = False


def nowhere_to_write(values: Values) -> None:
    values["deployments"][0]["volumeMounts"].pop()


def a_probe_that_is_passed_on(values: Values) -> None:
    values["deployments"][0]["readinessProbe"]["exec"] = {"command": ["true"]}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (a_probe_that_is_passed_on, "readinessProbe: `enabled` would be passed on"),
        (typo_in_a_deployment, "deployments[0].envSecret: the chart knows no such key"),
        (no_tag, "deployments[0].image.tag"),
        (both_kinds_of_arguments, "['dagsterApiGrpcArgs', 'codeServerArgs']"),
        (no_arguments, "neither"),
        (a_secret_as_a_value, "AWS_SECRET_ACCESS_KEY has no place in a file"),
        (an_image_that_can_be_written, "may write to its image"),
        (nowhere_to_write, "nowhere to write in /tmp"),
    ],
)
def test_what_the_schema_lets_pass_of_a_domain_is_found(
    spoil: Callable[[Values], None], said: str
) -> None:
    values = copy.deepcopy(domains()["fleet"])
    spoil(values)
    assert schema_faults("dagster-user-deployments", values) == []
    assert [fault for fault in domain_faults(values) if said in fault]


def an_unknown_part(values: Values) -> None:
    values["dagsterDeamon"] = values["dagsterDaemon"]


def a_typo_far_below(values: Values) -> None:
    values["postgresql"]["postgresHost"] = "elsewhere"


def a_password(values: Values) -> None:
    values["postgresql"]["postgresqlPassword"] = "hunter2"


def a_port_of_root(values: Values) -> None:
    values["dagsterWebserver"]["service"]["port"] = 80


def a_hasty_end(values: Values) -> None:
    run = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    run["podSpecConfig"]["terminationGracePeriodSeconds"] = 25


def runs_pulled_anew(values: Values) -> None:
    values["runLauncher"]["config"]["k8sRunLauncher"]["imagePullPolicy"] = "Always"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (an_unknown_part, "dagsterDeamon: the chart knows no such key"),
        (a_typo_far_below, "postgresql.postgresHost: the chart knows no such key"),
        (a_password, "postgresql.postgresqlPassword: a secret has no place"),
        (a_port_of_root, "asks another port than 80"),
        (a_hasty_end, "25 s are too few"),
        (runs_pulled_anew, "imagePullPolicy"),
    ],
)
def test_what_the_schema_lets_pass_of_the_platform_is_found(
    spoil: Callable[[Values], None], said: str
) -> None:
    values = copy.deepcopy(platform())
    spoil(values)
    assert schema_faults("dagster", values) == []
    assert [fault for fault in platform_faults(values) if said in fault]


def test_domains_workspace_and_values_agree() -> None:
    modules = {
        each["python_module"]["location_name"]: each["python_module"]["module_name"]
        for each in read(WORKSPACE)["load_from"]
    }
    assert tuple(modules) == DOMAINS
    servers = platform()["dagsterWebserver"]["workspace"]["servers"]
    assert tuple(server["name"] for server in servers) == DOMAINS
    found = domains()
    assert tuple(found) == DOMAINS
    for server in servers:
        values = found[server["name"]]
        (own,) = values["deployments"]
        # The Service is called like the deployment: that is what the workspace asks.
        assert (own["name"], own["port"]) == (server["host"], server["port"])
        assert own["dagsterApiGrpcArgs"] == ["-m", modules[server["name"]]]
        assert values["serviceAccount"]["name"] == f"mesh-{own['name']}"
        assert {"name": f"mesh-{own['name']}"} in own["envSecrets"]


def test_domains_differ_in_nothing_but_what_is_theirs() -> None:
    def without_name(domain: str) -> str:
        lines = (VALUES / "domains" / f"{domain}.yaml").read_text().splitlines()
        text = "\n".join(line for line in lines if not re.search("connector|repository:", line))
        return text.replace(domain, "<domain>")

    first, *others = (without_name(domain) for domain in DOMAINS)
    # Remove a domain from here once it has something of its own, such as resources.
    assert all(other == first for other in others)


def test_what_runs_on_kubernetes_is_queued_and_retried_as_on_a_laptop() -> None:
    local, there = yaml.safe_load(_DAGSTER_YAML), instance(platform())
    for same in ("freshness", "nux", "telemetry", "run_retries"):
        assert there[same] == local[same], same
    assert there["concurrency"]["pools"] == local["concurrency"]["pools"]
    assert there["sensors"] == local["sensors"]
    keys = [
        [limit["key"] for limit in each["concurrency"]["runs"]["tag_concurrency_limits"]]
        for each in (local, there)
    ]
    assert keys[0] == keys[1]
    for kind, kept in local["retention"].items():
        assert there["retention"][kind]["purge_after_days"].items() >= (
            kept["purge_after_days"].items()
        )


def test_no_service_is_taken_for_a_setting() -> None:
    # Kubernetes gives every container the address of each Service, as MESH_…_SERVICE_HOST if its
    # name begins like this; an unknown setting is an error.
    services = [own["deployments"][0]["name"] for own in domains().values()]
    services += [each["metadata"]["name"] for each in extra_manifests(platform())]
    services.append(platform("kind")["postgresql"]["postgresqlHost"])
    assert not [name for name in services if name.upper().replace("-", "_").startswith(PREFIX)]
