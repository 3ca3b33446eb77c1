"""`mesh rejects`: the rows that were put aside instead of loaded, and loading them again."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
import typer

from dagster_project.failures import MeshError
from dagster_project.settings import Settings, get_settings

app = typer.Typer(
    no_args_is_help=True,
    help="""Rows that could not be loaded, or that an expectation refused.

    They lie in a table's rejects, with the reason: [bold]mesh rejects show[/bold] lists them,
    [bold]mesh rejects replay[/bold] loads them again once the cause is mended.""",
)

TableName = Annotated[str, typer.Argument(help="A raw table, such as commerce_raw.users.")]
Reason = Annotated[
    str, typer.Option(help="Only rows of which the reason has this text in it.", metavar="TEXT")
]


@app.command()
def show(
    table: TableName,
    limit: Annotated[int, typer.Option(help="Rows to show at most.", min=0)] = 20,
    reason: Reason = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The rejected rows of a table, the newest first; personal data is masked."""
    rejects = read_rejects(get_settings(), table, limit, reason)
    if as_json:
        for row in rejects.rows:
            print(orjson.dumps(row, default=str).decode())
    else:
        _print(rejects)


@app.command()
def replay(table: TableName, reason: Reason = "") -> None:
    """Load rejected rows of a table again, as it is declared now.

    What is still wrong stays among the rejects. A row never comes in place of a newer one.
    """
    from dagster_project.cli.services import services
    from dagster_project.ingestion.replay import find_raw_table
    from dagster_project.settings import warehouse_url
    from dagster_project.warehouse.replay import replay as replay_rejects

    raw = find_raw_table(table)
    with services(get_settings()):
        done = replay_rejects(
            warehouse_url(), raw.target, raw.rows(), run_id=f"replay-{uuid.uuid4()}", reason=reason
        )
    if not done.tried:
        left = f" {done.altered:,} were not kept just as they came." if done.altered else ""
        raise MeshError(
            f"{table}: there is nothing to replay.{left} See `mesh rejects show {table}`"
        )
    counts = {
        "new": done.new,
        "changed": done.changed,
        "there already, or older than what is there": done.duplicates,
        "still rejected": done.rejected,
        "left alone, as they were not kept just as they came": done.altered,
    }
    told = "; ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    print(f"{table}: {done.tried:,} rejected rows replayed: {told}")
    if done.new or done.changed:
        print(f"What is built from it follows with `mesh run -d {raw.target.table.domain}`")


@dataclass(frozen=True)
class Rejects:
    """What is shown of a table's rejects."""

    table: str
    #: All of them, and those of the asked-for reasons.
    rejected: int
    chosen: int
    #: Of those, rows by reason.
    reasons: Mapping[str, int]
    rows: Collection[Mapping[str, Any]]


def read_rejects(settings: Settings, name: str, limit: int, reason: str) -> Rejects:
    """The newest rejected rows of a table. Raises MeshError if there is no such table."""
    from psycopg.rows import dict_row

    from dagster_project.cli.services import query_url
    from dagster_project.domain import read_domain
    from dagster_project.ingestion.replay import find_raw_table
    from dagster_project.warehouse.connection import connect

    raw = find_raw_table(name)
    table = raw.target.table
    personal = read_domain(table.domain).personal_data.get(name, ())
    with query_url(settings) as url, connect(url, f"reading {table.rejects}") as connection:
        cursor = connection.cursor(row_factory=dict_row)
        there = cursor.execute("SELECT to_regclass(%s) AS found", [table.rejects.relation])
        if (there.fetchone() or {})["found"] is None:
            return Rejects(name, 0, 0, {}, [])
        source = f"FROM {table.rejects.relation} WHERE position(lower(%s) IN lower(reason)) > 0"
        total = cursor.execute(f"SELECT count(*) AS rows FROM {table.rejects.relation}").fetchone()
        counted = cursor.execute(
            f"SELECT reason, count(*) AS rows {source} GROUP BY reason ORDER BY 2 DESC, 1", [reason]
        ).fetchall()
        rows = cursor.execute(
            f"SELECT rejected_at, run_id, object, reason, record {source} "
            "ORDER BY rejected_at DESC, object, reason LIMIT %s",
            [reason, limit],
        ).fetchall()
    columns = {column.name for column in (*raw.target.own_columns, *raw.target.columns)}
    for row in rows:
        row["record"] = masked_record(row["record"], columns, personal)
    reasons = {row["reason"]: row["rows"] for row in counted}
    return Rejects(name, (total or {})["rows"], sum(reasons.values()), reasons, rows)


def masked_record(
    record: Mapping[str, Any], columns: Collection[str], personal: Collection[str]
) -> dict[str, Any]:
    """The record without the values of personal columns.

    Of a table that has some, fields that are no columns of it are masked as well: nobody has said
    what they hold.
    """
    from dagster_project.identity import fitting
    from dagster_project.quality.outcome import MASK

    def hidden(name: str) -> bool:
        names = {name, fitting(name), f"{name}_"}
        return bool(personal) and (not names & set(columns) or bool(names & set(personal)))

    return {
        name: MASK if value is not None and hidden(name) else value
        for name, value in record.items()
    }


def _print(rejects: Rejects) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if not rejects.chosen:
        print(
            f"{rejects.table}: no rejected rows" + (" of this reason" if rejects.rejected else "")
        )
        return
    of_all = f" of {rejects.rejected:,}" if rejects.chosen < rejects.rejected else ""
    print(f"{rejects.table}: {rejects.chosen:,}{of_all} rejected rows\n")
    reasons = Table(box=None, pad_edge=False, header_style="bold")
    reasons.add_column("rows", justify="right")
    reasons.add_column("reason", overflow="fold")
    for reason, count in rejects.reasons.items():
        reasons.add_row(f"{count:,}", reason)
    console.print(reasons, markup=False)
    for line in _lines(rejects):
        console.print(line, markup=False, soft_wrap=True)


def _lines(rejects: Rejects) -> Iterator[str]:
    if rejects.rows:
        yield f"\nthe newest {len(rejects.rows):,}:"
    for row in rejects.rows:
        yield (
            f"\n{row['rejected_at']:%Y-%m-%d %H:%M:%S}  {row['reason']}\n"
            f"  of {row['object'] or 'nobody knows which object'}, run {row['run_id']}\n"
            f"  {orjson.dumps(row['record'], default=str).decode()}"
        )
