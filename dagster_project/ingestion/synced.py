"""What a sync tells: how far it is, and what it brought."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dagster_project.lake.commits import Commit, Drift, LakeObject, StreamCommit, merged

#: Seconds that a sync may take before its progress is reported, and between two reports.
REPORTED_EVERY = 5.0


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:,.1f} MB"


def rates(rows: int, size: int, seconds: float) -> str:
    """What came in a second, in rows and bytes."""
    seconds = max(seconds, 0.001)
    return f"{rows / seconds:,.0f} rows/s, {size / 1e6 / seconds:,.1f} MB/s"


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """How far a sync is. Bytes are of the records as the connector sent them."""

    #: The stream that came last, and its rows and bytes so far.
    stream: str
    rows: int
    bytes: int
    #: Since the sync began.
    seconds: float
    #: Of all streams.
    all_rows: int
    all_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.stream}: {self.rows:,} rows so far, {megabytes(self.bytes)} "
            f"({rates(self.all_rows, self.all_bytes, self.seconds)})"
        )


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync brought, in all its commits."""

    commits: Sequence[Commit]
    #: Whether it was another sync, that this one waited for or that nobody was done with.
    joined: bool = False

    @property
    def commit(self) -> Commit:
        """The last, with which it ended."""
        return self.commits[-1]

    @property
    def rows(self) -> int:
        return sum(commit.rows for commit in self.commits)

    @property
    def sent_bytes(self) -> int:
        """Of the records as the connector sent them."""
        return sum(s.sent_bytes for commit in self.commits for s in commit.streams.values())

    @property
    def seconds(self) -> float:
        first, last = self.commits[0].started_at, self.commits[-1].ended_at
        return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()

    def stream(self, table: str) -> StreamSynced:
        """What it brought of one stream."""
        parts = [c.streams[table] for c in self.commits if table in c.streams]
        return StreamSynced(parts, self.seconds)


@dataclass(frozen=True, slots=True)
class StreamSynced:
    """What a sync brought of one stream."""

    parts: Sequence[StreamCommit]
    #: Of the whole sync.
    seconds: float

    @property
    def last(self) -> StreamCommit:
        return self.parts[-1]

    @property
    def objects(self) -> list[LakeObject]:
        return [item for part in self.parts for item in part.objects]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def sent_bytes(self) -> int:
        """Of its records as the connector sent them."""
        return sum(part.sent_bytes for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of its objects in the lake."""
        return sum(item.size for item in self.objects)

    @property
    def drift(self) -> Drift:
        """In what its records were other than declared, in all parts together."""
        return merged([part.drift for part in self.parts])


class SyncReport:
    """Tells people of a sync: how far it is if it takes long, and what it brought."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._told = 0.0

    def progress(self, so_far: SyncProgress) -> None:
        if so_far.seconds - self._told >= REPORTED_EVERY:
            self._told = so_far.seconds
            self.say(str(so_far))

    def end(self, synced: Synced) -> None:
        whose = "another sync, which is not made twice, brought " if synced.joined else ""
        self.say(
            f"{whose}{synced.rows:,} rows, {megabytes(synced.sent_bytes)} in "
            f"{synced.seconds:,.1f} s ({rates(synced.rows, synced.sent_bytes, synced.seconds)})"
        )
