"""Runs a program, and ends it with all that it started when the process that wanted it has died.

Run as a script, as the leader of a process group: `minder.py <descriptor> <grace> <program> ...`.
The descriptor is the reading end of a pipe of which the starter holds the other: it ends with the
starter, however that ended. Exits as the program does, with 128 and the number of a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time


def _end_with_starter(lifeline: int, grace: float, ending: threading.Event) -> None:
    os.read(lifeline, 1)
    ending.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(grace)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the program of the command line to its end; its exit code."""
    lifeline, grace, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(lifeline, False)
    # A signal to the group is for the program. It does not inherit a handler.
    signal.signal(signal.SIGTERM, lambda *_: None)
    program = os.posix_spawn(command[0], command, os.environ)
    # Its output ends when the program's does.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    ending = threading.Event()
    watch = threading.Thread(target=_end_with_starter, args=(lifeline, grace, ending), daemon=True)
    watch.start()
    _, status = os.waitpid(program, 0)
    if ending.is_set():
        # What the program started may not have ended yet.
        watch.join()
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main())
