"""Ending with the process that started this one, however it ended."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def end_with_parent() -> None:
    """Have this process, which multiprocessing forked, interrupted (SIGINT) when its parent ends.

    A parent that is killed cannot end its children: they would work on unseen, and one that waits
    for a word of it would wait for ever, since it inherited the pipe's other end too. Raises
    KeyboardInterrupt if the parent is gone already. Does nothing but on Linux.
    """
    interrupt_with_parent()
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent and os.getppid() != parent.pid:
        raise KeyboardInterrupt


def interrupt_with_parent() -> None:
    """Have this process interrupted when its parent, which is alive, ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
