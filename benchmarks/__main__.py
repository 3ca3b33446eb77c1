"""`make bench`: every benchmark, or those that are named; prints tables and keeps them."""

from __future__ import annotations

import argparse
import importlib
import sys

from rich.console import Console

NAMES = ("loading", "warehouse", "sync", "quality", "pipeline", "landing", "catalog", "events")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--runs", type=int, help="how often each is measured")
    parser.add_argument("--no-keep", action="store_true", help="leave RESULTS.md as it is")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(NAMES)}")
    # A table is to be read in a file too.
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in asked.names or NAMES:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        console.print(f"{name} …", style="dim")
        result = benchmark.run(console, asked.runs or benchmark.RUNS)
        result.show(console)
        if not asked.no_keep:
            result.keep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
