"""The lakes that the same tests run against."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from dagster_project.lake.store import Lake
from tests.lake.s3 import S3Server


@pytest.fixture(params=["file", "s3", "s3 in a storm"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """An empty lake: on disk, on S3, and on an S3 that fails every third request."""
    if request.param == "file":
        return Lake((tmp_path / "lake").as_uri())
    request.getfixturevalue("in_haste")
    server = cast(S3Server, request.getfixturevalue("s3_server"))
    if request.param == "s3 in a storm":
        server.storm(seed=len(request.node.name), share=0.33)
    return cast(Lake, request.getfixturevalue("s3_lake"))
