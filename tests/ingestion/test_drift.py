"""What a source sends otherwise than declared is reported; what would do harm stops the sync."""

from __future__ import annotations

from typing import Any

import pytest

from dagster_project.ingestion import engine
from dagster_project.ingestion.drift import RETYPED
from tests.ingestion.scripted import Shop, connection, stream

DONE = 'status("s")\n'


def declare(shop: Shop, incremental: bool = False, **properties: Any) -> None:
    """One stream `s` with these properties and the key `id`."""
    declared = stream("s", incremental=incremental, id="integer", at="integer")
    declared["json_schema"]["properties"] |= properties
    declared["json_schema"]["required"] = ["at", "needed"] if "needed" in properties else []
    shop.connection = connection(declared)


def test_fields_that_are_not_declared_are_named(shop: Shop) -> None:
    declare(shop)
    body = """
    record("s", id=1, at=1, zeta=5)
    record("s", id=2, at=1, **{f"more{number:04d}": None for number in range(3000)})
    """
    drift = shop.sync(body + "\n    " + DONE).stream("s").drift
    assert drift.undeclared == [f"more{number:04d}" for number in range(50)]
    assert drift.undeclared_more == 3001 - 50
    assert shop.log.read(1).streams["s"].drift == drift


def test_columns_that_a_full_refresh_lacks_are_named(shop: Shop) -> None:
    declare(shop, gone={"type": "string"}, empty={"type": "string"})
    assert shop.sync('record("s", id=1, at=1, empty=None)\n' + DONE).stream("s").drift.absent == [
        "gone"
    ]
    # Without records nothing is known.
    assert shop.sync(DONE).stream("s").drift.absent == []


def test_columns_that_an_incremental_sync_lacks_may_be_there_still(shop: Shop) -> None:
    declare(shop, incremental=True, gone={"type": "string"})
    body = 'record("s", id=1, at=1)\ncheckpoint("s")\n' + DONE
    assert shop.sync(body).stream("s").drift.absent == []


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("id", "none of its 100 records has id, which is of its primary key"),
        ("at", "none of its 100 records has at, which is its cursor"),
        ("needed", "none of its 100 records has needed, which its json_schema requires"),
    ],
)
def test_a_column_that_is_needed_and_gone_stops_the_sync(
    shop: Shop, incremental: bool, lacks: str, said: str
) -> None:
    declare(shop, incremental, needed={"type": "string"})
    there = ", ".join(f"{name}=None" for name in ("id", "at", "needed") if name != lacks)
    record, end = f'record("s", {there})\n', 'checkpoint("s")\n' + DONE
    if lacks == "at" and not incremental:
        said = said.replace("is its cursor", "its json_schema requires")
    message = shop.failure(record * RETYPED + end)
    assert said in message
    assert "mend the declaration" in message
    assert shop.listed() == []
    # A few that an incremental sync brings may be bad rows.
    if incremental:
        assert shop.sync(record * (RETYPED - 1) + end).rows == RETYPED - 1
    else:
        assert said.replace("100 records", "1 records") in shop.failure(record + end)


def test_refused_values_are_counted(shop: Shop) -> None:
    declare(shop)
    body = """
    record("s", id=1, at=1)
    record("s", id="x", at="y")
    record("s", id=3, at="z")
    """
    done = shop.sync(body + "\n    " + DONE).stream("s")
    assert done.rows == 3
    assert done.drift.refused == 2
    assert done.drift.refused_values == {"id": 1, "at": 2}


def test_a_column_of_which_all_values_are_refused_stops_the_sync(shop: Shop) -> None:
    declare(shop, price={"type": ["null", "number"]})
    record = 'record("s", id=1, at=1, price="12 secret euros")\n'
    message = shop.failure(record * RETYPED + 'record("s", id=2, at=1, price=None)\n' + DONE)
    assert (
        "stream s: price is declared as number (numeric), but each of its 100 values is something "
        "else, such as string. If the source has changed its type, declare it so"
    ) in message
    assert "secret" not in message
    # Fewer, or a single one that fits, are bad rows.
    few = shop.sync(record * (RETYPED - 1) + DONE).stream("s")
    assert few.drift.refused == RETYPED - 1
    one = shop.sync(record * RETYPED + 'record("s", id=2, at=1, price=1)\n' + DONE).stream("s")
    assert one.drift.refused == RETYPED


def test_drift_of_a_sync_with_checkpoints_is_that_of_all_of_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0)
    declared = stream("s", incremental=True, id="integer", at="integer")
    shop.connection = connection(declared, checkpoints=True)
    body = """
    record("s", id=1, at="?", b=1)
    checkpoint("s", count=1, at=1)
    record("s", id="?", at="?", a=1)
    checkpoint("s", count=1, at=2)
    """
    drift = shop.sync(body + "\n    " + DONE).stream("s").drift
    assert (drift.undeclared, drift.undeclared_more) == (["a", "b"], 0)
    assert (drift.refused, drift.refused_values) == (2, {"at": 2, "id": 1})
