"""`mesh deploy`: what is done for a release before it runs."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dagster_project.failures import SettingsError
from dagster_project.settings import get_settings

app = typer.Typer(
    no_args_is_help=True,
    help="""What is done for a release before it runs.

    [bold]mesh deploy prepare[/bold] where its image is built, [bold]mesh deploy migrate[/bold]
    before it starts, [bold]mesh deploy check[/bold] whenever something is amiss.""",
)


@app.command()
def check() -> None:
    """Look whether all that the platform needs is there, a line for each thing.

    With what to do about what is not; the exit code is 1 then. Changes nothing, but for an object
    of a moment in the lake.
    """
    from rich.table import Table

    from dagster_project.cli.services import services
    from dagster_project.cli.status import console
    from dagster_project.deployment.checks import findings
    from dagster_project.settings import Environment

    settings = get_settings()
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    amiss = 0

    def look() -> None:
        nonlocal amiss
        for found in findings(get_settings()):
            amiss += not found.is_well
            colour = "green" if found.is_well else "bold red"
            word = "ok" if found.is_well else "amiss"
            table.add_row(found.what, f"[{colour}]{word}[/]", found.said)

    if settings.env is Environment.LOCAL:
        with services(settings):
            look()
    else:
        look()
    console().print(table)
    raise typer.Exit(1 if amiss else 0)


@app.command()
def migrate() -> None:
    """Bring the databases up to what this release needs: Dagster's tables, and our own.

    Forward only, and before the new code starts; the old code goes on working with them. Again, or
    twice at once, does no harm.
    """
    from dagster_project.cli.services import services
    from dagster_project.deployment.migration import migrate as steps

    with services(get_settings()):
        for said in steps(get_settings()):
            print(said, flush=True)


@app.command()
def prepare(
    database: Annotated[
        str, typer.Option(help="The name of the warehouse's database, which dbt's names have.")
    ] = "warehouse",
) -> None:
    """Parse and compile the dbt project, as is done where an image is built.

    Without a database and without a network, into MESH_DBT_TARGET_DIR, which is only read from then
    on. Connectors' environments are made by `mesh install`.
    """
    from dagster_project.catalog.kept_lineage import read_lineage
    from dagster_project.transformation.compiled import read_compiled
    from dagster_project.transformation.project import read_manifest

    settings = get_settings()
    if settings.warehouse_url is not None:
        raise SettingsError(
            "MESH_WAREHOUSE_URL is set: what is prepared is of any warehouse whose database is "
            "called as --database says. Leave it out"
        )
    os.environ["DBT_MESH_DATABASE"] = database
    manifest, compiled = read_manifest(settings), read_compiled(settings)
    read_lineage(settings, manifest, compiled, lambda said: typer.echo(f"mesh: {said}", err=True))
    print(f"{len(compiled)} models for the database {database}: {settings.dbt_target.absolute()}")
