"""A copy of what the definitions are made of, in which a test works as a person would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dagster_project.settings import PROJECT
from dagster_project.transformation.project import ensure_manifest


class Checkout:
    """A copy of what the definitions are made of, to change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("dagster_project", "dbt_project", "expectations"):
            ignored = shutil.ignore_patterns("__pycache__", "target", "logs")
            shutil.copytree(PROJECT / name, root / name, ignore=ignored)
        for name in ("workspace.yaml", "pyproject.toml"):
            shutil.copy(PROJECT / name, root)
        # What was parsed already need not be parsed again.
        shutil.copytree(ensure_manifest().parent, root / ".mesh" / "dbt")

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run code where `dagster_project` is the copy."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MESH_")}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=self.root,
            env=inherited | {"PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
