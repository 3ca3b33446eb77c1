"""`mesh catalog`: what DataHub is told of the platform, in files of DataHub's own format."""

from __future__ import annotations

from collections import Counter

import typer

from dagster_project.failures import CatalogError
from dagster_project.settings import get_settings

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
    from dagster_project.cli.services import prepare_home

    settings = get_settings()
    prepare_home(settings)
    path = metadata_file(settings)
    try:
        before = read(path) if path.exists() else []
    except CatalogError as error:
        say(f"{error}. What it told and is gone is not taken back")
        before = []
    now = [as_record(proposal) for proposal in static_metadata(settings, say)]
    gone = list(withdrawn(before, now))
    write(path, [*now, *gone])
    entities = {(record["entityType"], record["entityUrn"]) for record in now}
    count = Counter(kind for kind, _ in entities)
    told = f"{count['dataset']} datasets of {count['domain']} domains in {len(now):,} records"
    print(f"{told}{f', {len(gone):,} of what is gone' if gone else ''}: {path.absolute()}")


@app.command()
def check() -> None:
    """Find what DataHub would refuse of the file that `mesh catalog emit` wrote."""
    from dagster_project.catalog.files import metadata_file, read
    from dagster_project.catalog.validation import faults

    path = metadata_file(get_settings())
    found = list(faults(path))
    for fault in found:
        say(fault)
    if found:
        raise typer.Exit(1)
    print(f"{len(read(path)):,} records, all valid: {path.absolute()}")


def say(text: str) -> None:
    """To the terminal, beside the answer."""
    typer.echo(f"mesh: {text}", err=True)
