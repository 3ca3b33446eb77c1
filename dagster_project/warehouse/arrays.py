"""pyarrow in little memory: arrays of a few Python values without pandas, and which allocator.

`pa.array` and `pa.scalar` import pandas when they are first called, as do the functions of
pyarrow.compute when they are given Python values: 40 MB and a quarter of a second a process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

# Read when pyarrow is imported. Its own choice, mimalloc, keeps 50 MB of what was given back.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def array_of(values: Iterable[str | int | None], kind: pa.DataType) -> pa.Array:
    """An array of this type; the values go through text, so this is not for whole columns."""
    import pyarrow as pa

    builder = pa.lib.StringBuilder()
    builder.append_values(None if value is None else str(value) for value in values)
    return builder.finish().cast(kind)


def scalar_of(value: str | int | None, kind: pa.DataType) -> pa.Scalar:
    """A value as Arrow has it."""
    return array_of([value], kind)[0]
