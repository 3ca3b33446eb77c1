"""What comes in: Arrow batches into a temporary table, rows that cannot be loaded marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dagster_project.warehouse.ahead import ahead
from dagster_project.warehouse.arrays import array_of, scalar_of
from dagster_project.warehouse.arrow import ArrowSession
from dagster_project.warehouse.ledger import PartitionState
from dagster_project.warehouse.target import Target

if TYPE_CHECKING:
    import pyarrow as pa

#: The temporary table of the rows; its columns are the plan's and the three below.
STAGE = "mesh_stage"
#: The temporary table of the pieces.
PIECES = "mesh_pieces"
PIECE = "_mesh_piece"
#: Why the row cannot be loaded; null for a row that can.
FAULT = "_mesh_fault"
#: The row as it came, as the text of a JSON object, if it cannot be loaded.
RECORD = "_mesh_record"


#: What an index of PostgreSQL holds of a row, with some room.
KEY_BYTES = 2_600
#: How a value of a type has to look, as PostgreSQL takes more for one than a file should: `today`,
#: `0x1F`, `1_000`.
_FORMS = {
    "bigint": r"^\s*[-+]?[0-9]+\s*$",
    "date": r"^\s*[0-9]",
    "timestamptz": r"^\s*[0-9]",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """An object of the lake that is to be loaded."""

    key: str
    #: Its rows, with the plan's columns, and with FAULT and RECORD (text) if some are not to be
    #: loaded.
    batches: Callable[[], Iterable[pa.RecordBatch]]
    #: For REPLACE_PARTITIONS: the partition, the version of the object and a digest of its content.
    partition: str = ""
    object_version: str = ""
    digest: str = ""
    #: For rows that were rejected: by which run, and when.
    rejected_by: str | None = None
    rejected_at: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load is to bring: the pieces, and the position after them."""

    schema: pa.Schema
    pieces: Sequence[Piece]
    position: int
    #: What identifies that position, whatever its number is.
    mark: str = ""
    #: Whether there is anything to bring, if only that the source is empty now.
    brings: bool = True
    #: How many rows the pieces hold, where that is known; asked for with OVERWRITE.
    rows: int = 0
    #: A digest of what the pieces hold together; not asked for with REPLACE_PARTITIONS.
    content: str = ""
    #: Columns that come as text although the target's are not, and surely are of its type.
    surely: frozenset[str] = frozenset()
    #: What a column holds where null is staged, in SQL: what most rows have need not be sent.
    defaults: Mapping[str, str] = field(default_factory=dict)
    #: Partitions whose object was written anew with the content that the table holds already.
    confirmed: Sequence[PartitionState] = ()


@dataclass(frozen=True, slots=True)
class Staged:
    """How many rows came, and how many of them are marked as not to be loaded."""

    #: Of each piece.
    by_piece: tuple[int, ...]
    marked: int

    @property
    def received(self) -> int:
        return sum(self.by_piece)


def is_cast(plan: Plan, target_type: str, name: str) -> bool:
    """Whether a column comes as text and has to become another type."""
    import pyarrow as pa

    return target_type != "text" and bool(pa.types.is_string(plan.schema.field(name).type))


def stage(
    session: ArrowSession, target: Target, plan: Plan, progress: Callable[[int], None]
) -> Staged:
    """Stream the pieces into the temporary table; a batch at a time is in memory."""
    import pyarrow as pa

    own = [(PIECE, pa.int32()), (FAULT, pa.string()), (RECORD, pa.string())]
    schema = pa.schema([*plan.schema, *(pa.field(name, kind) for name, kind in own)])
    received, marked = [0] * len(plan.pieces), 0
    failed: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal marked
        try:
            with ahead(_marked(plan, schema, target)) as coming:
                for index, batch in coming:
                    yield batch
                    received[index] += batch.num_rows
                    marked += batch.num_rows - batch.column(FAULT).null_count
                    progress(sum(received))
        except Exception as error:
            failed.append(error)
            raise

    try:
        session.ingest(STAGE, pa.RecordBatchReader.from_batches(schema, batches()))
    except Exception:
        if failed:
            # The driver knows only that its input ended, and shows where at length; this is why.
            raise failed[0] from None
        raise
    texts = ("key", "partition", "rejected_by", "rejected_at")
    pieces = pa.RecordBatch.from_pydict(
        {"piece": array_of(range(len(plan.pieces)), pa.int32())}
        | {n: array_of((getattr(p, n) for p in plan.pieces), pa.string()) for n in texts}
    )
    session.ingest(PIECES, pa.RecordBatchReader.from_batches(pieces.schema, [pieces]))
    return Staged(tuple(received), marked)


def _marked(plan: Plan, schema: pa.Schema, target: Target) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of each piece as they are staged, rows without a primary key marked."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, piece in enumerate(plan.pieces):
        number = scalar_of(index, pa.int32())
        for batch in piece.batches():
            fault, record = (
                batch.column(name)
                if name in batch.schema.names
                else pa.nulls(batch.num_rows, pa.string())
                for name in (FAULT, RECORD)
            )
            for bad, why in _faults(batch, target):
                if pc.any(bad).as_py():
                    reason = scalar_of(why, pa.string())
                    fault = pc.if_else(pc.and_(bad, fault.is_null()), reason, fault)
            columns = [batch.column(name) for name in plan.schema.names]
            own = [pa.repeat(number, batch.num_rows), fault, record]
            yield index, pa.RecordBatch.from_arrays([*columns, *own], schema=schema)


def _faults(batch: pa.RecordBatch, target: Target) -> Iterator[tuple[pa.Array, str]]:
    """What makes rows of a batch such that they cannot be loaded: which they are, and why."""
    import pyarrow as pa
    import pyarrow.compute as pc

    length = zero = scalar_of(0, pa.int32())
    most, false = scalar_of(KEY_BYTES, pa.int32()), scalar_of(0, pa.bool_())
    for name in target.primary_key:
        column = batch.column(name)
        if column.null_count:
            yield column.is_null(), f"{name}: null in the primary key"
        if pa.types.is_string(column.type):
            length = pc.add(length, pc.fill_null(pc.binary_length(column), zero))
    if isinstance(length, pa.Array):
        yield pc.greater(length, most), f"a primary key of more than {KEY_BYTES} bytes"
    for column in target.columns:
        form = _FORMS.get(column.type)
        values = batch.column(column.name)
        if form and pa.types.is_string(values.type):
            other = pc.invert(pc.match_substring_regex(values, form))
            yield pc.fill_null(other, false), f"{column.name}: not {column.type}"
