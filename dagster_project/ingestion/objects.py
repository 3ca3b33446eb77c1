"""From a stream's records to Parquet objects in the lake, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from dagster_project.failures import SourceError
from dagster_project.ingestion import exact
from dagster_project.ingestion.kinds import digits
from dagster_project.ingestion.records import RAW_ID, Observed, RecordBatches
from dagster_project.lake.commits import LakeObject
from dagster_project.lake.store import Lake

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows with which an object is full, and bytes that they take as they were sent or as Arrow.
OBJECT_ROWS, OBJECT_BYTES = 50_000, 32 * 2**20
#: The same of the records that are held as Python's objects: few enough for the processor's cache.
BATCH_ROWS, BATCH_BYTES = 256, 2**20
#: A digest is a sum of the records' digests: it does not depend on their order.
DIGEST_BYTES = 16
_EMITTED = b'"emitted_at":'
#: Milliseconds since the epoch that PostgreSQL's timestamptz and Arrow's microseconds both hold.
EARLIEST, LATEST = -210_000_000_000_000, 9_200_000_000_000_000


def object_name(number: int) -> str:
    """The last part of the key of a sync's object, by its place in the stream from 0."""
    return f"{number:05d}.parquet"


@dataclass(frozen=True, slots=True)
class Part:
    """What was written of a stream since the last commit."""

    objects: list[LakeObject]
    rows: int
    sent_bytes: int
    #: The sum of the digests of the records' data.
    digest: int
    observed: Observed


class StreamWriter:
    """Writes one stream's records as Parquet objects under a prefix of the lake."""

    def __init__(
        self, lake: Lake, prefix: str, json_schema: Mapping[str, Any], generation: int
    ) -> None:
        self._lake = lake
        self.prefix = prefix
        self._batches = RecordBatches(json_schema, generation)
        self._written = 0
        self._ready: list[pa.RecordBatch] = []
        self._ready_rows = self._ready_bytes = 0
        self._records: list[Mapping[str, Any]] = []
        self._emitted: list[int] = []
        self._lines: list[bytes] = []
        self._bytes = 0
        self._objects: list[LakeObject] = []
        self._rows = self._sent = self._digest = 0
        self._converted_bytes = 0

    @property
    def held(self) -> int:
        """Bytes of records that are in memory: as they were sent, or as Arrow if that is more."""
        return self._ready_bytes + self._bytes

    @property
    def received(self) -> int:
        """Bytes of all its records so far, as they were sent."""
        return self._converted_bytes + self._bytes

    def add(self, data: Mapping[str, Any], emitted_at: int, line: bytes) -> None:
        """Take a record and the line that it came in. Raises LakeError."""
        self._records.append(data)
        self._emitted.append(emitted_at)
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= BATCH_BYTES or len(self._records) >= BATCH_ROWS:
            self._convert()
            if self._ready_bytes >= OBJECT_BYTES or self._ready_rows >= OBJECT_ROWS:
                self.flush()

    def _convert(self) -> None:
        """Turn the held records into a record batch."""
        if not self._records:
            return
        for moment in (min(self._emitted), max(self._emitted)):
            if not EARLIEST <= moment <= LATEST:
                raise SourceError(
                    f"the connector sent an emitted_at that is no time in milliseconds: {moment}"
                )
        batch = self._batches.build(self._records, self._emitted)
        self._ready.append(batch)
        self._digest += sum(map(_digest, self._lines, self._emitted, self._records))
        self._ready_rows += len(self._records)
        # Of sparse records the columns that are null take most.
        self._ready_bytes += max(self._bytes, batch.nbytes)
        self._sent += self._bytes
        self._converted_bytes += self._bytes
        self._records, self._emitted, self._lines, self._bytes = [], [], [], 0

    def flush(self) -> None:
        """Write an object of all that is held."""
        self._convert()
        if not self._ready:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_batches(_of_one_schema(self._ready, self._batches.schema))
        sink = pa.BufferOutputStream()
        # Not zstd: to have a quarter less would cost as much again as all else that is done here.
        dictionary = [name for name in table.column_names if name != RAW_ID]
        pq.write_table(table, sink, compression="snappy", use_dictionary=dictionary)
        content = sink.getvalue().to_pybytes()
        key = f"{self.prefix}/{object_name(self._written)}"
        self._lake.create(key, content)
        self._objects.append(LakeObject(key=key, rows=table.num_rows, size=len(content)))
        self._written += 1
        self._rows += self._ready_rows
        self._ready, self._ready_rows, self._ready_bytes = [], 0, 0

    def take(self) -> Part:
        """What was written since this was asked last, with all that was held."""
        self.flush()
        digest = self._digest % 2 ** (8 * DIGEST_BYTES)
        part = Part(self._objects, self._rows, self._sent, digest, self._batches.observed)
        self._objects, self._rows, self._sent, self._digest = [], 0, 0, 0
        self._batches.observed = Observed()
        return part


def _digest(line: bytes, emitted_at: int, record: Mapping[str, Any]) -> int:
    """Of the record's data: the line without the time, if that is its end as in most connectors."""
    content, _, end = line.rpartition(_EMITTED)
    if end != b"%d}}" % emitted_at:
        content = exact.dumps(exact.keepable(record))
    return int.from_bytes(sha256(content).digest()[:DIGEST_BYTES], "little")


def _of_one_schema(batches: list[pa.RecordBatch], schema: pa.Schema) -> list[pa.RecordBatch]:
    """The batches with a number's column as strings in all of them if it is in one."""
    import pyarrow as pa

    texts = {
        field.name
        for batch in batches
        if batch.schema != schema
        for field, usual in zip(batch.schema, schema, strict=True)
        if field.type != usual.type
    }
    if not texts:
        return batches
    common = pa.schema(f.with_type(pa.string()) if f.name in texts else f for f in schema)
    return [
        pa.RecordBatch.from_arrays(
            [
                column
                if column.type == field.type
                else pa.array(map(digits, column.to_pylist()), pa.string())
                for column, field in zip(batch.columns, common, strict=True)
            ],
            schema=common,
        )
        for batch in batches
    ]
