"""Which objects of a connection are data: a log of commits.

A sync writes its objects first and its commit last, under the next number, which only one writer
can create. Objects that no commit names (a sync was stopped) are never data. A sync that may be
resumed in the middle commits what it has so far as a checkpoint; its last commit is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from dagster_project.failures import BusyError
from dagster_project.lake.store import AlreadyThereError, Lake


class LakeObject(BaseModel):
    """A Parquet object that a sync wrote."""

    model_config = ConfigDict(frozen=True)

    key: str
    rows: int
    size: int


class Drift(BaseModel):
    """In what the records of a stream were other than declared."""

    model_config = ConfigDict(frozen=True)

    #: Fields that records had and the declaration has not: the first names, and how many more.
    undeclared: list[str] = []
    undeclared_more: int = 0
    #: Declared columns that no record of a full refresh had.
    absent: list[str] = []
    #: Records with at least one value that is not of its column's type; such values by column.
    refused: int = 0
    refused_values: dict[str, int] = {}


def merged(drifts: Sequence[Drift]) -> Drift:
    """Of several commits together; what is absent is of the last."""
    columns = {name for drift in drifts for name in drift.refused_values}
    return Drift(
        undeclared=sorted({name for drift in drifts for name in drift.undeclared}),
        undeclared_more=max((drift.undeclared_more for drift in drifts), default=0),
        absent=drifts[-1].absent if drifts else [],
        refused=sum(drift.refused for drift in drifts),
        refused_values={
            name: sum(drift.refused_values.get(name, 0) for drift in drifts)
            for name in sorted(columns)
        },
    )


class StreamCommit(BaseModel):
    """What one commit brought of one stream."""

    model_config = ConfigDict(frozen=True)

    objects: list[LakeObject]
    rows: int
    sync_mode: str
    destination_sync_mode: str
    generation: int
    #: The same for two syncs that brought the same: a digest of the records and what came before.
    version: str
    #: Bytes of the records as the connector sent them.
    sent_bytes: int = 0
    drift: Drift = Drift()


class Commit(BaseModel):
    """A sync that ended whole, or a checkpoint of one."""

    model_config = ConfigDict(frozen=True)

    number: int
    sync: str
    connector: str
    #: The run that asked for the sync; empty if none did.
    run: str = ""
    started_at: str
    ended_at: str
    #: By the name of the stream's table; a checkpoint has only the one that it is of.
    streams: Mapping[str, StreamCommit]
    #: The Airbyte state message of each stream that has one, after this commit: as an object, or
    #: as JSON text if numbers would lose digits.
    state: Mapping[str, Any]
    #: Whether the sync ended with it.
    complete: bool = True
    #: The version of every stream in the lake after this commit, as far as it is not in `streams`.
    versions: Mapping[str, str] = {}

    @property
    def rows(self) -> int:
        return sum(stream.rows for stream in self.streams.values())

    def all_versions(self) -> dict[str, str]:
        """The version of every stream that the lake holds, after this commit."""
        return {**self.versions, **{name: each.version for name, each in self.streams.items()}}


class CommitLog:
    """The commits of one connection, in order."""

    def __init__(self, lake: Lake, domain: str, connection: str) -> None:
        self._lake = lake
        self._connection = f"{domain}/{connection}"
        self.prefix = f"{domain}/{connection}/_commits"

    def _key(self, number: int) -> str:
        return f"{self.prefix}/{number:012d}.json"

    def numbers(self, after: int = 0) -> list[int]:
        """The numbers of the commits past `after`, ascending."""
        listed = self._lake.list(self.prefix, after=self._key(after) if after else None)
        return [
            int(name.removesuffix(".json"))
            for name in (item.key.rsplit("/", 1)[-1] for item in listed)
            if name.endswith(".json") and name.removesuffix(".json").isdigit()
        ]

    def read(self, number: int) -> Commit:
        return Commit.model_validate(self._lake.read_json(self._key(number)))

    def find(self, number: int) -> Commit | None:
        """The commit of this number, if there is one."""
        if number in self.numbers(after=number - 1)[:1]:
            return self.read(number)
        return None

    def since(self, number: int) -> list[Commit]:
        """The commits past `number`, in order."""
        return [self.read(later) for later in self.numbers(after=number)]

    def last(self) -> Commit | None:
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def append(self, commit: Commit) -> None:
        """Make the commit's objects data. Raises BusyError if another sync came first."""
        try:
            self._lake.create_json(self._key(commit.number), commit.model_dump())
        except AlreadyThereError:
            raise BusyError(
                f"{self._connection}: another sync of this connection ended meanwhile (commit "
                f"{commit.number}). What this one wrote is not used; run it again."
            ) from None
