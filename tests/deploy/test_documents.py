"""What deploy/ says in words, and what it does, agree."""

from __future__ import annotations

import re

import yaml

from dagster_project.cli.services import _QUIET
from dagster_project.domain import domain_names
from dagster_project.settings import PREFIX, PROJECT, Settings
from tests.deploy.charts import (
    DEPLOY,
    ENVIRONMENTS,
    VALUES,
    code_server,
    domains,
    platform,
    read,
)
from tests.deploy.conftest import image_environment


def test_every_setting_that_the_values_name_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = set()
    for path in [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.env"), DEPLOY / "image" / "Dockerfile"]:
        named |= set(re.findall(r"\bMESH_[A-Z_]+\b", path.read_text()))
    assert named
    # The last is of a script inside of PostgreSQL's own image.
    assert named - known <= {"MESH_PASSWORD"}


def test_secrets_that_are_named_are_documented() -> None:
    named = set()
    for domain, values in domains().items():
        spec = code_server(domain, values)["containers"][0]
        named |= {each["secretRef"]["name"] for each in spec["envFrom"] if "secretRef" in each}
    named |= set(
        re.findall(
            r"(?:secretRef: {name|secretKeyRef: {name|SecretName): ([\w-]+)",
            (VALUES / "values.yaml").read_text(),
        )
    )
    assert len(named) >= 8
    text = (DEPLOY / "README.md").read_text()
    assert not [
        name
        for name in named
        if f"`{name}`" not in text and name not in [f"mesh-{domain}" for domain in domain_names()]
    ]


def test_the_chart_is_the_one_of_our_dagster() -> None:
    lock = (PROJECT / "requirements" / "platform.txt").read_text()
    (version,) = re.findall(r"^dagster==([\d.]+)", lock, flags=re.M)
    helmfile = (DEPLOY / "helmfile.yaml.gotmpl").read_text()
    pinned = re.findall(r"chart: dagster/[\w-]+\n    version: ([\d.]+)", helmfile)
    assert pinned == [version] * 2
    for path in [
        VALUES / "values.yaml",
        *(VALUES / "domains").glob("*.yaml"),
        DEPLOY / "README.md",
    ]:
        assert version in path.read_text(), path


def test_every_domain_is_installed_in_every_environment() -> None:
    helmfile = (DEPLOY / "helmfile.yaml.gotmpl").read_text()
    (listed,) = re.findall(r"range \$domain := list (.*?) }}", helmfile)
    assert tuple(re.findall(r'"(\w+)"', listed)) == domain_names()
    for environment in ENVIRONMENTS:
        tags = read(DEPLOY / "environments" / f"{environment}.yaml")["tags"]
        assert tuple(tags) == ("platform", *domain_names())
        assert environment in helmfile
    up = (DEPLOY / "kind" / "up.sh").read_text()
    assert set(re.findall(r"tags\.(\w+)=", up)) == {"platform", *domain_names()}
    assert set(re.findall(r"mesh-(\w+)", up)) >= set(domain_names())


def test_every_chart_is_pinned() -> None:
    helmfile = (DEPLOY / "helmfile.yaml.gotmpl").read_text()
    releases = helmfile.count("    chart: ")
    assert releases == len(re.findall(r"    version: \d+\.\d+\.\d+\n", helmfile)) == 7


def test_all_manifests_can_be_read() -> None:
    for path in DEPLOY.rglob("*.yaml"):
        for manifest in yaml.safe_load_all(path.read_text()):
            assert manifest, path
            if "kind" in manifest:
                assert manifest["apiVersion"]
                assert manifest["metadata"]["name"] if "metadata" in manifest else manifest["name"]


def test_what_the_image_has_is_what_commands_have() -> None:
    # `mesh` sets it for what it starts; in a pod nothing starts the processes but Kubernetes.
    assert image_environment().items() >= _QUIET.items()
    image = image_environment("with-connectors")
    home = platform()["global"]["dagsterHome"]
    assert image["DAGSTER_HOME"] == home
    for values in domains().values():
        (own,) = values["deployments"]
        mounted = {each["mountPath"] for each in own["volumeMounts"]}
        assert {home, image["MESH_HOME"], image["HOME"]} <= mounted
        # What the image brings is not hidden by a volume.
        for brought in ("MESH_DBT_TARGET_DIR", "MESH_CONNECTORS_DIR"):
            assert not [path for path in mounted if image[brought].startswith(f"{path}/")]


def test_the_image_takes_what_runs_and_nothing_else() -> None:
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    taken = {line[1:] for line in ignored if line.startswith("!")}
    dockerfile = (DEPLOY / "image" / "Dockerfile").read_text()
    copied = {
        part.split("/")[0]
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, flags=re.M)
        for part in line.split()[:-1]
    }
    assert copied == taken
    assert "tests" not in taken
    assert "ENTRYPOINT" not in re.sub(r"#.*", "", dockerfile)
    assert re.search(r"^USER 10001:10001$", dockerfile, flags=re.M)
    uids = {
        values["deployments"][0]["podSecurityContext"]["runAsUser"] for values in domains().values()
    }
    assert uids == {10001}
