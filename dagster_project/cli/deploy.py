"""`mesh deploy`: what is done for a release before it runs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Annotated

import typer

from dagster_project.failures import SettingsError
from dagster_project.settings import Environment, get_settings

app = typer.Typer(
    no_args_is_help=True,
    help="""What is done for a release before it runs.

    [bold]mesh deploy prepare[/bold] where its image is built, [bold]mesh deploy migrate[/bold]
    before it starts, [bold]mesh deploy check[/bold] whenever something is amiss.""",
)


@app.command()
def check(
    domain: Annotated[
        list[str] | None,
        typer.Option(
            "--domain", "-d", help="Connectors and secrets of this domain alone; may be repeated."
        ),
    ] = None,
) -> None:
    """Look whether all that the platform needs is there: a line for each thing.

    It says ok, or what is wrong and what to do about it, and looks at everything whatever it finds;
    the exit code is 1 if anything is wrong. Changes nothing, but for an object of a moment in the
    lake. Locally it starts the embedded PostgreSQL if need be.
    """
    from dagster_project.cli.services import services
    from dagster_project.deployment.checks import CHECKS, Finding, findings

    width = max(map(len, CHECKS)) + 2

    def say(found: Finding) -> bool:
        print(f"{found.what:{width}}{'ok' if found.is_well else 'wrong':7}{found.said}", flush=True)
        return found.is_well

    try:
        settings = get_settings()
    except SettingsError as error:
        say(Finding("settings", False, "; ".join(str(error).splitlines())))
        for what in list(CHECKS)[1:]:
            say(Finding(what, False, "not looked at: the settings have to be readable first"))
        raise typer.Exit(1) from None
    with ExitStack() as stack:
        if settings.env is Environment.LOCAL and None in (
            settings.warehouse_url,
            settings.dagster_url,
        ):
            stack.enter_context(services(settings))
        found = [say(each) for each in findings(get_settings(), domain or [])]
    # Not waited for: whoever looks at what never answers.
    raise typer.Exit(0 if all(found) else 1)


@app.command()
def migrate() -> None:
    """Bring the databases up to what this release needs: Dagster's tables, and our own.

    Forward only, and before the new code starts; the old code goes on working with them. Again, or
    twice at once, does no harm.
    """
    from dagster_project.cli.services import services
    from dagster_project.deployment.checks import missing_settings
    from dagster_project.deployment.migration import migrate as steps

    # Or the embedded database would be migrated in place of theirs.
    if missing := missing_settings(get_settings()):
        raise SettingsError(f"{missing}: nothing was migrated")
    with services(get_settings()):
        for said in steps(get_settings()):
            print(said, flush=True)


@app.command()
def prepare(
    database: Annotated[
        str, typer.Option(help="The name of the warehouse's database, which dbt's names have.")
    ] = "warehouse",
    connectors: Annotated[
        bool, typer.Option("--connectors", help="Make the connectors' environments, too.")
    ] = False,
) -> None:
    """Parse and compile the dbt project, as is done where an image is built.

    Without a database and without a network, into MESH_DBT_TARGET_DIR, which is only read from then
    on. With --connectors the packages of the connectors are installed into MESH_CONNECTORS_DIR,
    which asks the package index for them.
    """
    from dagster_project.catalog.kept_lineage import read_lineage
    from dagster_project.transformation.compiled import read_compiled
    from dagster_project.transformation.project import (
        databases,
        forget_parsed,
        is_parsed,
        parse_manifest,
        read_manifest,
    )

    settings = get_settings()
    if settings.warehouse_url is not None:
        raise SettingsError(
            "MESH_WAREHOUSE_URL is set: what is prepared is of any warehouse whose database is "
            "called as --database says. Leave it out"
        )
    os.environ["DBT_MESH_DATABASE"] = database
    if is_parsed(settings) and databases(read_manifest(settings)) != {database}:
        forget_parsed(settings)
    parse_manifest(settings)
    manifest, compiled = read_manifest(settings), read_compiled(settings)
    read_lineage(settings, manifest, compiled, lambda said: typer.echo(f"mesh: {said}", err=True))
    print(f"{len(compiled)} models for the database {database}: {settings.dbt_target.absolute()}")
    if connectors:
        from dagster_project.cli.run import install
        from dagster_project.domain import domain_names

        install(settings, domain_names(), typer.echo)
        print(f"connectors: {settings.connectors.absolute()}")
