"""JSON whose numbers keep all their digits.

A number that neither a double nor 64 bits can hold is a `Number`, which knows its digits; every
other is a float or int as usual. The fast parser is used for what it can hold, see `at_risk`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

#: Digits before and after the point that PostgreSQL's numeric, and so its jsonb, can have.
NUMERIC_WHOLE, NUMERIC_FRACTION = 131_072, 16_383

#: Levels of nesting that are kept of a record that is set aside; the fast writer takes some more.
DEPTH = 200

_SHAPE = bytes.maketrans(b"0123456789.E", b"00000000000e")
#: A double holds 15 digits whatever they are; and every exponent of two digits.
_LONG, _FAR = b"0" * 16, b"0e000"
#: Part of the latter that is found many times faster.
_FAR_END = _FAR[1:]


@dataclass(frozen=True, slots=True)
class Number:
    """A number by its digits as they were sent, or NaN, Infinity or -Infinity."""

    text: str

    @property
    def finite(self) -> bool:
        return self.text[-1].isdigit()

    def value(self) -> Decimal:
        """Exact. Raises ValueError if it is not finite, or more than PostgreSQL can hold."""
        try:
            value = Decimal(self.text)
        except InvalidOperation:
            value = Decimal("NaN")
        if not self.finite:
            raise ValueError(self.text)
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int) or (
            value.adjusted() >= NUMERIC_WHOLE or -exponent > NUMERIC_FRACTION
        ):
            raise ValueError("a number of more digits than PostgreSQL can hold")
        return value


def at_risk(text: bytes) -> bool:
    """Whether the JSON text can hold a number that the fast parser would round.

    It says yes to other things as well, such as a long number within a string.
    """
    shape = text.translate(_SHAPE, b"+-")
    return _LONG in shape or (_FAR_END in shape and _FAR in shape)


def loads(text: bytes) -> Any:
    """The value of a JSON text, exactly; NaN and Infinity, which Python prints, are numbers too.

    A byte that is not UTF-8 becomes half a surrogate pair. Raises ValueError.
    """
    try:
        return json.loads(
            text.decode("utf-8", "surrogateescape"),
            parse_float=_float,
            parse_int=_int,
            parse_constant=Number,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _float(text: str) -> float | Number:
    value = float(text)
    try:
        return value if Decimal(repr(value)) == Decimal(text) else Number(text)
    except InvalidOperation:
        return Number(text)


def _int(text: str) -> int | Number:
    if len(text) > 20:
        return Number(text)
    value = int(text)
    return value if -(2**63) <= value < 2**64 else Number(text)


def dumps(value: Any) -> bytes:
    """The value as JSON, exactly. Raises ValueError if PostgreSQL's jsonb could not hold it."""
    try:
        return orjson.dumps(value, _fragment, orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error.__cause__ or error)) from None


def _fragment(value: Any) -> orjson.Fragment:
    if not isinstance(value, Number):
        raise TypeError(f"{type(value).__name__} is not of JSON")
    value.value()
    return orjson.Fragment(value.text)


def keepable(value: Any, depth: int = 0) -> Any:
    """The value as jsonb can hold it, as near as can be.

    A NUL character, or half a surrogate pair, becomes the replacement character; NaN, and a number
    of too many digits, becomes its text; what is nested deeper than DEPTH is left out.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, (Mapping, list)) and depth == DEPTH:
        return "(nested too deeply)"
    if isinstance(value, Mapping):
        return {keepable(key): keepable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [keepable(item, depth + 1) for item in value]
    if isinstance(value, Number):
        try:
            value.value()
        except ValueError:
            return value.text
    return value
