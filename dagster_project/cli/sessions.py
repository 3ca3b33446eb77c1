"""Programs that were started as leaders of sessions, and what is left of those at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import time

#: Seconds that processes get to end by themselves before they are killed.
GRACE = 12.0


def end_session(leader: int) -> None:
    """End what is left of the session, all its process groups: asked first, then made to."""
    for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 2.0)):
        found = members(leader)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        wait_for(leader, grace)


def interrupt_groups(leader: int) -> None:
    """Interrupt the first process of each of the session's groups, which ends its others itself."""
    for pid in members(leader):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == pid:
                os.kill(pid, signal.SIGINT)


def wait_for(leader: int, seconds: float) -> None:
    """Wait until nothing is left of the session, but no longer than that."""
    limit = time.monotonic() + seconds
    while members(leader) and time.monotonic() < limit:
        time.sleep(0.1)


def members(leader: int) -> list[int]:
    """The processes of the session that the program leads, or led."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
