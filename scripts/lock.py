"""Compiles requirements/*.txt, hash-locked for every Python that fits, from the .in files.

    .venv/bin/python scripts/lock.py [option of `uv pip compile` …]

A version that is locked stays as long as it satisfies its .in file; `--upgrade` or
`--upgrade-package NAME` says otherwise. No index address and no path of this machine is written.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from dagster_project.ingestion.package_index import uv_environment  # noqa: E402

COMPILE = [
    *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
    *("--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
    *("--custom-compile-command", "make lock"),
]


def commands() -> list[list[str]]:
    """What uv is told, in order: the platform agrees with the bootstrap, dev with the platform."""
    bootstrap, platform = "requirements/bootstrap.txt", "requirements/platform.txt"
    found = [
        ["requirements/bootstrap.in", "-o", bootstrap],
        ["pyproject.toml", "requirements/bootstrap.in", "-c", bootstrap, "-o", platform],
        ["requirements/dev.in", "-c", platform, "-o", "requirements/dev.txt"],
        ["requirements/deploy.in", "-c", platform, "-o", "requirements/deploy.txt"],
        # Only its files are read: pandas, on which it depends, is not installed with it.
        ["--no-deps", "requirements/reference-data.in", "-o", "requirements/reference-data.txt"],
    ]
    for source in sorted((PROJECT / "requirements" / "connectors").glob("*.in")):
        command = [f"requirements/connectors/{source.name}"]
        overrides = source.with_suffix(".overrides")
        if overrides.exists():
            command += ["--override", f"requirements/connectors/{overrides.name}"]
        found.append([*command, "-o", f"requirements/connectors/{source.stem}.txt"])
    return found


def main() -> int:
    uv = Path(sys.executable).with_name("uv")
    environment = uv_environment(Path(sys.executable))
    for command in commands():
        print(command[-1], flush=True)
        answer = subprocess.run(
            [str(uv), *COMPILE, *sys.argv[1:], *command], cwd=PROJECT, env=environment, check=False
        )
        if answer.returncode != 0:
            return answer.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
