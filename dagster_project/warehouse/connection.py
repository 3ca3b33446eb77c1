"""Connections to the warehouse, and what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dagster_project.failures import TransientWarehouseError, WarehouseError

if TYPE_CHECKING:
    import psycopg

#: PostgreSQL's error classes that can pass by themselves: connection, resources, shutdown,
#: deadlock.
_TRANSIENT = ("08", "53", "57P", "40")
#: What PostgreSQL says of a table with more, or wider, columns than it can have.
_TOO_WIDE = re.compile(r"row is too big|tables can have at most \d+ columns")
#: The oldest PostgreSQL that will do, as a major version.
OLDEST = 16
#: Seconds that connecting may take.
CONNECT_TIMEOUT = 10
#: What a server that can be reached says to whom it does not know.
_REFUSED = re.compile(
    r"authentication failed|does not exist|no pg_hba|no password supplied|invalid", re.I
)
_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]*@")


def masked(text: str) -> str:
    """The text without the passwords of the URLs in it."""
    return _PASSWORD.sub(r"\1***@", text)


def place(url: str) -> str:
    """Where a PostgreSQL is, for people: host, port and database, no user and no password."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"


def failure(url: str, doing: str, error: Exception) -> WarehouseError:
    """The error as one that says what was being done, where, and whether it can pass by itself."""
    state = getattr(error, "sqlstate", None) or ""
    text = masked(str(error)).strip()
    # The statement, which stands before, can be of any length.
    text = text[max(text.find("ERROR:"), 0) :]
    if state == "53100" or "No space left" in text:
        return WarehouseError(
            f"{doing}: the warehouse at {place(url)} has no disk space left. Free some and run "
            f"again; nothing was half-loaded. ({text})"
        )
    if _TOO_WIDE.search(text):
        return WarehouseError(
            f"{doing}: the values of its columns do not fit into a row of PostgreSQL, which has at "
            "most 8,160 bytes and 1,600 columns, those that were dropped among them. Nothing of "
            "this was kept: leave columns that nobody needs out of the table's declaration and run "
            f"again; a table that has them already, rename or drop. ({text})"
        )
    unreachable = not state and re.search(r"connect|closed|terminat|timeout|SSL", text, re.I)
    if (unreachable and not _REFUSED.search(text)) or state.startswith(_TRANSIENT):
        return TransientWarehouseError(
            f"{doing}: the warehouse at {place(url)} does not answer or is out of connections. "
            f"Look whether it runs (`mesh status`) and run again. ({text})"
        )
    return WarehouseError(f"{doing}: the warehouse at {place(url)} refused: {text}")


@contextmanager
def connect(url: str, doing: str, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    """A connection for statements; commits at the end, rolls back on an error.

    Raises WarehouseError, or TransientWarehouseError where a rerun can mend it.
    """
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT, **options) as connection:
            yield connection
    except psycopg.Error as error:
        raise failure(url, doing, error) from error
