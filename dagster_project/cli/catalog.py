"""`mesh catalog`: what DataHub is told of the platform, in files of DataHub's own format."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from dagster_project.failures import (
    CatalogError,
    DeclarationError,
    MeshError,
    TransientCatalogError,
)
from dagster_project.settings import get_settings

if TYPE_CHECKING:
    from dagster_project.catalog.bookkeeping import Books
    from dagster_project.catalog.dead_letters import DeadLetter
    from dagster_project.orchestration.delivery import Deliverer

#: Seconds between two words of how far a long delivery is.
_SAID_EVERY = 5.0

app = typer.Typer(
    no_args_is_help=True,
    help="""What DataHub is told: every dataset with owner, columns and where they come from.

    [bold]mesh catalog emit[/bold] writes it to a file that DataHub ingests, [bold]mesh catalog
    check[/bold] finds what DataHub would refuse of it.""",
)


@app.command()
def emit() -> None:
    """Write the metadata of all domains, as their files declare it, for DataHub to ingest.

    Nothing has to have run, and no database is asked. What the file told before and is gone is told
    to be removed.
    """
    from dagster_project.catalog.files import as_record, metadata_file, read, write
    from dagster_project.catalog.metadata import static_metadata
    from dagster_project.catalog.withdrawal import withdrawn
    from dagster_project.cli.in_python import in_python
    from dagster_project.cli.services import prepare_home

    settings = get_settings()
    prepare_home(settings)
    path = metadata_file(settings)
    try:
        before = read(path) if path.exists() else []
    except CatalogError as error:
        say(f"{error}. What it told and is gone is not taken back")
        before = []
    now = [as_record(proposal) for proposal in static_metadata(settings, say, in_python)]
    gone = list(withdrawn(before, now, settings.env.speaks_for_all))
    write(path, [*now, *gone])
    entities = {(record["entityType"], record["entityUrn"]) for record in now}
    count = Counter(kind for kind, _ in entities)
    told = f"{count['dataset']} datasets of {count['domain']} domains in {len(now):,} records"
    print(f"{told}{f', {len(gone):,} of what is gone' if gone else ''}: {path.absolute()}")


@app.command()
def check() -> None:
    """Find what DataHub would refuse of the files that were written for it."""
    from dagster_project.catalog.files import events_folder, metadata_file, read
    from dagster_project.catalog.validation import faults

    settings = get_settings()
    happened = sorted(events_folder(settings).glob("*.json"))
    declared = metadata_file(settings)
    paths = [declared, *happened] if declared.exists() or not happened else happened
    records, wrong = 0, False
    for path in paths:
        for fault in faults(path):
            wrong = True
            say(fault)
        records += 0 if wrong else len(read(path))
    if wrong:
        raise typer.Exit(1)
    files = f" and {len(happened):,} files in {happened[0].parent}" if happened else ""
    print(f"{records:,} records, all valid: {paths[0].absolute()}{files}")


@app.command()
def deliver(
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on delivering what happens, until Ctrl-C.")
    ] = False,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"],
            help="Tell again what happened since then, and all that is declared, as after DataHub "
            "was restored from a backup. Nothing is there twice.",
        ),
    ] = None,
) -> None:
    """Tell the catalog what has happened since the last time, and what the domains declare.

    To DataHub's server, if MESH_DATAHUB_GMS_URL names one, else to files. `mesh ui` does this all
    the time. What the server refuses is kept: see `mesh catalog dead-letters`.
    """
    from dagster_project.cli.delivering import delivering
    from dagster_project.cli.services import services

    with services(get_settings()):
        if since:
            with _deliverer() as (deliverer, _):
                deliverer.forget(since)
        if not follow:
            raise typer.Exit(_deliver())
        with delivering(get_settings()) as log:
            print(f"delivers what happens - Ctrl-C ends it; its log: {log.absolute()}", flush=True)
            Event().wait()


@app.command("dead-letters")
def dead_letters() -> None:
    """List what the catalog refused, with why."""
    from rich.table import Table

    from dagster_project.catalog.dead_letters import read_dead_letters
    from dagster_project.catalog.destination import destination_of
    from dagster_project.cli.services import services
    from dagster_project.cli.status import console

    with services(get_settings()):
        letters = read_dead_letters(_books(), destination_of(get_settings()).name)
    if not letters:
        print("the catalog has refused nothing")
        return
    table = Table(header_style="bold")
    for column in ("id", "refused", "event", "aspect", "of", "why"):
        table.add_column(column, overflow="fold")
    for letter in letters:
        table.add_row(
            *(str(letter.id), f"{letter.refused_at.astimezone():%Y-%m-%d %H:%M}"),
            *(str(letter.event_id or "declared"), letter.aspect, letter.entity, letter.reason),
        )
    console().print(table)


@app.command()
def replay(
    ids: Annotated[
        list[int] | None, typer.Argument(help="As `mesh catalog dead-letters` lists them.")
    ] = None,
) -> None:
    """Tell the catalog once more what it refused: these dead letters, or all."""
    from dagster_project.cli.services import services

    with services(get_settings()), _deliverer() as (deliverer, books):
        done = deliverer.replay(_chosen(books, ids))
    print(f"{done.records - done.refused:,} records taken, {done.refused:,} refused again")
    raise typer.Exit(1 if done.refused else 0)


@app.command()
def discard(
    ids: Annotated[
        list[int] | None, typer.Argument(help="As `mesh catalog dead-letters` lists them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
) -> None:
    """Let go of what the catalog refused: it is not told again."""
    from dagster_project.cli.services import services

    if bool(ids) == every:
        raise typer.BadParameter("either the ids of dead letters, or --all")
    with services(get_settings()), _deliverer() as (_, books):
        letters = _chosen(books, ids)
        books.discard(letters)
    print(f"dead letters discarded: {len(letters):,}")


def _chosen(books: Books, ids: list[int] | None) -> list[DeadLetter]:
    """The dead letters of these ids, or all. Raises MeshError if there is no such one."""
    letters = books.dead_letters()
    if unknown := sorted(set(ids or ()) - {letter.id for letter in letters}):
        raise MeshError(
            f"no dead letter has the id {unknown[0]}: `mesh catalog dead-letters` lists them"
        )
    return [each for each in letters if not ids or each.id in ids]


def _deliver() -> int:
    """Deliver all that there is; the exit code."""
    from dagster_project.catalog.metadata import declared_version
    from dagster_project.orchestration.delivery import Delivered

    mistake: DeclarationError | None = None
    total = Delivered()
    # Before any of it is read.
    version = declared_version(get_settings())
    with _deliverer() as (deliverer, books):
        try:
            total.add(deliverer.declare(version))
        except DeclarationError as error:
            mistake = error
        began = time.monotonic()
        for done in deliverer.catch_up():
            total.add(done)
            if time.monotonic() - began > _SAID_EVERY:
                began = time.monotonic()
                say(f"so far {total}")
        where = books.destination
    if mistake:
        raise mistake
    print(f"{total or 'nothing new'}: {where}")
    if declared_version(get_settings()) != version:
        raise MeshError(
            "the domains' files were changed while they were told: `mesh catalog deliver` again "
            "tells what they have become"
        )
    return 1 if total.refused else 0


def _books() -> str:
    """The URL of the database with the books."""
    url = get_settings().dagster_url
    assert url
    return url.get_secret_value()


@contextmanager
def _deliverer() -> Iterator[tuple[Deliverer, Books]]:
    import dagster as dg

    from dagster_project.catalog.bookkeeping import GIVES_WAY, books_of
    from dagster_project.catalog.destination import destination_of
    from dagster_project.cli.in_python import in_python
    from dagster_project.orchestration.delivery import Deliverer

    settings = get_settings()
    with (
        closing(destination_of(settings)) as destination,
        books_of(_books(), destination.name, destination.former, GIVES_WAY) as books,
        dg.DagsterInstance.get() as instance,
    ):
        try:
            yield Deliverer(settings, instance, destination, books, say, in_python), books
        except TransientCatalogError as error:
            books.failed(str(error))
            raise


def say(text: str) -> None:
    """To the terminal, beside the answer."""
    typer.echo(f"mesh: {text}", err=True)
