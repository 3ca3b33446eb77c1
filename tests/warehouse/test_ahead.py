"""An iterator that is ahead of its consumer."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dagster_project.warehouse.ahead import WAITING, ahead


def test_everything_comes_in_order() -> None:
    with ahead(range(1000)) as items:
        assert list(items) == list(range(1000))


def test_it_is_a_few_items_ahead_and_no_more() -> None:
    made: list[int] = []
    full = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if len(made) == 1 + WAITING + 1:
                full.set()
            yield number

    with ahead(numbers()) as items:
        assert next(items) == 0
        assert full.wait(10)
    assert len(made) <= 1 + WAITING + 2


def test_a_failure_comes_after_what_was_made_before_it() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    taken: list[int] = []
    with ahead(numbers()) as items, pytest.raises(ValueError, match="no more"):
        taken.extend(items)
    assert taken == [1, 2]


def test_its_thread_ends_with_the_context_even_if_more_would_come() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    with ahead(endless()) as items:
        assert next(items) == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
