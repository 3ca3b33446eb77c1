"""The command line: `mesh`."""

from __future__ import annotations


def main() -> None:
    """The entry point of the console script."""
    from dagster_project.cli.app import run_app

    run_app()
