"""Records are held in bounded memory until they are objects of the lake."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_project.ingestion import engine, objects
from dagster_project.ingestion.objects import StreamWriter
from dagster_project.lake.store import Lake
from tests.ingestion.scripted import Shop, connection, stream

SCHEMA = {"properties": {"id": {"type": "integer"}, "v": {"type": "number"}}}


def line(data: dict[str, Any], emitted_at: int = 1, **more: Any) -> bytes:
    record = {"stream": "s", "data": data, "emitted_at": emitted_at, **more}
    return orjson.dumps({"type": "RECORD", "record": record})


def writer(lake: Lake, prefix: str = "p") -> StreamWriter:
    return StreamWriter(lake, prefix, SCHEMA, generation=1)


def test_an_object_is_full_with_its_rows(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "OBJECT_ROWS", 100)
    monkeypatch.setattr(objects, "BATCH_ROWS", 10)
    it = writer(lake)
    for number in range(250):
        it.add({"id": number}, 1, line({"id": number}))
    part = it.take()
    assert [item.rows for item in part.objects] == [100, 100, 50]
    assert [item.key for item in part.objects] == [f"p/0000{number}.parquet" for number in range(3)]
    assert [item.size for item in part.objects] == [len(lake.read(i.key)) for i in part.objects]
    assert part.rows == 250
    assert part.sent_bytes == sum(len(line({"id": number})) for number in range(250))
    # What comes after is the next part.
    it.add({"id": 1}, 1, line({"id": 1}))
    assert [item.key for item in it.take().objects] == ["p/00003.parquet"]
    assert it.take().objects == []


def test_an_object_is_full_with_its_bytes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "OBJECT_BYTES", 1000)
    monkeypatch.setattr(objects, "BATCH_BYTES", 500)
    it = writer(lake)
    held = []
    for _ in range(20):
        it.add({"id": 1}, 1, b"x" * 300)
        held.append(it.held)
    assert max(held) < 1300
    assert [item.rows for item in it.take().objects] == [4, 4, 4, 4, 4]


def test_sparse_records_of_many_columns_are_not_held_for_long(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "OBJECT_BYTES", 2**20)
    monkeypatch.setattr(objects, "BATCH_ROWS", 50)
    schema = {"properties": {f"c{number}": {"type": "integer"} for number in range(900)}}
    it = StreamWriter(lake, "p", schema, generation=1)
    for number in range(1000):
        it.add({"c0": number}, 1, line({"c0": number}))
        # A batch of 50 rows and 900 columns is 0.4 MB.
        assert it.held < 1.5 * 2**20
    part = it.take()
    assert len(part.objects) > 5
    assert part.sent_bytes == sum(len(line({"c0": number})) for number in range(1000))
    assert it.received == part.sent_bytes


def test_all_streams_together_hold_no_more_than_is_allowed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HELD", 20_000)
    names = [f"s{number}" for number in range(20)]
    shop.connection = connection(*(stream(name, id="integer", v="string") for name in names))
    most = []
    plain = engine._Sync._relieve

    def relieve(self: engine._Sync) -> None:
        plain(self)
        most.append(sum(each.held for each in self.writers.values()))

    monkeypatch.setattr(engine._Sync, "_relieve", relieve)
    body = f"""
    for turn in range(20):
        for name in {names!r}:
            record(name, id=turn, v="x" * 1000)
        time.sleep(0.02)
    for name in {names!r}:
        status(name)
    """
    done = shop.sync(body)
    assert max(most) <= 20_000
    assert [done.stream(name).rows for name in names] == [20] * 20


def test_the_digest_is_of_the_data_whatever_their_order(lake: Lake) -> None:
    records = [{"id": number, "v": number / 2} for number in range(600)]

    def digest(prefix: str, records: list[dict[str, Any]], **more: Any) -> int:
        it = writer(lake, prefix)
        for at, data in enumerate(records):
            it.add(data, at, line(data, at, **more))
        return it.take().digest

    first = digest("a", records)
    assert digest("b", records[::-1]) == first
    assert digest("c", records[1:]) != first
    assert digest("d", [*records, records[0]]) != first
    assert digest("e", [{**records[0], "v": 1e3}, *records[1:]]) != first
    # Where the time is not the end of the line.
    other = digest("f", records, meta={})
    assert digest("g", records[::-1], meta={}) == other
    nested = [{"id": 1, "v": {"emitted_at": at}} for at in range(2)]
    assert digest("h", nested[:1]) != digest("i", nested[1:])


def test_a_number_that_is_text_in_one_batch_is_text_in_the_object(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "BATCH_ROWS", 2)
    it = writer(lake)
    for value in (0.1, None, 2**60 + 1, float("nan"), 3, 1e300):
        it.add({"v": value}, 1, b"{}")
    it.flush()
    it.add({"v": 1.5}, 1, b"{}")
    first, second = it.take().objects
    table = pq.read_table(pa.BufferReader(lake.read(first.key)))
    texts = ["0.1", None, "1152921504606846977", "NaN", "3.0", "1e+300"]
    assert table["v"].to_pylist() == texts
    assert pq.read_schema(pa.BufferReader(lake.read(second.key))).field("v").type == pa.float64()
