"""The process of a run on this machine: who it is, whether it is alive, how it is interrupted.

A process's number alone says nothing, as it is given again. With the time when the process started,
and the machine's, it is known whoever asks: also when all that started the process is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil

#: The tag of a run that says which process executes it.
PROCESS = "mesh/process"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class RunProcess:
    """A process that executes a run."""

    run_id: str
    pid: int
    #: The machine, or container, that it is on: of others than this one nothing is known.
    host: str
    #: When it started: on Linux the machine's boot, and the clock ticks since.
    started: str

    @classmethod
    def current(cls, run_id: str) -> RunProcess:
        """The one that asks, for this run."""
        started = _started(os.getpid())
        assert started
        return cls(run_id, os.getpid(), socket.gethostname(), started)

    @classmethod
    def of(cls, run: dg.DagsterRun) -> RunProcess | None:
        """The process that the run's tag names; None if there is none, or it is another run's.

        A run that is executed again passes its tags on.
        """
        run_id, pid, host, started = [*run.tags.get(PROCESS, "").split(":", 3), *[""] * 3][:4]
        return cls(run_id, int(pid), host, started) if run_id == run.run_id and pid else None

    def __str__(self) -> str:
        """As the tag has it."""
        return f"{self.run_id}:{self.pid}:{self.host}:{self.started}"

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, on this machine."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether it is here, and at work."""
        return self.is_here and _started(self.pid) == self.started

    def is_gone(self) -> bool:
        """Whether it was here, and is no more."""
        return self.is_here and not self.is_alive()

    def gone(self) -> str:
        """What is said of the run if the process is not alive, and the run has not ended."""
        return f"The run's process (pid {self.pid}) ended before the run had."

    def interrupt(self) -> bool:
        """Interrupt it as Ctrl-C does; whether it was there to be interrupted."""
        with contextlib.suppress(ProcessLookupError):
            if sys.platform != "linux":
                if alive := self.is_alive():
                    os.kill(self.pid, signal.SIGINT)
                return alive
            descriptor = os.pidfd_open(self.pid)
            try:
                # Asked once it is held: a number that was given again is not interrupted.
                if self.is_alive():
                    signal.pidfd_send_signal(descriptor, signal.SIGINT)
                    return True
            finally:
                os.close(descriptor)
        return False


def _started(pid: int) -> str | None:
    """When the process started; None if there is none, or it has ended and nobody took note."""
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                return str(process.create_time())
        return None
    try:
        # Its name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{_BOOT.read_text().strip()}:{ticks}"
