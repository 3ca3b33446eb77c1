"""Great Expectations in a process of its own: imported once a run, while the data is still coming.

Importing it takes as long as many a load. The server imports it at low priority as soon as a run
begins; each validation is a process forked from it, and so starts at once. It answers on loopback
to those who know its key, and ends when the process that started it does.
"""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)

from dagster_project.failures import MeshError, WarehouseError
from dagster_project.quality.asked import Request
from dagster_project.quality.outcome import Validation
from dagster_project.quality.validation import validate
from dagster_project.warehouse.connection import masked

#: `port:key`, set by a run for its own processes: no setting, and not for people.
ADDRESS = "_MESH_QUALITY_SERVER"
_HOST = "127.0.0.1"
#: What a validation imports; loaded once, before any is forked.
PRELOADED = (
    "great_expectations",
    "great_expectations.core.expectation_suite",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql.psycopg2",
)


@contextmanager
def validation_server() -> Iterator[subprocess.Popen[str] | None]:
    """While it lasts, this process's children validate through a server.

    It is given if it had to be started. It ends when nobody is left that may use it: neither this
    process nor one that was forked from it meanwhile.
    """
    if os.environ.get(ADDRESS):
        yield None
        return
    key = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "dagster_project.quality.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(key + "\n")
        process.stdin.flush()
        port = process.stdout.readline().strip()
        if port:
            os.environ[ADDRESS] = f"{port}:{key}"
        yield process
    finally:
        os.environ.pop(ADDRESS, None)
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def validate_here_or_there(url: str, request: Request) -> Validation:
    """`validate`, in the run's validation server if there is one, or else in this process."""
    address = os.environ.get(ADDRESS)
    if not address:
        return validate(url, request)
    port, _, key = address.partition(":")
    try:
        with Client((_HOST, int(port)), authkey=key.encode()) as connection:
            connection.send((url, request))
            answer = connection.recv()
    except (OSError, EOFError, AuthenticationError) as error:
        raise WarehouseError(
            f"{request.suite.table} could not be validated: the validation process ended "
            f"({error!r}). Run the checks again"
        ) from None
    if isinstance(answer, MeshError):
        raise answer
    validation: Validation = answer
    return validation


def _answer(connection: Connection) -> None:
    url, request = connection.recv()
    try:
        connection.send(validate(url, request))
    except MeshError as error:
        connection.send(error)
    except Exception as error:  # noqa: BLE001 - who asked is told, and raises it
        table = request.suite.table
        message = f"{table} could not be validated: {masked(repr(error))}. Report this"
        connection.send(MeshError(message))


def _serve() -> None:
    """Fork a process a request until standard input closes."""
    import select
    import signal

    key = sys.stdin.readline().strip()
    os.nice(5)
    with Listener((_HOST, 0), backlog=64) as listener:
        sys.stdout.write(f"{listener.address[1]}\n")
        sys.stdout.flush()
        # Requests wait in the backlog meanwhile. Without collections importing takes a quarter
        # less; and what is loaded then is never collected, so that no fork copies it for that.
        gc.disable()
        for module in PRELOADED:
            import_module(module)
        import_module("dagster_project.quality.pushdown").preload()
        gc.freeze()
        gc.enable()

        # Finished validations are not to be waited for.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        socket = listener._listener._socket  # type: ignore[attr-defined]
        while True:
            ready, _, _ = select.select([socket, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            try:
                connection = listener.accept()
            except (OSError, EOFError):
                continue
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    # Here, so that nobody who connects and says nothing holds up the others.
                    deliver_challenge(connection, key.encode())
                    answer_challenge(connection, key.encode())
                    _answer(connection)
                finally:
                    connection.close()
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    _serve()
