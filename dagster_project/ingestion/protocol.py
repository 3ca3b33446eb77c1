"""The Airbyte protocol as a connector speaks it: one JSON message a line on standard output.

https://docs.airbyte.com/platform/understanding-airbyte/airbyte-protocol
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dagster_project.failures import SourceError


@dataclass(slots=True)
class StreamProgress:
    """What a connector said of one stream so far."""

    records: int = 0
    #: Sum of the record counts that state messages gave; None if none gave one.
    counted: int | None = None
    status: str | None = None


@dataclass(slots=True)
class Conversation:
    """Everything but the records that a connector sent, kept to judge whether it is whole."""

    streams: dict[str, StreamProgress]
    state: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    last_logs: list[str] = field(default_factory=list)
    #: Applied to whatever the connector said in words.
    masked: Callable[[str], str] = lambda text: text

    def hear(self, message: dict[str, Any]) -> None:
        """Take note of a message that is not a record."""
        match message.get("type"):
            case "STATE":
                self._hear_state(message["state"])
            case "TRACE":
                self._hear_trace(message["trace"])
            case "LOG":
                log = message.get("log", {})
                self.note(f"{log.get('level', 'INFO')}: {log.get('message', '')}")

    def note(self, line: str) -> None:
        """Keep the last few lines of what a connector logged, for an error's message."""
        self.last_logs.append(self.masked(line)[:500])
        del self.last_logs[:-20]

    def _hear_state(self, state: dict[str, Any]) -> None:
        if state.get("type") != "STREAM":
            raise SourceError(
                f"the connector sent state of type {state.get('type', 'LEGACY')}; only a state a "
                "stream can be resumed from: use a connector of protocol 0.2 or newer"
            )
        name = state["stream"]["stream_descriptor"]["name"]
        self.state[name] = state
        count = (state.get("sourceStats") or {}).get("recordCount")
        if count is not None and name in self.streams:
            stream = self.streams[name]
            stream.counted = (stream.counted or 0) + int(count)

    def _hear_trace(self, trace: dict[str, Any]) -> None:
        if trace.get("type") == "ERROR":
            error = trace.get("error", {})
            # The first says what happened, later ones sum up.
            message = error.get("message") or error.get("internal_message") or "no message"
            self.error = self.error or self.masked(str(message))
        elif trace.get("type") == "STREAM_STATUS":
            status = trace["stream_status"]
            name = status["stream_descriptor"]["name"]
            if name in self.streams:
                self.streams[name].status = status["status"]

    def faults(self, exit_code: int, incremental: Iterable[str]) -> list[str]:
        """Why what was sent is not whole; empty if it is.

        A stream is whole only if the connector exited 0, sent no TRACE ERROR, said COMPLETE for
        it, and the counts in its state messages add up to the records that came.
        """
        if self.error is not None:
            # It is stopped there: how it ended says no more.
            return [f"it reported: {self.error}"]
        found = []
        if exit_code != 0:
            found.append(f"it ended with exit code {exit_code}")
        for name, stream in self.streams.items():
            if stream.status != "COMPLETE":
                found.append(f"stream {name} ended {stream.status or 'without a status'}")
            elif stream.counted is not None and stream.counted != stream.records:
                found.append(
                    f"stream {name} sent {stream.records} records, but its state counts "
                    f"{stream.counted}"
                )
        found.extend(
            f"stream {name} is incremental, but sent no state"
            for name in incremental
            if name not in self.state and not found
        )
        return found
