"""An iterator that works while its consumer does: reading goes on while what was read is sent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")
#: Items that may wait to be taken.
WAITING = 2


class _End:
    """What follows the last item: nothing, or why there are no more."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


@contextmanager
def ahead(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """The items, made in a thread that is a few of them ahead and ends with the context."""
    made: queue.Queue[T | _End] = queue.Queue(WAITING)
    stopped = threading.Event()

    def put(item: T | _End) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - whoever takes the items has to learn of it
            put(_End(error))
        else:
            put(_End())

    def take() -> Iterator[T]:
        while not isinstance(item := made.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        thread.join()
