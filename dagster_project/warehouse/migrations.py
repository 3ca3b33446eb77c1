"""The project's own tables, by version: what a database has of them, and what this code needs.

A step only adds: a table, or a column with a default (expand). While a release is rolled out, and
after it was rolled back, the code of before works on the same tables: code that needs N steps runs
on N and on N + 1. What nobody reads or writes any more is taken away by a later step, once no
release that needs it is left (contract). A step that was released is never changed again. What the
first one says is harmless where the thing exists, as in a database older than this bookkeeping.

On a laptop the steps are taken as they are needed. Elsewhere `mesh deploy migrate` takes them, once
and before the new code starts, by a role that may; the code itself only looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dagster_project.failures import NewerDatabaseError, NotMigratedError
from dagster_project.settings import Environment, get_settings

if TYPE_CHECKING:
    import psycopg

    from dagster_project.warehouse.arrow import ArrowSession

#: The first number of every advisory lock of ours.
LOCK = 0x6D657368

#: Executes a statement, and gives its rows.
_Run: TypeAlias = Callable[[str], list[tuple[Any, ...]]]
_TABLE = """CREATE TABLE IF NOT EXISTS mesh.migrations (
    tables text NOT NULL, step integer NOT NULL, taken_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tables, step))"""


@dataclass(frozen=True, slots=True)
class Migrations:
    """Tables that belong together, and the steps by which they came to be what they are."""

    #: What they are called, in the bookkeeping and to people.
    tables: str
    #: Which database they lie in, to people.
    database: str
    #: The statements of each step. A step that was released is never changed again.
    steps: tuple[tuple[str, ...], ...]

    def prepare(self, connection: psycopg.Connection[Any]) -> bool:
        """Look that they are there, and on a laptop make them; whether anything was made.

        In the transaction that the connection is in. Raises NotMigratedError.
        """
        return self._prepare(_executing(connection))

    def prepare_in(self, session: ArrowSession) -> bool:
        """As `prepare`, in the session's transaction."""
        return self._prepare(session.run)

    def done(self, connection: psycopg.Connection[Any]) -> int:
        """How many steps were taken; more than there are here if a newer release took them."""
        return self._done(_executing(connection))

    def migrate(self, connection: psycopg.Connection[Any]) -> int:
        """Take the steps that are left, all or none of them; how many these were.

        Who comes second waits for the first one, and finds nothing left. Raises NewerDatabaseError
        if a newer release has taken more.
        """
        with connection.transaction():
            run = _executing(connection)
            taken = self._migrate(run)
            if (done := self._done(run)) > len(self.steps):
                raise NewerDatabaseError(
                    f"{self.database}: {done} steps of the {self.tables} were taken, and this "
                    f"release knows {len(self.steps)}: a newer one was here. Nothing was changed. "
                    "This release runs with what the next one has added; to deploy one that is "
                    "older still, restore the database of its time"
                )
            return taken

    def _prepare(self, run: _Run) -> bool:
        done = self._done(run)
        if done >= len(self.steps):
            return False
        if get_settings().env is not Environment.LOCAL:
            raise NotMigratedError(
                f"{self.database}: of the {self.tables} {done} of the {len(self.steps)} steps were "
                "taken that this release needs. Run `mesh deploy migrate`, as is done before a "
                "release starts"
            )
        self._migrate(run)
        return True

    def _done(self, run: _Run) -> int:
        if not run("SELECT to_regclass('mesh.migrations') IS NOT NULL")[0][0]:
            return 0
        taken = f"SELECT max(step) FROM mesh.migrations WHERE tables = '{self.tables}'"
        return int(run(taken)[0][0] or 0)

    def _migrate(self, run: _Run) -> int:
        run(f"SELECT pg_advisory_xact_lock({LOCK}, hashtext('mesh'))")
        run("CREATE SCHEMA IF NOT EXISTS mesh")
        run(_TABLE)
        done = self._done(run)
        for number, statements in enumerate(self.steps[done:], start=done + 1):
            for statement in statements:
                run(statement)
            run(f"INSERT INTO mesh.migrations (tables, step) VALUES ('{self.tables}', {number})")
        return max(len(self.steps) - done, 0)


def _executing(connection: psycopg.Connection[Any]) -> _Run:
    def run(statement: str) -> list[tuple[Any, ...]]:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    return run
