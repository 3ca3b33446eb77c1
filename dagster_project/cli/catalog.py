"""`mesh catalog`: what DataHub is told of the platform, in files of DataHub's own format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import typer

from dagster_project.settings import get_settings

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal

app = typer.Typer(
    no_args_is_help=True,
    help="""What DataHub is told: every dataset with owner, columns and where they come from.

    [bold]mesh catalog emit[/bold] writes it to a file that DataHub ingests, [bold]mesh catalog
    check[/bold] finds what DataHub would refuse of it.""",
)


@app.command()
def emit() -> None:
    """Write the metadata of all domains, as their files declare it, for DataHub to ingest.

    Nothing has to have run, and no database is asked.
    """
    from dagster_project.catalog.files import metadata_file, write
    from dagster_project.catalog.metadata import static_metadata
    from dagster_project.cli.services import prepare_home

    settings = get_settings()
    prepare_home(settings)
    entities: dict[str, set[str]] = defaultdict(set)

    def counted(proposals: Iterable[Proposal]) -> Iterator[Proposal]:
        for proposal in proposals:
            entities[proposal.entityType].add(proposal.entityUrn)
            yield proposal

    path = metadata_file(settings)
    records = write(path, counted(static_metadata(settings, say)))
    told = f"{len(entities['dataset'])} datasets of {len(entities['domain'])} domains"
    print(f"{told} in {records:,} records: {path.absolute()}")


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
