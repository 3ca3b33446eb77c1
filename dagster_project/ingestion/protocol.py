"""The Airbyte protocol as a connector speaks it: one JSON message a line on standard output.

https://docs.airbyte.com/platform/understanding-airbyte/airbyte-protocol
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from dagster_project.failures import SourceError
from dagster_project.ingestion import exact
from dagster_project.ingestion.lines import BYTE_ORDER_MARK, begins_like_data, holds_data

#: Lines of a connector's log that are kept, and characters of each.
LINES, LENGTH = 20, 500
#: Kinds of errors after which Airbyte tries a sync again; the other is a mistake of configuration.
_PASSING = {"transient_error", "system_error"}


def read_message(line: bytes, *, risky: bool) -> dict[str, Any] | None:
    """The protocol message that a line is; None if it is something else.

    `risky` says that the line may hold a number that the fast parser would round. Raises
    SourceError for data that cannot be read: it must not be lost among other output.
    """
    try:
        message = orjson.loads(line)
        if risky and exact.at_risk(line) and not _writes(message, line):
            message = _exactly(line)
    except orjson.JSONDecodeError:
        line = line.removeprefix(BYTE_ORDER_MARK)
        if not begins_like_data(line) and not holds_data(line):
            return None
        message = _exactly(line)
    return message if isinstance(message, dict) and "type" in message else None


def _writes(message: Any, line: bytes) -> bool:
    """Whether the fast parser's message is the very line."""
    try:
        return orjson.dumps(message) == line
    except orjson.JSONEncodeError:
        # It reads what is nested deeper than it writes.
        return False


def _exactly(line: bytes) -> Any:
    try:
        return exact.loads(line)
    except ValueError as error:
        if not line.lstrip().startswith(b"{"):
            raise mixed_output() from None
        raise SourceError(
            f"the connector sent a message that is not valid JSON ({type(error).__name__})"
        ) from None


def mixed_output() -> SourceError:
    """What is raised for a message on a line that is not its own."""
    return SourceError(
        "the connector printed a message on a line with other output, where it cannot be read: "
        "have it, or what it calls, print such output to standard error"
    )


@dataclass(slots=True)
class StreamProgress:
    """What a connector said of one stream so far."""

    records: int = 0
    #: Sum of the record counts that state messages gave; None if none gave one.
    counted: int | None = None
    status: str | None = None
    #: Its last state message, as JSON text if numbers would lose digits otherwise.
    state: Any = None
    #: Its records until then.
    stated: int = 0


@dataclass(slots=True)
class Conversation:
    """Everything but the records that a connector sent, kept to judge whether it is whole."""

    streams: dict[str, StreamProgress]
    error: str | None = None
    #: Whether the error can pass by itself, by what the connector said of its kind.
    transient: bool = False
    last_logs: list[str] = field(default_factory=list)
    #: Applied to whatever the connector said in words.
    masked: Callable[[str], str] = lambda text: text

    def hear(self, message: dict[str, Any]) -> str | None:
        """Take note of a message that is not a record; the stream whose state it is, if it is."""
        match message.get("type"):
            case "STATE":
                return self._hear_state(message["state"])
            case "TRACE":
                self._hear_trace(message["trace"])
            case "LOG":
                log = message.get("log", {})
                self.note(f"{log.get('level', 'INFO')}: {log.get('message', '')}")
        return None

    def note(self, text: str) -> None:
        """Keep the last few lines of what a connector logged, for an error's message.

        Of several lines, such as a traceback, the first and the last say most.
        """
        lines = [line.strip() for line in self.masked(text).splitlines() if line.strip()] or [""]
        if len(lines) > 1:
            lines = [f"{lines[0][: LENGTH // 2]} … {lines[-1][: LENGTH // 2]}"]
        self.last_logs.append(lines[0][:LENGTH])
        del self.last_logs[:-LINES]

    def _hear_state(self, state: dict[str, Any]) -> str | None:
        if state.get("type") != "STREAM":
            raise SourceError(
                f"the connector sent state of type {state.get('type', 'LEGACY')}; only a state a "
                "stream can be resumed from: use a connector of protocol 0.2 or newer"
            )
        name: str = state["stream"]["stream_descriptor"]["name"]
        stream = self.streams.get(name)
        if stream is None:
            return None
        text = exact.dumps(state)
        plain = orjson.loads(text)
        stream.state = plain if orjson.dumps(plain) == text else text.decode()
        stream.stated = stream.records
        count = (state.get("sourceStats") or {}).get("recordCount")
        if count is not None:
            stream.counted = (stream.counted or 0) + int(count)
        return name

    def _hear_trace(self, trace: dict[str, Any]) -> None:
        if trace.get("type") == "ERROR":
            error = trace.get("error", {})
            # The first says what happened, later ones sum up.
            message = error.get("message") or error.get("internal_message") or "no message"
            if self.error is None:
                self.error = self.masked(str(message))
                self.transient = error.get("failure_type") in _PASSING
        elif trace.get("type") == "STREAM_STATUS":
            status = trace["stream_status"]
            name = status["stream_descriptor"]["name"]
            if name in self.streams:
                self.streams[name].status = status["status"]

    def faults(
        self, exit_code: int, incremental: Iterable[str], appended: Iterable[str]
    ) -> list[str]:
        """Why what was sent is not whole; empty if it is.

        `incremental` are the streams that the next sync goes on with, `appended` those of them in
        which a record that is sent again is there twice.

        A stream is whole only if the connector exited 0, sent no TRACE ERROR, said COMPLETE for
        it, and the counts in its state messages add up to the records that came.
        """
        if self.error is not None:
            # It is stopped there: how it ended says no more.
            return [f"it reported: {self.error}"]
        found = [] if exit_code == 0 else [f"it ended {_ending(exit_code)}"]
        for name, stream in self.streams.items():
            if stream.status == "COMPLETE":
                if stream.counted not in (None, stream.records):
                    found.append(
                        f"stream {name} sent {stream.records} records, but its state counts "
                        f"{stream.counted}"
                    )
            elif stream == StreamProgress():
                if exit_code == 0:
                    found.append(
                        f"it never mentioned stream {name}: the source no longer has it, or calls "
                        "it otherwise than the declaration"
                    )
            else:
                found.append(f"stream {name} ended {stream.status or 'without a status'}")
        found.extend(
            f"stream {name} is incremental, but sent no state"
            for name in incremental
            if self.streams[name].state is None and not found
        )
        for name in appended:
            stream = self.streams[name]
            if stream.state is not None and stream.records > stream.stated:
                found.append(
                    f"stream {name} sent {stream.records - stream.stated} records after its last "
                    "state: the next sync would bring them again, and append keeps both. Have it "
                    "send a state at its end, or use append_dedup"
                )
        return found


def _ending(exit_code: int) -> str:
    if exit_code > 128:
        try:
            return f"by {signal.Signals(exit_code - 128).name}"
        except ValueError:
            pass
    return f"with exit code {exit_code}"
