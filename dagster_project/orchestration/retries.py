"""Which failures are tried again, by whom and when.

A step tries again what can pass by itself, which its failure's type says: a source, the lake or
the warehouse that is away. What a rerun cannot mend, such as refused credentials or a contract that
is broken, fails at once, and no layer tries it again. A run is started anew only if its process was
lost (`run_retries` of the instance), and goes on where it was; automation asks again only once an
input has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import dagster as dg

from dagster_project.failures import MeshError
from dagster_project.settings import get_settings

#: Seconds before a step is tried again: the first time, and how many times longer each further one.
FIRST_WAIT, LONGER = 5, 4


ParamsT = ParamSpec("ParamsT")
YieldT = TypeVar("YieldT")


def retried(step: Callable[ParamsT, Iterator[YieldT]]) -> Callable[ParamsT, Iterator[YieldT]]:
    """A step's body that is tried again after what can pass by itself."""

    @wraps(step)
    def body(*arguments: ParamsT.args, **named: ParamsT.kwargs) -> Iterator[YieldT]:
        try:
            yield from step(*arguments, **named)
        except MeshError as error:
            tries, context = get_settings().step_retries, dg.OpExecutionContext.get()
            if not error.transient or context.retry_number >= tries:
                raise
            number = context.retry_number + 1
            wait = FIRST_WAIT * LONGER**context.retry_number
            context.log.warning(f"tried again in {wait} s, {number} of {tries} times: {error}")
            raise dg.RetryRequested(max_retries=tries, seconds_to_wait=wait) from error

    return body
