"""What loading costs: all code locations together, against the imports that they cannot do without.

Processor seconds, medians of pairs of runs, each in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.measure import cpu_seconds
from benchmarks.results import Benchmark

PROJECT = Path(__file__).resolve().parent.parent
RUNS = 7

BASE = "import dagster_dbt, dagster_airbyte"
LOCATIONS = """
import importlib, yaml
for entry in yaml.safe_load(open("workspace.yaml"))["load_from"]:
    module = importlib.import_module(entry["python_module"]["module_name"])
    module.defs().get_repository_def()
"""


def taken(code: str) -> float:
    """Processor seconds of a fresh Python that runs the code in the checkout."""
    before = cpu_seconds()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, check=True)
    return cpu_seconds() - before


def run(console: Console, runs: int) -> Benchmark:
    """Measure."""
    console.print(f"{runs} pairs …", style="dim")
    for code in (BASE, LOCATIONS):  # compiled, parsed and in the cache
        taken(code)
    pairs = [(taken(BASE), taken(LOCATIONS)) for _ in range(runs)]
    base, locations = (statistics.median(column) for column in zip(*pairs, strict=True))
    result = Benchmark("loading", "Loading all code locations")
    result.add(
        f"four locations against `{BASE}`",
        f"{locations:.2f} s against {base:.2f} s of processor time",
        statistics.median(theirs / ours for ours, theirs in pairs),
        1.3,
    )
    return result
