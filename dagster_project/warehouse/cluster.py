"""One data directory of PostgreSQL, and the processes that serve it.

The caller sees to it that only one process at a time initialises, starts or stops.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dagster_project.failures import TransientWarehouseError, WarehouseError
from dagster_project.warehouse.programs import Account, account_for, binaries, run, version

if TYPE_CHECKING:
    import psutil

HOST = "127.0.0.1"
SUPERUSER = "postgres"

#: Seconds. Starting after a crash replays at most max_wal_size of log first.
START_TIMEOUT = 120
INITDB_TIMEOUT = 120
#: Seconds for a clean stop, which writes all that is in memory to disk, then for an immediate one.
STOP_TIMEOUT = 60
IMMEDIATE_TIMEOUT = 10
#: Seconds that the sessions of a killed postmaster are given to notice its death.
ORPHAN_GRACE = 1.0
#: Seconds during which a start that the remains of a killed server prevent is tried again.
RETRY_TIMEOUT = 20.0
LOG_LIMIT = 16 * 1024 * 1024
POLL = 0.02

#: Below the range from which the kernel takes ports for outgoing connections (Linux: 32768).
PORTS = range(15432, 32768)

SETTINGS = {
    "listen_addresses": HOST,
    # A socket's path has a limit of some 107 bytes, which a checkout deep in a home exceeds.
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "effective_cache_size": "2GB",
    "work_mem": "32MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "wal_buffers": "32MB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    # Queries here are short; compiling them costs more than it saves.
    "jit": "off",
    # There is no replica: a table that is created and filled in one transaction needs no log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "datestyle": "iso, mdy",
    "lc_messages": "C",
    "default_text_search_config": "pg_catalog.english",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    # A statement or the detail of an error can hold a password or personal data: the client is
    # told, the log is not.
    "log_statement": "none",
    # An error quotes the value that it is about; whoever sent the statement is told it.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}

HBA = f"host all all {HOST}/32 scram-sha-256\n"


@dataclass(frozen=True)
class Postmaster:
    """The running server, as its lock file tells."""

    pid: int
    port: int
    #: starting, ready, stopping or standby.
    state: str


def free_port(preferred: int | None) -> int:
    """`preferred` if nobody listens there, else another port of loopback."""
    tries = random.sample(PORTS, 50)
    for port in [*([preferred] if preferred else []), *tries, 0]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the server does: a connection that lingers after a restart takes no port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise WarehouseError(f"No port of {HOST} is free: end a program that listens there")


class Cluster:
    """The data directory `folder/data` with its log `folder/server.log`.

    The processes run as `programs.account_for` says; nobody then owns the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "server.log"

    def exists(self) -> bool:
        """Whether the data directory has been initialised."""
        return (self.data / "PG_VERSION").is_file()

    def postmaster(self) -> Postmaster | None:
        """The running server of this data directory, whoever started it."""
        lines = self._lock_file()
        if lines is None:
            return None
        pid, port = int(lines[0]), int(lines[3])
        if not self._serves(pid):
            return None
        return Postmaster(pid, port, lines[7].strip() if len(lines) > 7 else "starting")

    def initialise(self, password: str) -> None:
        """Create the data directory, whole or not at all.

        `password` is the superuser's. Raises WarehouseError, OSError.
        """
        account = self._account()
        scratch = Path(tempfile.mkdtemp(prefix="initialising-", dir=self.folder))
        try:
            account.own(scratch)
            secret = scratch / "password"
            write(secret, password + "\n", mode=0o600, own=account.own)
            fresh = scratch / "data"
            command = [
                str(binaries() / "initdb"),
                f"--pgdata={fresh}",
                f"--username={SUPERUSER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                # The same order of text on every machine, whatever its C library knows.
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
            ]
            done = run(account, command, INITDB_TIMEOUT)
            if done.returncode:
                raise WarehouseError(
                    f"PostgreSQL's data directory {self.data} could not be initialised"
                    f"{self._as_whom(account)}. initdb said:\n{_tail(done.stdout)}\n"
                    "Nothing is left behind: mend the cause and run the command again"
                )
            fresh.rename(self.data)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def start(self, preferred: int | None) -> Postmaster:
        """Start the server, on `preferred` if that port is free, and wait until it takes sessions.

        Raises WarehouseError with the end of the server's log, OSError.
        """
        self._check_version()
        account = self._account()
        deadline = time.monotonic() + RETRY_TIMEOUT
        port = free_port(preferred)
        for attempt in self.folder.glob("initialising-*"):
            # Of a command that was killed. Its initdb may still be writing: then it is the next
            # start that removes it.
            shutil.rmtree(attempt, ignore_errors=True)
        while True:
            self._clear_remains()
            self._configure(port, account)
            offset = self._rotate_log()
            command = [
                str(binaries() / "pg_ctl"),
                "start",
                "--wait",
                f"--timeout={START_TIMEOUT}",
                f"--pgdata={self.data}",
                f"--log={self.log}",
            ]
            done = run(account, command, START_TIMEOUT + 10)
            running = self.postmaster()
            if not done.returncode and running and running.state == "ready":
                return running
            said = self._log_since(offset) or done.stdout
            if time.monotonic() < deadline and "could not bind" in said:
                port = free_port(None)
            elif time.monotonic() < deadline and _REMAINS.search(said):
                time.sleep(10 * POLL)
            else:
                raise WarehouseError(
                    f"The embedded PostgreSQL in {self.folder} did not start"
                    f"{self._as_whom(account)}. The end of {self.log}:\n{_tail(said)}\n"
                    "Mend the cause and run the command again; the data is kept"
                )

    def settled(self) -> Postmaster | None:
        """The server once it takes sessions, or None once it is gone.

        A command that was killed can leave a server behind that starts, recovers or stops. Raises
        TransientWarehouseError if that lasts too long.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while (running := self.postmaster()) and running.state != "ready":
            if time.monotonic() >= deadline:
                raise TransientWarehouseError(
                    f"The embedded PostgreSQL in {self.folder} (process {running.pid}) has been "
                    f"{running.state} for {START_TIMEOUT} s. {self.log} tells what it does: run "
                    "the command again later, or stop it with `mesh down --force`"
                )
            time.sleep(POLL)
        return running

    def stop(self) -> None:
        """Stop the server if it runs: cleanly, else at once; the next start then recovers."""
        running = self.postmaster()
        for how, seconds in (
            (signal.SIGINT, STOP_TIMEOUT),
            (signal.SIGQUIT, IMMEDIATE_TIMEOUT),
            (signal.SIGKILL, IMMEDIATE_TIMEOUT),
        ):
            if running is None:
                return
            try:
                os.kill(running.pid, how)
            except ProcessLookupError:
                return
            self.wait_for_end(running.pid, seconds)
            running = self.postmaster()

    def wait_for_end(self, pid: int, seconds: float) -> bool:
        """Wait until the server's process is gone; False if it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while self._serves(pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL)
        return True

    def data_bytes(self) -> int:
        """Bytes on disk under the data directory."""
        total = 0
        for folder, _, files in os.walk(self.data):
            for name in files:
                try:
                    total += Path(folder, name).lstat().st_blocks * 512
                except FileNotFoundError:
                    continue  # the server drops files while we look
        return total

    def _lock_file(self) -> list[str] | None:
        """The lines of postmaster.pid: pid, folder, start, port, socket, address, memory, state."""
        try:
            text = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        lines = text.splitlines()
        # It is written in more than one go: until the port is there, nobody can use the server.
        if len(lines) < 4 or not lines[0].isdecimal() or not lines[3].isdecimal():
            return None
        return lines

    def _serves(self, pid: int) -> bool:
        """Whether the process serves this data directory.

        Its pid alone says little: after a reboot it can be anyone's, and a killed server that
        nobody waited for keeps it as a zombie.
        """
        import psutil

        try:
            process = psutil.Process(pid)
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return False
            try:
                return Path(process.cwd()).samefile(self.data)
            except psutil.AccessDenied:
                # A container's root may lack the right to look into nobody's processes.
                owner = self.data.stat().st_uid
                return bool(process.name() == "postgres" and process.uids().real == owner)
        except (psutil.NoSuchProcess, FileNotFoundError):
            return False

    def _sessions(self) -> list[psutil.Process]:
        """All processes at work in this data directory."""
        import psutil

        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.name() == "postgres"
                    and process.status() != psutil.STATUS_ZOMBIE
                    and Path(process.cwd()).samefile(self.data)
                ):
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # gone by now, or somebody else's
        return found

    def _clear_remains(self) -> None:
        """End the sessions that outlived a killed postmaster, and remove its lock file."""
        import psutil

        lock_file = self.data / "postmaster.pid"
        if not lock_file.exists():
            return
        deadline = time.monotonic() + ORPHAN_GRACE
        while orphans := self._sessions():
            if time.monotonic() >= deadline:
                # A session in the midst of a long query never looks for its postmaster. What it
                # does cannot be committed any more, and recovery needs it gone.
                for orphan in orphans:
                    try:
                        orphan.kill()
                    except psutil.NoSuchProcess:
                        continue
                psutil.wait_procs(orphans, timeout=IMMEDIATE_TIMEOUT)
                break
            time.sleep(POLL)
        lock_file.unlink(missing_ok=True)

    def _configure(self, port: int, account: Account) -> None:
        """Write the server's configuration.

        At every start, so that a new release of the platform reaches data that is already there.
        """
        settings = SETTINGS | {
            "port": str(port),
            "dynamic_shared_memory_type": _shared_memory(),
        }
        lines = ["# Written at every start. Use ALTER SYSTEM to set something else."]
        lines += [f"{name} = '{value}'" for name, value in settings.items()]
        for name, text in (
            ("postgresql.conf", "\n".join(lines) + "\n"),
            ("pg_hba.conf", HBA),
        ):
            write(self.data / name, text, mode=0o600, own=account.own)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        installed = version()
        if found != installed.partition(".")[0]:
            raise WarehouseError(
                f"The data in {self.data} is of PostgreSQL {found}, the installed programs are "
                f"{installed}: the one cannot read the other's. `make clean` removes the data, "
                "and `make run` builds it anew from the sources; to keep it, install the earlier "
                "release of the platform, dump it with pg_dump, and restore the dump afterwards"
            )

    def _account(self) -> Account:
        account = account_for(self.folder)
        if account.uid is not None and self.folder.stat().st_uid != account.uid:
            # Root gives way to nobody for the first time.
            if self.data.exists():
                for folder, _, files in os.walk(self.data):
                    for name in ("", *files):
                        account.own(Path(folder, name))
            if self.log.exists():
                account.own(self.log)
            account.own(self.folder)
        return account

    def _as_whom(self, account: Account) -> str:
        if account.uid is None:
            return ""
        return (
            f" as user {account.uid}, because PostgreSQL refuses to be root. If it lacks a "
            f"permission: that user needs to reach {self.folder} and {binaries()} through all the "
            "folders above; run the command as an ordinary user, or set MESH_HOME to such a place"
        )

    def _rotate_log(self) -> int:
        """Where in the log the next start begins; a long log is put aside first."""
        try:
            size = self.log.stat().st_size
        except FileNotFoundError:
            return 0
        if size <= LOG_LIMIT:
            return size
        self.log.replace(self.log.with_suffix(".log.1"))
        return 0

    def _log_since(self, offset: int) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(offset)
                return file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""


#: What a server says that is kept from starting by the remains of a killed one.
_REMAINS = re.compile(r"lock file .* already exists|pre-existing shared memory block")


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join("  " + line for line in text.strip().splitlines()[-lines:])


def _shared_memory() -> str:
    """Containers often have 64 MB of /dev/shm, which one parallel query fills: use files then."""
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108  (asked for its size only)
    except OSError:
        return "posix"
    return "posix" if room.f_blocks * room.f_frsize >= 512 * 1024 * 1024 else "mmap"


def write(
    path: Path,
    text: str,
    *,
    mode: int = 0o644,
    own: Callable[[Path], None] | None = None,
) -> None:
    """Replace a file as a whole; until it has its mode, only its owner can read it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    scratch = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        scratch.chmod(mode)
        if own:
            own(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
