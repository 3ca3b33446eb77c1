"""Whether the quotes of a CSV file are where RFC 4180 has them, looked at a block at a time.

A quote opens a value at its beginning, and ends it at its end; within it there are two for one.
Parsers take what is otherwise, one way or another: of two quotes too many they make one value of
all the rows between them. Here nearly all such files are found, as hardly any goes on by the rule.
"""

from __future__ import annotations

import codecs

_QUOTE = ord('"')


class Quotes:
    """The quotes of one file, whose bytes come as UTF-8."""

    def __init__(self, delimiter: str) -> None:
        self._beside = sorted({*b'\r\n"', ord(delimiter)})
        #: The byte before the next block and the one that was not looked at yet.
        self._last = b"\n"
        self._is_first = True
        #: Whether an even number of quotes came so far: the next one is to open a value.
        self._opens = True

    def amiss(self, block: bytes) -> int | None:
        """Where in the next block, or in the last byte before it (-1), a quote should not be."""
        if self._is_first and block:
            # Its last byte would stand before the first quote.
            self._is_first = False
            mark = codecs.BOM_UTF8
            if block.startswith(mark):
                found = self.amiss(block[len(mark) :])
                return None if found is None else found + len(mark)
        whole = self._last + block
        before, self._last = len(self._last), whole[-2:]
        if b'"' not in whole[1:-1]:
            return None
        import numpy as np

        content = np.frombuffer(whole, np.uint8)
        places = np.flatnonzero(content[1:-1] == _QUOTE) + 1
        # An opening one is judged by what it follows, a closing one by what follows it.
        first = 0 if self._opens else 1
        beside = content[places - 1]
        beside[1 - first :: 2] = content[places[1 - first :: 2] + 1]
        is_amiss = ~np.isin(beside, self._beside)
        self._opens ^= bool(len(places) % 2)
        return int(places[is_amiss.argmax()]) - before if is_amiss.any() else None
