"""A connector's output, line by line, in bounded memory whatever it prints."""

from __future__ import annotations

import re

from dagster_project.failures import SourceError

#: Bytes that a message can have: what PostgreSQL's jsonb holds.
LARGEST_MESSAGE = 256 * 2**20
#: Bytes from which on a line is only kept if it may be a message that must not be lost.
LONG = 2**20
#: Bytes that are kept of a long line that is none.
KEPT = 16 * 2**10

_MESSAGE = re.compile(
    rb'\s*\{\s*"(?:record|state|trace|type"\s*:\s*"(?:RECORD|STATE|TRACE))"', re.ASCII
)
#: A message of another type; one whose type comes last may be of any.
_OTHER = re.compile(rb'\s*\{\s*"(?:log|type"\s*:\s*"(?!(?:RECORD|STATE|TRACE)")[A-Z_]+)"', re.ASCII)
_TYPED = re.compile(rb'"type"\s*:\s*"(?:RECORD|STATE|TRACE)"')
#: Bytes in which what _TYPED finds may be cut.
_CUT = 64
#: What Windows' programs begin a text with.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def begins_like_data(line: bytes) -> bool:
    """Whether a line begins like a RECORD, STATE or TRACE message of the Airbyte protocol."""
    return _MESSAGE.match(line) is not None


def holds_data(line: bytes) -> bool:
    """Whether a RECORD, STATE or TRACE message stands anywhere in a line."""
    return _TYPED.search(line) is not None


def _may_be_data(head: bytes) -> bool:
    head = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    return head.startswith(b"{") and _OTHER.match(head) is None


class LineSplitter:
    """Puts together the lines of chunks; of a long line that is no message, only its beginning.

    And, if `holds_data` is true of what is left out, so much of that that it is of what is kept.
    """

    def __init__(self, messages: bool) -> None:
        """`messages` says whether the lines are of the Airbyte protocol at all."""
        self._messages = messages
        self._pending: list[bytes] = []
        self._size = 0
        self._judged = False
        self._shortened: bytes | None = None
        #: The end of what was left out, until something was found there.
        self._left_out: bytes | None = None

    def feed(self, chunk: bytes) -> tuple[bytes, list[bytes]]:
        """The lines that the chunk completes, joined as they came; and what was shortened of them.

        Raises SourceError for a message that is larger than LARGEST_MESSAGE.
        """
        shortened = []
        if self._shortened is not None:
            left_out, newline, chunk = chunk.partition(b"\n")
            self._leave_out(left_out)
            if not newline:
                return b"", []
            shortened.append(self._shortened)
            self._shortened = None
        whole, newline, rest = chunk.rpartition(b"\n")
        if newline:
            whole = self._take() + whole
        if rest:
            self._hold(rest)
        return whole, shortened

    def close(self) -> tuple[bytes, list[bytes]]:
        """As `feed`, of a last line that has no end."""
        shortened, self._shortened = self._shortened, None
        return self._take(), [] if shortened is None else [shortened]

    def _take(self) -> bytes:
        line = b"".join(self._pending)
        self._pending, self._size, self._judged = [], 0, False
        return line

    def _hold(self, piece: bytes) -> None:
        self._pending.append(piece)
        self._size += len(piece)
        if self._size > LARGEST_MESSAGE:
            raise SourceError(
                f"the connector sent a message of more than {LARGEST_MESSAGE >> 20} MB, which is "
                "the most that PostgreSQL holds: leave out the field that is so large, or have the "
                "source send it in parts"
            )
        if self._size <= LONG or self._judged:
            return
        self._judged = True
        line = b"".join(self._pending)
        if not (self._messages and _may_be_data(line[:KEPT])):
            self._take()
            self._shortened, self._left_out = line[:KEPT], b""
            self._leave_out(line)

    def _leave_out(self, piece: bytes) -> None:
        """Look once at what is dropped of a long line: a message in it must not be lost unseen."""
        if self._messages and self._shortened is not None and self._left_out is not None:
            piece = self._left_out + piece
            self._left_out = piece[-_CUT:]
            if found := _TYPED.search(piece):
                self._shortened += b" ... " + found[0]
                self._left_out = None
