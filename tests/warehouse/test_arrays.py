"""Arrow arrays of Python values, as pyarrow makes them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dagster_project.warehouse.arrays import array_of, scalar_of


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, -1, None, 2**63 - 1, -(2**63)], pa.int64()),
        (range(3), pa.int32()),
        (["", "Köln 🦆", None, "a\0b", " 1 "], pa.string()),
        ([], pa.string()),
        ([None], pa.float64()),
    ],
)
def test_they_are_those_that_pyarrow_makes(
    values: list[str | int | None], kind: pa.DataType
) -> None:
    assert array_of(values, kind).equals(pa.array(values, kind))


def test_a_scalar_is_one_value() -> None:
    assert scalar_of(7, pa.int32()).equals(pa.scalar(7, pa.int32()))
    assert scalar_of(None, pa.string()).equals(pa.scalar(None, pa.string()))
    assert scalar_of(0, pa.bool_()).equals(pa.scalar(False))


def test_a_number_that_the_type_does_not_hold_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        array_of([2**31], pa.int32())
