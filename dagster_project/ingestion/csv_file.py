"""Reading a landed CSV file: any encoding, quoted newlines, and rows of another width set aside."""

from __future__ import annotations

import codecs
import secrets
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dagster_project.failures import SourceError
from dagster_project.ingestion.feed import FeedDeclaration
from dagster_project.ingestion.landed_rows import (
    BATCH_ROWS,
    Reject,
    check_names,
    nul_faults,
    rejects,
    set_aside,
    text_schema,
)
from dagster_project.ingestion.quotes import Quotes

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import csv

#: Bytes that are parsed at once: no row is longer. Some thirty times as many are read ahead.
_BLOCK = 2 << 20
#: Rows of another width than the header that are kept, of those that no good row comes between.
_MOST_MISFITS = 100_000
#: Stands in the row that is put after the last one; random, so that no file holds it.
_END = secrets.token_hex(16)
#: The longer ones first: that of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class _Text:
    """A file's bytes as UTF-8, with one row more after its last.

    A quoted value that is opened and never closed runs to the end of the file: it takes that row
    in. So the row comes out of the parser if and only if the file ends where a row does.
    """

    def __init__(self, file: pa.NativeFile, key: str, feed: FeedDeclaration) -> None:
        self.closed = False
        self._file, self._key = file, key
        start = self._read_file(4)
        marked = (name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark))
        self._encoding = next(marked, feed.encoding)
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._is_utf8 = codecs.lookup(self._encoding).name == "utf-8"
        #: Of another width than the header, so that it is no row.
        self.end = _END if len(feed.columns) > 1 else feed.delimiter.join((_END, _END))
        self._is_over = False
        self._quotes = Quotes(feed.delimiter) if feed.quotes else None
        self._lines = 1
        self._last = ""
        self.has_nul = False
        self._ready = self._decoded(start)

    @property
    def ends_with_newline(self) -> bool:
        return self._last in {"\n", "\r"}

    def close(self) -> None:
        self.closed = True

    def read(self, size: int) -> bytes:
        """As many bytes as are asked for, unless the file ends: the parser takes them for one."""
        while len(self._ready) < size and not self._is_over:
            self._ready += self._decoded(self._read_file(size - len(self._ready)))
        given, self._ready = self._ready[:size], self._ready[size:]
        return given

    def _read_file(self, size: int) -> bytes:
        try:
            chunk: bytes = self._file.read(size)
        except OSError as error:
            # Of a file in memory, so it is about what the file holds.
            raise SourceError(
                f"{self._key} is packed with gzip and ends too early or is damaged ({error}): have "
                "it delivered again"
            ) from None
        return chunk

    def _decoded(self, chunk: bytes) -> bytes:
        """The next bytes as UTF-8, and after the last of them the row that ends the file."""
        try:
            text = self._decoder.decode(chunk, final=not chunk)
            content = chunk if self._is_utf8 else text.encode()
        except UnicodeError as error:
            line, reason = self._lines, str(error)
            if isinstance(error, UnicodeDecodeError):
                whole = error.object[: error.start].decode(error.encoding, "ignore")
                line, reason = line + whole.count("\n"), error.reason
            raise SourceError(
                f"{self._key}: line {line} is not valid {self._encoding} ({reason}). Say how the "
                "files are encoded in the feed's `encoding`, or have the file delivered again"
            ) from None
        if self._quotes and (place := self._quotes.amiss(content)) is not None:
            line = self._lines + content[: max(0, place)].count(b"\n")
            raise SourceError(
                f"{self._key}: line {line} has a quote in the middle of a value, or text after the "
                "quote that ends one; or a value of a line before it is opened and not closed. "
                "Have it delivered with such values quoted and their quotes doubled, or say "
                "`quotes: false` in the feed's declaration if its quotes are ordinary characters"
            )
        self._lines += text.count("\n")
        self._last = text[-1:] or self._last
        self.has_nul = self.has_nul or "\0" in text
        if chunk:
            return content
        self._is_over = True
        before = "" if self.ends_with_newline else "\n"
        return content + f"{before}{self.end}\n".encode()


class _Misfits:
    """The rows of another width than the header, as the parser comes upon them."""

    def __init__(self, end: str) -> None:
        self._end = end
        self._short = 0
        # Filled while batches are on their way to the warehouse.
        self._rows: deque[Reject] = deque()
        #: Whether the file ends where a row does.
        self.is_whole = False
        #: Whether its last row has too few fields.
        self.is_cut = False
        #: The first of too many.
        self.excess: Reject | None = None

    def put_aside(self, row: csv.InvalidRow) -> str:
        """What the parser is to do next."""
        if row.text == self._end:
            self.is_whole, self.is_cut = True, self._short == row.number - 1
            return "skip"
        if row.actual_columns < row.expected_columns:
            self._short = row.number
        fields = "1 field" if row.actual_columns == 1 else f"{row.actual_columns} fields"
        reason = f"{fields} where the header has {row.expected_columns}"
        self._rows.append(Reject(reason, {"row": row.number, "text": row.text}))
        if len(self._rows) <= _MOST_MISFITS:
            return "skip"
        self.excess = self._rows[0]
        return "error"

    def take(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Those that came since the last time, if any, as rows for the rejects."""
        if taken := [self._rows.popleft() for _ in range(len(self._rows))]:
            yield rejects(schema, taken)


def csv_batches(file: pa.NativeFile, key: str, feed: FeedDeclaration) -> Iterator[pa.RecordBatch]:
    """The rows of a CSV file, as text. Raises SourceError if it is not what was declared."""
    import pyarrow as pa
    from pyarrow import csv

    schema = text_schema(feed)
    text = _Text(file, key, feed)
    misfits = _Misfits(text.end)
    try:
        reader = csv.open_csv(
            pa.PythonFile(text, "r"),
            # Parsing is not what a load waits for; without threads a misfit's number is known.
            read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK),
            parse_options=csv.ParseOptions(
                delimiter=feed.delimiter,
                quote_char='"' if feed.quotes else False,
                newlines_in_values=True,
                # The only column may be empty.
                ignore_empty_lines=len(feed.columns) > 1,
                invalid_row_handler=misfits.put_aside,
            ),
            convert_options=csv.ConvertOptions(
                column_types=schema,
                null_values=feed.null_values,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                check_utf8=False,
            ),
        )
        if _END in reader.schema.names:
            raise SourceError(f"{key} is empty: have it delivered again")
        check_names(reader.schema.names, key, feed)
        for block in reader:
            for start in range(0, block.num_rows, BATCH_ROWS):
                batch = block.slice(start, BATCH_ROWS).select(schema.names)
                yield from set_aside(batch, nul_faults(batch) if text.has_nul else [])
            yield from misfits.take(schema)
    except pa.ArrowInvalid as error:
        raise _refusal(error, key, misfits.excess) from None
    yield from misfits.take(schema)
    _check_end(text, misfits, key, feed)


def _check_end(text: _Text, misfits: _Misfits, key: str, feed: FeedDeclaration) -> None:
    """Refuse a file that ends too early."""
    if not misfits.is_whole:
        raise SourceError(
            f"{key}: a quoted value begins and does not end before the file does. Is the file "
            "truncated? Have it delivered again, or mend the quotes"
        )
    if text.ends_with_newline:
        return
    if misfits.is_cut:
        raise SourceError(
            f"{key}: its last row is cut, with fewer fields than the header and no newline: have "
            "it delivered again"
        )
    if feed.final_newline == "required":
        raise SourceError(
            f"{key}: no newline at its end, so its last row may be cut. Have it delivered again, "
            "or say `final_newline: optional` in the feed's declaration if its files end so"
        )


def _refusal(error: Exception, key: str, excess: Reject | None) -> SourceError:
    if excess:
        return SourceError(
            f"{key}: more than {_MOST_MISFITS:,} rows together are of another width; of the first: "
            f"{excess.reason} ({excess.record['text'][:200]!r}). Nothing of this load was kept; "
            "mend the file or the feed's declaration"
        )
    if "straddl" in str(error):
        return SourceError(
            f"{key}: a row is longer than {_BLOCK >> 20} MB, or a quote is opened and not closed"
        )
    return SourceError(f"{key} is not the CSV file it should be: {error}")
