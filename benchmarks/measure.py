"""What a piece of work takes: seconds, processor time, memory; each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run took."""

    #: Seconds by the clock.
    wall: float
    #: Processor seconds of the process and of all that it started and waited for.
    cpu: float
    #: The largest resident memory of the process itself, in MB, and of the largest it started.
    memory: float
    children_memory: float
    #: What the function gave.
    result: Any = None


def cpu_seconds() -> float:
    """Processor seconds of this process and of the children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def largest_memory() -> float:
    """The largest resident memory that this process had, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # Not that of `getrusage`, which on Linux is at least what the parent had when it started this.
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _run(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    began, used = time.perf_counter(), cpu_seconds()
    result = function(*arguments)
    wall, cpu = time.perf_counter() - began, cpu_seconds() - used
    own = largest_memory()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    pipe.send(Measured(wall, cpu, own, children, result))


def measured(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Run the function (of a module) in a fresh process; imports of its module do not count."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        outcome: Measured = mine.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{function.__name__} failed, see above") from None
    process.join()
    return outcome


def server_cpu(postmaster: int) -> float:
    """Processor seconds that a PostgreSQL server has used, sessions that ended included."""
    process = psutil.Process(postmaster)
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children())]
    ended = times[0].children_user + times[0].children_system
    return float(sum(t.user + t.system for t in times) + ended)


def machine() -> str:
    """The machine in a line."""
    memory = psutil.virtual_memory().total / 1024**3
    kernel = f"{platform.system()} {platform.release().split('-')[0]}"
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GB, {kernel}, "
        f"Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
