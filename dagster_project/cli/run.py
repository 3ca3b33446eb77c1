"""`mesh run`: the reference pipelines, each in runs of its own code location, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread

from dagster_project.cli.progress import Display
from dagster_project.cli.services import prepare_home, services
from dagster_project.cli.workers import Work, in_order, only_one, work
from dagster_project.domain import domain_folder
from dagster_project.quality.server import validation_server
from dagster_project.settings import Settings, get_settings


def run_domains(settings: Settings, chosen: Sequence[str]) -> bool:
    """Run these domains (all, if none is named) in the order of their dependencies; all succeeded?

    A domain runs when those it depends on have succeeded; one whose upstream failed is not run.
    """
    names = [name for name in in_order() if not chosen or name in chosen]
    for name in chosen:
        domain_folder(name)
    prepare_home(settings)
    display = Display()
    with only_one(settings.home), services(settings), validation_server():
        settings = get_settings()
        display.note("loading the domains")
        install(settings, names, display.note)
        succeeded = work(settings, dict.fromkeys(names, _pipeline), display)
    _say_next(display)
    return succeeded


def _pipeline(work: Work) -> bool:
    from dagster_project.cli.pipeline import whole_pipeline

    return whole_pipeline(work)


def install(settings: Settings, names: Sequence[str], report: Callable[[str], None]) -> None:
    """The connectors' environments and the dbt manifest, made where they are missing."""
    from dagster_project.ingestion.declaration import REFERENCE_URL, read_connections
    from dagster_project.ingestion.environments import REFERENCE_DATA, install_all
    from dagster_project.transformation.project import ensure_manifest

    connections = [connection for name in names for connection in read_connections(name)]
    environments = {connection.connector.environment for connection in connections}
    if "flights" in names or any(REFERENCE_URL in c.needs() for c in connections):
        environments.add(REFERENCE_DATA)
    faults: list[BaseException] = []

    def parse() -> None:
        try:
            ensure_manifest(settings)
        except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
            faults.append(error)

    parsing = Thread(target=parse)
    parsing.start()
    try:
        install_all(settings.home, sorted(environments), report)
    finally:
        parsing.join()
    if faults:
        raise faults[0]


def _say_next(display: Display) -> None:
    display.note("")
    display.note("Browse it:  make ui        (or .venv/bin/mesh ui)")
    display.note('Ask it:     .venv/bin/mesh sql "SELECT * FROM flights.on_time_by_carrier"')
