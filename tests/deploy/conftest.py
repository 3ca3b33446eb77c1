"""An image's environment, and a Kubernetes that is asked by the real client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.charts import DEPLOY
from tests.deploy.cluster import Cluster


def image_environment(target: str = "platform") -> dict[str, str]:
    """The environment that a target of the Dockerfile has, apart from PATH."""
    text = (DEPLOY / "image" / "Dockerfile").read_text().replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    found: dict[str, str] = {}
    for stage in stages:
        name = stage.splitlines()[0].rpartition(" AS ")[2]
        if name in ("base", target):
            for line in re.findall(r"^ENV (.+)$", stage, flags=re.M):
                found |= dict(part.split("=", 1) for part in line.split())
    found.pop("PATH")
    return found


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that keeps what it is asked to run."""
    with Cluster(tmp_path / "cluster", {}, runs=False) as cluster:
        yield cluster
