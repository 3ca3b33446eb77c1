"""`make bench`: every benchmark, or those that are named; prints tables and keeps them.

python -m benchmarks [--no-keep] [loading] [warehouse] [sync] [pipeline]
"""

from __future__ import annotations

import importlib
import sys

from rich.console import Console

NAMES = ("loading", "warehouse", "sync", "pipeline")


def main(arguments: list[str]) -> int:
    """Run what is asked for; 2 if that is not known."""
    keep = "--no-keep" not in arguments
    names = [name for name in arguments if name != "--no-keep"] or list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.stderr.write(f"no benchmark {', '.join(unknown)}: there are {', '.join(NAMES)}\n")
        return 2
    console = Console()
    for name in names:
        console.print(f"{name} …", style="dim")
        result = importlib.import_module(f"benchmarks.{name}").run(console)
        result.show(console)
        if keep:
            result.keep()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
