"""Runs a program, and ends it with all that it started when the process that wanted it has died.

Run as a script, as the leader of a process group: `minder.py <descriptor> <grace> <program> ...`.
The descriptor is the reading end of a pipe of which the starter holds the other: it ends with the
starter, however that ended. Exits as the program does, with 128 and the number of a signal.

What left the process group (as a daemon does) is ended too on Linux, where it stays a descendant of
this process: when the program ends, or shortly before the group is made to.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

#: See prctl(2).
_PR_SET_CHILD_SUBREAPER = 36


def _kill_escaped(*_: object) -> None:
    """Kill what this process is an ancestor of and what is not of its group."""
    children: dict[int, list[int]] = {}
    # Without pathlib, which takes longer to import than all that is done here.
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="latin-1") as file:  # noqa: PTH123
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    descendants = [os.getpid()]
    for one in descendants:
        descendants += children.get(one, [])
    for one in descendants[1:]:
        try:
            if os.getpgid(one) != os.getpgid(0):
                os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _end_with_starter(lifeline: int, grace: float, ending: threading.Event) -> None:
    os.read(lifeline, 1)
    ending.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(grace)
    _kill_escaped()
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the program of the command line to its end; its exit code."""
    lifeline, grace, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(lifeline, False)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A signal to the group is for the program. It does not inherit a handler.
    signal.signal(signal.SIGALRM, _kill_escaped)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, 0.9 * grace))
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
    _kill_escaped()
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main())
