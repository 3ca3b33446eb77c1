"""What loading costs: all code locations together, against the imports that they cannot do without.

    .venv/bin/python -m benchmarks.loading [pairs]

Prints the CPU seconds of both as medians of pairs of runs, each in a process of its own, and their
ratio, which is to be at most 1.3.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
GOAL = 1.3

BASE = "import dagster_dbt, dagster_airbyte"
LOCATIONS = """
import importlib, yaml
for entry in yaml.safe_load(open("workspace.yaml"))["load_from"]:
    module = importlib.import_module(entry["python_module"]["module_name"])
    module.defs().get_repository_def()
"""


def cpu_seconds(code: str) -> float:
    """User and system time of a fresh Python that runs the code in the checkout."""
    before = os.times()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, check=True)
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


def main(pairs: int = 7) -> None:
    """Measure and print."""
    for code in (BASE, LOCATIONS):  # compiled, parsed and in the cache
        cpu_seconds(code)
    measured = [(cpu_seconds(BASE), cpu_seconds(LOCATIONS)) for _ in range(pairs)]
    base, locations = (statistics.median(column) for column in zip(*measured, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in measured)
    sys.stdout.write(
        f"{BASE}: {base:.2f} s\n"
        f"all code locations: {locations:.2f} s\n"
        f"ratio: {ratio:.2f} (to be at most {GOAL}; medians of {pairs} pairs)\n"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
