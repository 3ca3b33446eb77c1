"""`mesh ui` and `mesh exec`: other programs with the platform around them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from dagster_project.cli.code_servers import CodeServers
from dagster_project.cli.services import services
from dagster_project.cli.sessions import end_session
from dagster_project.failures import BusyError, MeshError
from dagster_project.settings import DBT_PROJECT_DIR, PROJECT, WORKSPACE, Settings, warehouse_url

HOST = "127.0.0.1"
#: Seconds that the program itself gets to end all that it started, once it was told to.
PATIENCE = 25.0
#: Seconds after which a program that ended had come up.
_CAME_UP = 15.0


def serve(settings: Settings, port: int) -> int:
    """Serve the UI until a signal comes; the exit code."""
    _refuse_taken(port)
    from dagster_project.cli.delivering import delivering
    from dagster_project.cli.docs import serving
    from dagster_project.cli.preforking import preforking
    from dagster_project.cli.run import install
    from dagster_project.cli.services import prepare_home
    from dagster_project.domain import domain_names

    prepare_home(settings)
    install(settings, domain_names(), print)
    with services(settings), ExitStack() as stack:
        try:
            stack.enter_context(serving(settings))
        except BusyError as error:
            # Somebody else's port: the checks' links lead there, the rest works.
            print(f"mesh: {error}", file=sys.stderr)
        os.environ.setdefault("MESH_UI_URL", f"http://{HOST}:{port}")
        stack.enter_context(delivering(settings))
        interrupt_runs = stack.enter_context(preforking())
        servers = CodeServers(f"http://{HOST}:{port}")

        def told() -> None:
            servers.ending.set()
            interrupt_runs()

        command = [
            *(_program("dagster"), "dev", "--workspace", str(WORKSPACE)),
            *("--host", HOST, "--port", str(port), "--log-level", "warning"),
        ]
        print(f"Dagster starts on http://{HOST}:{port} - Ctrl-C ends it", flush=True)
        return _run_group(command, PROJECT, servers.watch, told, again=True)


def run_inside(settings: Settings, command: Sequence[str]) -> int:
    """Run a command in the platform's environment; its exit code."""
    from dagster_project.transformation.project import dbt_environment

    with services(settings):
        os.environ.update(dbt_environment(warehouse_url()))
        os.environ["DBT_PROJECT_DIR"] = str(DBT_PROJECT_DIR)
        # What looks for the project's environment, as `dg` does, finds that it is this one.
        os.environ["VIRTUAL_ENV"] = sys.prefix
        return _run_group([_program(command[0]), *command[1:]], Path.cwd())


def _program(name: str) -> str:
    """The program of this Python environment, if it has one of this name."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise BusyError(
                f"port {port} of {HOST} is taken: end what listens there, or choose another one "
                "with `mesh ui --port`"
            ) from None


def _run_group(
    command: Sequence[str],
    folder: Path,
    when_started: Callable[[int], None] = lambda _: None,
    when_told: Callable[[], None] = lambda: None,
    again: bool = False,
) -> int:
    """Run a program as a process group of its own, and end every process of it at the end.

    `when_started` is given its process; `when_told` is called when this program is told to end, and
    may be again. One that ends though nobody told it to is started `again`, if it had come up.
    """
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    asked: list[float] = []
    groups: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(time.monotonic())
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    # Before it starts: a signal that this process was told to ignore, as a shell's `&` does, is not
    # ignored by the program, and one that comes while it starts is not lost.
    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        while True:
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
            groups[:] = [process.pid]
            when_started(process.pid)
            code = None
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=0.5)
                if asked:
                    when_told()
                if asked and time.monotonic() > asked[0] + PATIENCE:
                    end_session(process.pid)
            if asked or not again or time.monotonic() < began + _CAME_UP:
                break
            end_session(process.pid)
            told = f"ended with exit code {code}, which nobody asked for: started again"
            print(f"mesh: {Path(command[0]).name} {told}", file=sys.stderr, flush=True)
    except FileNotFoundError:
        raise MeshError(f"{command[0]}: no such program") from None
    finally:
        for group in groups:
            end_session(group)
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
