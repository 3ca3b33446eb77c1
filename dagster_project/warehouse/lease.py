"""Locks between processes that die with their holder.

A lock is an flock on a file: the kernel drops it when the last process that holds it ends, however
it ends. It is not inherited by a program that is executed, but by a forked child: the lock is free
only when parent and children have all let go.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds between two tries. Trying leaves no trace, so that nobody is kept out by those who wait.
POLL = 0.02


def acquire(path: Path, *, exclusive: bool, timeout: float = 0.0) -> int | None:
    """Take the lock and give the file descriptor that holds it until it is closed.

    Gives None if others hold it for the whole of `timeout` seconds. Raises OSError if the file
    cannot be opened, or its file system knows no flock.
    """
    deadline = time.monotonic() + timeout
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(
                    descriptor,
                    (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB,
                )
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return None
            time.sleep(POLL)
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def held(path: Path, *, exclusive: bool, timeout: float = 0.0) -> Iterator[bool]:
    """Hold the lock for the length of the block; gives whether it was got within `timeout` s."""
    descriptor = acquire(path, exclusive=exclusive, timeout=timeout)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Closed, not unlocked: LOCK_UN would take it from forked children as well.
            os.close(descriptor)


def holders(path: Path) -> list[int] | None:
    """The processes that took the lock and still hold it; None where the kernel does not tell."""
    try:
        inode = str(path.stat().st_ino)
    except FileNotFoundError:
        return []
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # 12: FLOCK  ADVISORY  READ 4711 fe:00:131090 0 EOF   (a waiting one has "->" second)
    locks = [line.split() for line in lines]
    return [
        int(fields[4])
        for fields in locks
        if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode
    ]
