"""The commands of `mesh`, and how they fail: one clear message, no traceback, a non-zero exit."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from datetime import datetime
from typing import Annotated

import typer

from dagster_project.cli.catalog import app as catalog
from dagster_project.cli.deploy import app as deploy
from dagster_project.cli.rejects import app as rejects
from dagster_project.failures import MeshError
from dagster_project.settings import Settings, get_settings

app = typer.Typer(
    name="mesh",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""A data mesh that runs: real sources to trusted marts.

    [bold]mesh run[/bold] carries the reference data the whole way, [bold]mesh ui[/bold] shows it in
    Dagster, [bold]mesh sql[/bold] asks the warehouse. Settings are environment variables that start
    with MESH_; [bold]mesh settings[/bold] lists them.""",
)
app.add_typer(catalog, name="catalog")
app.add_typer(deploy, name="deploy")
app.add_typer(rejects, name="rejects")


@app.command()
def run(
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", "-d", help="Only this domain; may be given again. All if none."),
    ] = None,
) -> None:
    """Run the reference pipelines: source, lake, warehouse, dbt, expectations.

    A domain runs after those whose data products it uses. Running again touches only what changed.
    """
    from dagster_project.cli.run import run_domains

    # Whoever ends it does what Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not run_domains(get_settings(), domain or []):
            raise typer.Exit(1)
    except KeyboardInterrupt:
        typer.echo("mesh: interrupted; `mesh run` goes on from what is loaded", err=True)
        raise typer.Exit(130) from None


@app.command()
def retry(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Ids of failed runs, or how they begin."),
    ] = None,
) -> None:
    """Run again what failed, and what follows from it: of these runs, or of all that stand failed.

    What succeeded is not repeated. A run stands failed until another did what it failed to do, as
    [bold]mesh status[/bold] tells while [bold]mesh ui[/bold] is up.
    """
    from dagster_project.cli.retry import retry_runs

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not retry_runs(get_settings(), runs or []):
            raise typer.Exit(1)
    except KeyboardInterrupt:
        typer.echo("mesh: interrupted; `mesh retry` goes on from what is done", err=True)
        raise typer.Exit(130) from None


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="The port on loopback.")] = 3000,
) -> None:
    """The Dagster UI on loopback: every domain a code location. Ctrl-C ends all of it."""
    from dagster_project.cli.ui import serve

    raise typer.Exit(serve(get_settings(), port))


@app.command()
def replay(
    domain: Annotated[str, typer.Argument(help="A domain with daily files: flights.")],
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="The first day.")],
    days: Annotated[int, typer.Option(help="How many days.", min=1)] = 7,
    every: Annotated[
        str, typer.Option(help="How long to wait between two, such as 5s or 1m.")
    ] = "5s",
    again: Annotated[
        bool, typer.Option("--again", help="Forget the days first, if they are loaded.")
    ] = False,
) -> None:
    """Drop real days in the landing zone as they would arrive; `mesh ui` shows what they start."""
    from dagster_project.cli.replay import replay as drop
    from dagster_project.domain import duration

    try:
        pause = duration(every).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(f"--every: {error}") from None
    drop(get_settings(), domain, first.date(), days, pause, again)


@app.command()
def up() -> None:
    """Start the embedded PostgreSQL and keep it running until `mesh down`."""
    from dagster_project.cli.services import prepare_home
    from dagster_project.warehouse.embedded import EmbeddedPostgres

    settings = get_settings()
    prepare_home(settings)
    endpoint = EmbeddedPostgres(settings.home).pin()
    typer.echo(f"PostgreSQL runs on {endpoint.host}:{endpoint.port} until `mesh down`")


@app.command()
def down(
    force: Annotated[
        bool, typer.Option("--force", help="Stop it even while other commands use it.")
    ] = False,
) -> None:
    """Stop the embedded PostgreSQL."""
    from dagster_project.warehouse.embedded import EmbeddedPostgres

    stopped = EmbeddedPostgres(get_settings().home).stop(force=force)
    typer.echo("PostgreSQL stopped" if stopped else "PostgreSQL was not running")


@app.command()
def status() -> None:
    """What runs, where, and what it takes."""
    from dagster_project.cli.status import show

    show(get_settings())


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="One SQL statement; it can only read.")],
) -> None:
    """Ask the warehouse; the answer is CSV with one header line."""
    from dagster_project.cli.query import run_query

    run_query(get_settings(), statement)


@app.command("exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def execute(context: typer.Context) -> None:
    """Run any command with the platform around it: mesh exec dagster asset list …

    The command finds DAGSTER_HOME, MESH_WAREHOUSE_URL and what dbt needs in its environment.
    """
    from dagster_project.cli.ui import run_inside

    if not context.args:
        raise typer.BadParameter("name a command, such as: mesh exec dbt ls")
    raise typer.Exit(run_inside(get_settings(), context.args))


@app.command()
def install() -> None:
    """Make the connectors' environments and parse the dbt project, without running anything."""
    from dagster_project.cli.run import install as make
    from dagster_project.cli.services import prepare_home
    from dagster_project.domain import domain_names

    settings = get_settings()
    prepare_home(settings)
    make(settings, domain_names(), typer.echo)


@app.command()
def expect(
    table: Annotated[str, typer.Argument(help="A table, such as fleet.dim_planes.")],
    write: Annotated[
        bool,
        typer.Option("--write", help="Into its suite; the checks that are there stay as they are."),
    ] = False,
) -> None:
    """Propose checks: profile a table, and print a suite of expectations to edit."""
    from dagster_project.cli.expect import propose_suite

    propose_suite(get_settings(), table, write)


@app.command()
def lint() -> None:
    """Find faults in the suites of expectations: each by file and line, all of them at once."""
    from dagster_project.cli.expect import lint_suites

    # Whoever ends it ends the PostgreSQL that it started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise typer.Exit(lint_suites(get_settings()))


@app.command()
def docs(
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the site on loopback until Ctrl-C.")
    ] = False,
) -> None:
    """Build Data Docs: a static site of all suites and of the newest results of every table."""
    from dagster_project.cli.docs import show

    raise typer.Exit(show(get_settings(), serve))


@app.command()
def lineage(
    table: Annotated[str, typer.Argument(help="A table, such as flights.on_time_by_carrier.")],
    up: Annotated[bool, typer.Option("--up", help="Only what it is made of.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what is made of it.")] = False,
    columns: Annotated[bool, typer.Option("--columns", help="Column by column.")] = False,
) -> None:
    """Where a table comes from, and what is made of it: from source system to mart, as a tree.

    What is no table has the name of its asset: source/fleet/register/planes,
    lake/fleet/register/planes, landing/flights/flights.
    """
    from dagster_project.cli.lineage import show

    show(get_settings(), table, up=up or not down, down=down or not up, columns=columns)


@app.command()
def domains() -> None:
    """The domains, with owner, purpose and data products."""
    from dagster_project.cli.status import show_domains

    show_domains()


@app.command("settings")
def show_settings() -> None:
    """Every setting, with what it is here; a secret's value is never shown."""
    from dagster_project.cli.status import show_settings as show

    show(get_settings())


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop what runs, then remove all local state: warehouse, lake, connectors, logs."""
    from dagster_project.cli.status import remove

    remove(get_settings(), ask=not yes and sys.stdin.isatty())


def run_app() -> None:
    """Run a command; a failure that a person can act on is printed, not traced."""
    warnings.filterwarnings("ignore")
    try:
        app()
    except MeshError as error:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        typer.secho(f"mesh: {error}", err=True, fg="red" if colour else None)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno == 28:
            free = shutil.disk_usage(_existing(get_settings())).free // 2**20
            typer.echo(f"mesh: no disk space left ({free} MB free): {error}", err=True)
            sys.exit(1)
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(141)
        raise


def _existing(settings: Settings) -> str:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    return str(folder)
