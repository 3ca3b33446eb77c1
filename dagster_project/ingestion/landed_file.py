"""A landed file, whatever it is, as rows for the loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dagster_project.failures import SourceError
from dagster_project.ingestion.csv_file import csv_batches
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.parquet_file import MAGIC, parquet_batches
from dagster_project.warehouse.staging import FAULT

if TYPE_CHECKING:
    import pyarrow as pa

_GZIP = b"\x1f\x8b"


def file_batches(content: bytes, key: str, feed: FeedDeclaration) -> Iterator[pa.RecordBatch]:
    """The rows of a feed's file as text, in batches; bad rows in batches with FAULT and RECORD.

    Raises SourceError if the file is not whole, is not what was declared, or has no good row.
    """
    if not content:
        raise SourceError(f"{key} is empty: have it delivered again")
    good = bad = 0
    reason = ""
    for batch in _batches(content, key, feed):
        if FAULT in batch.schema.names:
            bad += batch.num_rows
            reason = reason or batch.column(FAULT)[0].as_py()
        else:
            good += batch.num_rows
        if batch.num_rows:
            yield batch
    if not good and bad:
        raise SourceError(
            f"{key}: none of its {bad:,} rows can be loaded; of the first: {reason}. Nothing of "
            "this load was kept; mend the file or the feed's declaration"
        )
    if not good and not feed.may_be_empty:
        raise SourceError(
            f"{key} has a header and no rows. Have it delivered again, or say `may_be_empty: true` "
            "in the feed's declaration if there can be a day without data"
        )


def _batches(content: bytes, key: str, feed: FeedDeclaration) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if content.startswith(MAGIC):
        return parquet_batches(content, key, feed)
    file = pa.BufferReader(content)
    if content.startswith(_GZIP):
        file = pa.CompressedInputStream(file, "gzip")
    return csv_batches(file, key, feed)
