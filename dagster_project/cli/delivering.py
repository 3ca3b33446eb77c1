"""The process that tells the catalog what happens, kept running while something else does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn

from dagster_project.failures import MeshError
from dagster_project.parent import interrupt_with_parent
from dagster_project.settings import PROJECT, Settings, get_settings

#: Seconds after which a process that failed is started again: at first, and at most.
_PAUSE, _LONGEST = 1.0, 60.0
#: How far behind runs it stands where processor time is short.
_NICE = 19
#: Seconds that it gets to end once it was told to.
_GRACE = 5.0


@contextmanager
def delivering(settings: Settings) -> Iterator[Path]:
    """While it lasts, what happens is delivered to the catalog. Gives the log of that."""
    log = settings.home / "logs" / "catalog.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    ending = Event()
    keeper = Thread(target=_keep, args=(log, ending), name="catalog", daemon=True)
    keeper.start()
    try:
        yield log
    finally:
        ending.set()
        keeper.join()


def _keep(log: Path, ending: Event) -> None:
    pause = _PAUSE
    while not ending.is_set():
        began = time.monotonic()
        code = _run(log, ending)
        # It ends well when what it knows has changed.
        lasted = time.monotonic() - began > _LONGEST
        pause = _PAUSE if code == 0 or lasted else min(2 * pause, _LONGEST)
        ending.wait(pause)


def _run(log: Path, ending: Event) -> int:
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster_project.cli.delivering"],
            cwd=PROJECT,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # A Ctrl-C is for who started this one.
            start_new_session=True,
        )
    while not ending.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.2)
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        # What it was at is delivered again by the next one.
        process.kill()
        return process.wait()


def main() -> int:
    """Follow the log of this environment until a signal comes."""
    from dagster_project.cli.in_python import in_python
    from dagster_project.orchestration.following import follow

    interrupt_with_parent()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    ending = Event()

    def end(*_: object) -> NoReturn:
        # At once: what it is at is told again by the next one, as after any death.
        ending.set()
        raise SystemExit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        follow(get_settings(), _say, ending, in_python)
    except MeshError as error:
        _say(str(error))
        return error.exit_code
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} catalog: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
