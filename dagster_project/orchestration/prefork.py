"""Processes of runs, forked from one that has everything loaded.

Dagster starts a Python for each run, which imports the platform and loads the definitions: seconds
before the first step. This server has done both, and forks itself for each run. `mesh ui` starts it
and starts it again; the run launcher asks it, and does without when it does not answer.

Nobody executes a run that another one executes, whatever is lost on the way. The fork says that it
is ready, waits for the word GO, answers BEGUN, and then only begins; it ends if the launcher is
gone. So a launcher that has not said GO, or hears that the fork is gone before it has heard BEGUN,
knows that the run was not begun, and may launch it in another way.

It holds no connection, and no threads, when it forks. What it has loaded is that of the files on
disk, or it loads itself anew; so a run has the code that is there when it is launched, as it has
when Dagster starts it. Runs outlive it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import multiprocessing
import os
import select
import signal
import socket
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dagster_project.orchestration.run_process import RunProcess
from dagster_project.settings import (
    DBT_PROJECT_DIR,
    EXPECTATIONS,
    PACKAGE,
    WORKSPACE,
    get_settings,
)

if TYPE_CHECKING:
    import psutil

GO, BEGUN = b"go", b"begun"
#: Bytes of the largest message.
LARGEST = 512
_FOLDER, _NAME = "prefork", "socket"
#: Seconds between two looks at the files on disk.
_LOOK = 2.0
#: Seconds that somebody who connected has to say for what, and then to say GO.
_PATIENCE, _READY = 2.0, 60.0
#: What a run's own process imports apart from the definitions.
PRELOADED = (
    "dagster._cli.api",
    "dagster._core.instance.factory",
    "dagster._core.storage.root",
    "dagster._core.storage.local_compute_log_manager",
    "dagster_project.orchestration.launcher",
    "dagster_project.orchestration.storage",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "upath.implementations.local",
)


@contextmanager
def address(dagster_home: Path) -> Iterator[str]:
    """The path of the server's socket, good while it lasts. Linux only.

    A socket's path may have some hundred characters: a home's may have more.
    """
    descriptor = os.open(dagster_home / _FOLDER, os.O_DIRECTORY | os.O_PATH)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)


def digest() -> str:
    """Of everything on disk that the server loads: its files, their sizes and times."""
    found = hashlib.sha256()
    folders = [str(folder) for folder in (PACKAGE, EXPECTATIONS, DBT_PROJECT_DIR)]
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name in ("__pycache__", "target", "logs"):
                    continue
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    status = entry.stat()
                    found.update(f"{entry.path} {status.st_size} {status.st_mtime_ns}\n".encode())
    # A package that is installed, upgraded or removed changes the folder.
    for path in (WORKSPACE, Path(sysconfig.get_path("purelib"))):
        found.update(f"{path.stat().st_mtime_ns}\n".encode())
    return found.hexdigest()


def _load() -> None:
    """Import what runs import, and load the code locations that workspace.yaml names.

    One that is broken is left out: its runs say so themselves.
    """
    gc.disable()  # until `preload` has ended
    for module in PRELOADED:
        import_module(module)
    from dagster._core.code_pointer import CodePointer
    from dagster._core.definitions.reconstruct import reconstruct_repository_def_from_pointer
    from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    from dagster_project.orchestration.execution import preload

    for origin in WorkspaceFileTarget(paths=[str(WORKSPACE)]).create_origins():
        name = origin.loadable_target_origin.module_name
        assert name  # workspace.yaml names nothing else
        try:
            for target in loadable_targets_from_python_module(name, None):
                pointer = CodePointer.from_module(name, target.attribute, None)
                reconstruct_repository_def_from_pointer(pointer).get_all_jobs()
        except Exception:  # noqa: BLE001 - whatever is wrong with it
            traceback.print_exc()
    preload()


def serve() -> None:
    """Fork a process a run, until standard input closes or a signal comes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    loaded = digest()
    # Of the program that was here before it was loaded anew.
    inherited = {process.pid for process in _children()}
    _load()
    from dagster_project.quality.server import ADDRESS, validation_server

    # One for all runs: a run ends its own with itself, and would import it all again.
    with validation_server() as validations, _listening(get_settings().dagster_home) as listener:
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [], _LOOK)
            _take_note(inherited)
            if sys.stdin in ready:
                # At once: the validations go on while a run does.
                os._exit(0)
            if digest() != loaded or (validations and validations.poll() is not None):
                # The launcher does without meanwhile. Runs stay children of this process, and keep
                # their validations, which are not those of what comes.
                environment = {k: v for k, v in os.environ.items() if k != ADDRESS}
                program = [sys.executable, *sys.orig_argv[1:]]
                os.execve(sys.executable, program, environment)  # noqa: S606
            if listener in ready:
                _answer(listener)


def _take_note(inherited: set[int]) -> None:
    """Of children that have ended, so that they are gone."""
    multiprocessing.active_children()
    for pid in tuple(inherited):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        inherited.discard(pid)


def _children() -> list[psutil.Process]:
    import psutil

    return psutil.Process().children()


@contextmanager
def _listening(dagster_home: Path) -> Iterator[socket.socket]:
    folder = dagster_home / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    with (
        address(dagster_home) as path,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        # Under another name first: who finds it, finds that it answers.
        new = Path(f"{path}.new")
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        new.chmod(0o600)
        listener.listen(64)
        new.replace(path)
        yield listener


def _answer(listener: socket.socket) -> None:
    """Fork for whoever has connected."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(_PATIENCE)
        try:
            run_id = connection.recv(LARGEST).decode()
            if run_id:
                multiprocessing.get_context("fork").Process(
                    target=_run, args=(listener, connection, run_id), name=f"run {run_id}"
                ).start()
        except (OSError, ValueError):
            traceback.print_exc()  # who asked finds that nobody answers


def _run(listener: socket.socket, connection: socket.socket, run_id: str) -> None:
    """In the fork: execute the run as `dagster api execute_run` does, once told to."""
    from dagster import DagsterInstance
    from dagster._cli.api import _execute_run_command_body
    from dagster._utils.interrupts import capture_interrupts

    listener.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The server's own is a pipe that nobody writes to.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Of the server's session, by which `mesh ui` finds it; but no signal to the server's group.
    os.setpgid(0, 0)
    with capture_interrupts():
        connection.settimeout(_READY)
        try:
            connection.send(str(RunProcess.current(run_id)).encode())
            if connection.recv(LARGEST) != GO:
                return
        except OSError:
            return
        with DagsterInstance.get() as instance:
            with contextlib.suppress(OSError):
                connection.send(BEGUN)
            connection.close()
            _execute_run_command_body(
                run_id, instance, lambda _: None, set_exit_code_on_failure=False
            )


if __name__ == "__main__":
    serve()
