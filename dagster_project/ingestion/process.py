"""A connector as a subprocess: its output, its time limit and its end, with all that it started."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dagster_project.domain import domain_folder
from dagster_project.failures import DeclarationError, SourceError
from dagster_project.ingestion import minder
from dagster_project.ingestion.declaration import Connection
from dagster_project.ingestion.environments import ensure_environment
from dagster_project.ingestion.lines import LineSplitter

#: Seconds that a connector gets between SIGTERM and SIGKILL.
GRACE = 10.0
#: Bytes that are read at once, and that a pipe shall hold.
CHUNK, PIPE = 2**18, 2**20
#: Seconds in which the pipe may fill before it is read again. Waking up for every line costs both
#: sides more than the line itself.
PAUSE = 0.01
#: Seconds without output after which a connector that has ended has nothing more to say, although
#: something that it left behind holds its output open.
QUIET = 1.0
#: Lines of standard error that are kept, and characters of each.
ERRORS, ERROR_LENGTH = 20, 500


def connector_command(domain: str, connection: Connection, home: Path) -> list[str]:
    """The program and its first arguments. Makes the connector's environment if need be."""
    connector = connection.connector
    environment = ensure_environment(connector.environment, home)
    program = environment / "bin" / (connector.executable or connector.environment)
    if not program.exists():
        raise DeclarationError(
            f"{domain}/{connection.name}: the environment {connector.environment} has no program "
            f"{program.name}: name it in connector.executable"
        )
    return [str(program)]


def manifest_arguments(domain: str, connection: Connection) -> list[str]:
    """The arguments that name a low-code connector's manifest; none for another."""
    if not connection.connector.manifest:
        return []
    path = domain_folder(domain) / "ingest" / connection.connector.manifest
    if not path.exists():
        raise DeclarationError(f"{domain}/{connection.name}: the manifest {path} does not exist")
    return ["--manifest-path", str(path)]


def _environment() -> dict[str, str]:
    """What a connector sees of our environment: nothing that could be a secret of the platform."""
    keep = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    known = {name: os.environ[name] for name in keep if name in os.environ}
    return known | {"DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


class ConnectorProcess:
    """A connector that runs, in a process group of its own."""

    def __init__(
        self, process: subprocess.Popen[bytes], timeout: float, masked: Callable[[str], str]
    ) -> None:
        self._process = process
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._masked = masked
        self._stderr = LineSplitter(messages=False)
        #: The last lines of its standard error.
        self.errors: list[str] = []

    @property
    def exit_code(self) -> int:
        """Of a connector that has ended; 128 and the signal's number if a signal ended it."""
        return self._process.wait()

    def output(self) -> Iterator[bytes]:
        """Its standard output, a chunk at a time, until it ends.

        Raises SourceError when the time limit is over.
        """
        assert self._process.stdout
        assert self._process.stderr
        heard = time.monotonic()
        with selectors.DefaultSelector() as ready:
            for stream in (self._process.stdout, self._process.stderr):
                ready.register(stream, selectors.EVENT_READ)
            while ready.get_map():
                events = ready.select(timeout=min(QUIET, max(0.0, self._left())))
                if self._left() <= 0:
                    raise SourceError(self._overdue(time.monotonic() - heard))
                if not events and self._process.poll() is not None:
                    break
                for key, _ in events:
                    chunk = os.read(key.fd, CHUNK)
                    if not chunk:
                        ready.unregister(key.fileobj)
                    if key.fileobj is self._process.stderr:
                        self._hear(*(self._stderr.feed(chunk) if chunk else self._stderr.close()))
                    elif chunk:
                        heard = time.monotonic()
                        yield chunk
                        if len(chunk) < CHUNK:
                            time.sleep(PAUSE)
        while self._process.poll() is None:
            # It closed its output, and goes on.
            if self._left() <= 0:
                raise SourceError(self._overdue(time.monotonic() - heard))
            time.sleep(PAUSE)

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _overdue(self, silent: float) -> str:
        return (
            f"the connector still ran after {self._timeout:g} s and was stopped; it had said "
            f"nothing for the last {silent:.0f} s. Raise MESH_SYNC_TIMEOUT if that is how long it "
            "takes"
        )

    def _hear(self, lines: bytes, shortened: list[bytes]) -> None:
        for line in [*shortened, *lines.splitlines()]:
            self.errors.append(self._masked(line.decode(errors="replace").rstrip())[:ERROR_LENGTH])
            del self.errors[:-ERRORS]

    def end(self) -> None:
        """End the whole process group: asked first, then made to."""
        if not self._signal(signal.SIGTERM):
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _widen(pipe: IO[bytes] | None) -> None:
    """Have the pipe hold more where the kernel lets it."""
    if pipe and hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE)


@contextmanager
def running(
    command: list[str], timeout: float, masked: Callable[[str], str]
) -> Iterator[ConnectorProcess]:
    """The connector, ended as a group whatever happens, also if this process is killed.

    `masked` is applied to what it prints to standard error; `timeout` is in seconds.
    """
    lifeline, ours = os.pipe()
    mind = [sys.executable, "-I", "-S", str(Path(minder.__file__)), str(lifeline), str(GRACE)]
    try:
        process = subprocess.Popen(
            [*mind, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            pass_fds=(lifeline,),
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(lifeline)
    _widen(process.stdout)
    connector = ConnectorProcess(process, timeout, masked)
    try:
        yield connector
    finally:
        connector.end()
        os.close(ours)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
