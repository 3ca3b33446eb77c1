"""The server that forks runs, kept running while `mesh ui` does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

from dagster_project.cli.sessions import GRACE, end_session, interrupt_groups, wait_for
from dagster_project.settings import PROJECT

#: Seconds after which a server that ended is started again: at first, and at most.
_PAUSE, _LONGEST = 1.0, 60.0


@contextmanager
def preforking() -> Iterator[Callable[[], None]]:
    """While it lasts, runs are forked; at its end, those that still go are interrupted.

    Gives what interrupts them before that. On other systems than Linux runs are not forked.
    """
    if sys.platform != "linux":
        yield lambda: None
        return
    keeper = _Keeper()
    keeper.start()
    try:
        yield keeper.interrupt
    finally:
        keeper.end()


class _Keeper(Thread):
    """Starts the server, and starts it again when it ends."""

    def __init__(self) -> None:
        super().__init__(name="prefork", daemon=True)
        #: Those that were started. The runs of one that is gone go on in its session.
        self.sessions: list[int] = []
        self.ending = Event()
        self.starting = Lock()

    def run(self) -> None:
        pause = _PAUSE
        while server := self._start():
            began = time.monotonic()
            server.wait()
            pause = _PAUSE if time.monotonic() - began > _LONGEST else min(2 * pause, _LONGEST)
            self.ending.wait(pause)

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self.starting:
            if self.ending.is_set():
                return None
            server = subprocess.Popen(
                [sys.executable, "-m", "dagster_project.orchestration.prefork"],
                cwd=PROJECT,
                env=os.environ | {"PYTHONWARNINGS": "ignore"},
                # It ends when this process does, however that ends.
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            self.sessions.append(server.pid)
            return server

    def end(self) -> None:
        """Interrupt the server and the runs, and wait for them."""
        self.interrupt()
        for act in (lambda leader: wait_for(leader, GRACE), end_session):
            for leader in self.sessions:
                act(leader)
        self.join()

    def interrupt(self) -> None:
        """Interrupt the server and the runs, once: a second time would stop them cleaning up."""
        with self.starting:
            if not self.ending.is_set():
                self.ending.set()
                for leader in self.sessions:
                    interrupt_groups(leader)
