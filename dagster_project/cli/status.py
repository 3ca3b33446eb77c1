"""What there is and what runs: `mesh status`, `mesh domains`, `mesh settings`, `mesh clean`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from dagster_project.catalog.bookkeeping import read_progress
from dagster_project.cli.services import is_home
from dagster_project.domain import domain_names, read_domain
from dagster_project.failures import BusyError, CatalogError, MeshError
from dagster_project.orchestration.problem import standing
from dagster_project.settings import PREFIX, Settings
from dagster_project.warehouse.connection import place
from dagster_project.warehouse.embedded import DAGSTER, EmbeddedPostgres
from dagster_project.warehouse.lease import holders

#: All that a home holds.
STATE = {
    "alerts",
    "catalog",
    "connectors",
    "dagster",
    "dbt",
    "docs",
    "lake",
    "logs",
    "postgres",
    "run.lock",
    "run.pid",
    "syncs",
}
#: Seconds that commands get to end by themselves.
STOPPING_TIMEOUT = 40


def console() -> Console:
    """The terminal; for a file or a pipe as wide as it takes."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def _megabytes(number: int) -> str:
    return f"{number / 2**20:,.0f} MB"


def show(settings: Settings) -> None:
    """The services, where they are and what they take."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("environment", settings.env.value)
    table.add_row("state", str(settings.home))
    table.add_row("lake", settings.lake)
    if settings.warehouse_url is not None:
        table.add_row("warehouse", place(settings.warehouse_url.get_secret_value()))
    if settings.dagster_url is not None:
        table.add_row("dagster's storage", place(settings.dagster_url.get_secret_value()))
    running = False
    if settings.warehouse_url is None or settings.dagster_url is None:
        status = EmbeddedPostgres(settings.home).status()
        running = status.running
        where = f"running on 127.0.0.1:{status.port}, process {status.pid}"
        table.add_row("PostgreSQL", where if running else "stopped")
        table.add_row("", f"version {status.version}, {_megabytes(status.data_bytes)}")
        if status.running:
            users = "unknown" if status.users is None else str(status.users)
            table.add_row("", f"used by {users} commands{', pinned' if status.pinned else ''}")
    console().print(table)
    _show_catalog(settings, running)
    _show_problems(settings)


def _show_catalog(settings: Settings, running: bool) -> None:
    """How far the catalog has been told; nothing if nobody has told it anything."""
    with ExitStack() as stack:
        if settings.dagster_url is not None:
            url = settings.dagster_url.get_secret_value()
        elif running:
            endpoint = stack.enter_context(EmbeddedPostgres(settings.home).lease())
            url = endpoint.url(DAGSTER, DAGSTER)
        else:
            return
        try:
            found = read_progress(url)
        except CatalogError as error:
            typer.echo(f"mesh: {error}", err=True)
            return
    if not found:
        return
    table = Table(header_style="bold", title="the catalog", title_justify="left", box=None)
    for column in ("told", "last", "up to event", "behind", "refused", ""):
        table.add_column(column, overflow="fold")
    for each in found:
        last = f"{each.told_at.astimezone():%Y-%m-%d %H:%M}" if each.told_at else "never"
        failing = ""
        if each.failing_since:
            failing = f"failing since {each.failing_since.astimezone():%Y-%m-%d %H:%M}: "
            failing += each.failure or ""
        table.add_row(
            *(each.destination, last, f"{each.event_id:,}", f"{each.behind:,}"),
            *(f"{each.dead_letters:,}", failing),
        )
    console().print(table)


def _show_problems(settings: Settings) -> None:
    """What was the matter when the daemon last looked."""
    found = {domain: problems for domain, problems in standing(settings.home).items() if problems}
    if not found:
        return
    table = Table(header_style="bold", title="what is the matter", title_justify="left", box=None)
    for column in ("domain", "owner", "since", "what", "of", ""):
        table.add_column(column, overflow="fold")
    for domain, problems in found.items():
        owner = read_domain(domain).owner if domain in domain_names() else "who runs the platform"
        for problem in problems:
            since = datetime.fromtimestamp(problem.since).astimezone()
            table.add_row(
                *(domain, owner, f"{since:%Y-%m-%d %H:%M}"),
                *(problem.kind.value, problem.name, problem.what),
            )
    console().print(table)


def show_domains() -> None:
    """The domains as a table."""
    table = Table(header_style="bold")
    for column in ("domain", "owner", "purpose", "data products", "uses"):
        table.add_column(column)
    for name in domain_names():
        domain = read_domain(name)
        products = "\n".join(product.name for product in domain.data_products)
        table.add_row(name, domain.owner, domain.purpose, products, ", ".join(domain.depends_on))
    console().print(table)


def show_settings(settings: Settings) -> None:
    """Every setting with its value here; a secret only as being set."""
    table = Table(header_style="bold")
    for column in ("setting", "here", "what it is"):
        table.add_column(column, overflow="fold")
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            # Of others, such as a token or a webhook, all of it is the secret.
            is_database = name in ("warehouse_url", "dagster_url")
            value = f"set: {place(value.get_secret_value())}" if is_database else "set"
        shown = "" if value is None else str(value)
        table.add_row(PREFIX + name.upper(), shown, field.description or "")
    console().print(table)


def remove(settings: Settings, ask: bool) -> None:
    """Stop what runs and remove the state's folder.

    Raises MeshError, and removes nothing, if the folder holds anything that is not ours.
    """
    home = settings.home
    if not home.exists():
        typer.echo(f"{home} is not there: nothing to remove")
        return
    others = sorted(path.name for path in home.iterdir() if path.name not in STATE)
    if others or (not is_home(home) and any(home.iterdir())):
        found = f"it holds {', '.join(others[:5])}" if others else "`mesh` has not made it"
        raise MeshError(f"{home} is not the platform's state alone ({found}): remove it by hand")
    if ask:
        typer.confirm(f"Remove {home} with the warehouse and the lake in it?", abort=True)
    _stop(home)
    shutil.rmtree(home)
    typer.echo(f"{home} removed")


def _stop(home: Path) -> None:
    """End the commands that use the home as Ctrl-C does, then the PostgreSQL in it."""
    server = EmbeddedPostgres(home)
    for lock in (home / "run.lock", home / "postgres" / "users.lock"):
        for pid in holders(lock) or ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGINT)
    limit = time.monotonic() + STOPPING_TIMEOUT
    while True:
        try:
            server.stop(force=time.monotonic() > limit)
        except BusyError:
            continue
        return
