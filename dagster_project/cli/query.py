"""`mesh sql`: one question to the warehouse, the answer as CSV."""

from __future__ import annotations

import sys
from typing import IO, Any

from dagster_project.settings import Settings
from dagster_project.warehouse.connection import connect

#: Rows fetched at a time, so that an answer of any length takes little memory.
_ROWS = 1000


def _field(text: str | None) -> str:
    """A value as PostgreSQL's own COPY writes it: NULL is nothing, the empty string is quoted."""
    if text is None:
        return ""
    if text == "" or any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def answer(url: str, statement: str, out: IO[str] = sys.stdout) -> None:
    """Write the statement's rows as CSV with one header line, values as PostgreSQL writes them.

    The statement runs in a transaction that can only read, and that is never committed. Raises
    WarehouseError if the warehouse refuses it.
    """
    with connect(url, "mesh sql", options="-c default_transaction_read_only=on") as connection:
        _keep_text(connection)
        # After its first query a transaction cannot be made one that writes.
        connection.execute("SELECT")
        cursor = connection.cursor()
        header = False
        # Streamed, which also means: one statement, not several.
        for row in cursor.stream(statement, size=_ROWS):
            if not header:
                header = _write(out, [column.name for column in cursor.description or ()])
            _write(out, row)
        if not header:
            _write(out, _columns(connection, statement))
        connection.rollback()
    # Now, while a reader who has gone can still be told from an error.
    out.flush()


def _write(out: IO[str], row: Any) -> bool:
    out.write(",".join(_field(value) for value in row) + "\n")
    return True


def _columns(connection: Any, statement: str) -> list[str]:
    """The columns of a statement that gave no row, and so was not described with one."""
    connection.pgconn.prepare(b"", statement.encode())
    described = connection.pgconn.describe_prepared(b"")
    return [described.fname(index).decode() for index in range(described.nfields)]


def _keep_text(connection: Any) -> None:
    """Give every value as the text that PostgreSQL sends."""
    from psycopg.types.string import TextLoader

    for kind in connection.adapters.types:
        for oid in (kind.oid, kind.array_oid):
            if oid:
                connection.adapters.register_loader(oid, TextLoader)
    connection.adapters.register_loader(0, TextLoader)


def run_query(settings: Settings, statement: str) -> None:
    """Answer on standard output."""
    from dagster_project.cli.services import query_url

    with query_url(settings) as url:
        answer(url, statement)
