"""What there is and what runs: `mesh status`, `mesh domains`, `mesh settings`, `mesh clean`."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from dagster_project.domain import domain_names, read_domain
from dagster_project.failures import MeshError
from dagster_project.settings import PREFIX, Settings
from dagster_project.warehouse.connection import place
from dagster_project.warehouse.embedded import EmbeddedPostgres


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
    if settings.warehouse_url is None or settings.dagster_url is None:
        status = EmbeddedPostgres(settings.home).status()
        running = f"running on 127.0.0.1:{status.port}, process {status.pid}"
        table.add_row("PostgreSQL", running if status.running else "stopped")
        table.add_row("", f"version {status.version}, {_megabytes(status.data_bytes)}")
        if status.running:
            users = "unknown" if status.users is None else str(status.users)
            table.add_row("", f"used by {users} commands{', pinned' if status.pinned else ''}")
    Console(highlight=False).print(table)


def show_domains() -> None:
    """The domains as a table."""
    table = Table(header_style="bold")
    for column in ("domain", "owner", "purpose", "data products", "uses"):
        table.add_column(column)
    for name in domain_names():
        domain = read_domain(name)
        products = "\n".join(product.name for product in domain.data_products)
        table.add_row(name, domain.owner, domain.purpose, products, ", ".join(domain.depends_on))
    Console().print(table)


def show_settings(settings: Settings) -> None:
    """Every setting with its value here; a secret only as being set."""
    table = Table(header_style="bold")
    for column in ("setting", "here", "what it is"):
        table.add_column(column, overflow="fold")
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = f"set: {place(value.get_secret_value())}"
        shown = "" if value is None else str(value)
        table.add_row(PREFIX + name.upper(), shown, field.description or "")
    Console().print(table)


def remove(settings: Settings, ask: bool) -> None:
    """Stop what runs and remove the state's folder."""
    home: Path = settings.home
    if not home.exists():
        typer.echo(f"{home} is not there: nothing to remove")
        return
    if not (home / "dagster").exists() and any(home.iterdir()) and not (home / "postgres").exists():
        raise MeshError(f"{home} does not look like the platform's state: remove it by hand")
    if ask:
        typer.confirm(f"Remove {home} with the warehouse and the lake in it?", abort=True)
    EmbeddedPostgres(home).stop(force=True)
    shutil.rmtree(home)
    typer.echo(f"{home} removed")
