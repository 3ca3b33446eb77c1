"""What a sync that is killed leaves behind, and its removal by the next.

Before its first object a sync writes a marker; when it has ended it removes what no commit names,
and the marker last. A marker that is found therefore is of a sync that runs or was killed: one of
this home is dead if the lock of its connection is held here, one of another home long after its
deadline, as no sync commits after that.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dagster_project.failures import BusyError, LakeError
from dagster_project.lake.commits import CommitLog
from dagster_project.lake.store import Lake
from dagster_project.warehouse import lease

#: After its deadline, before a sync of another home is taken for dead.
MARGIN = timedelta(hours=1)


class Marker(BaseModel):
    """A sync that has begun."""

    model_config = ConfigDict(frozen=True)

    home: str
    started_at: AwareDatetime
    deadline: AwareDatetime
    #: The connection's last commit when it began; all of its own are later.
    after: int
    #: Where its objects are.
    prefixes: list[str]


def home_id(home: Path) -> str:
    """What tells this home from every other that uses the same lake."""
    path = home / "syncs" / "id"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A link is there with its content or not at all, and the first one stays.
    with suppress(FileExistsError):
        path.symlink_to(secrets.token_hex(16))
    return str(path.readlink())


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers of a connection's syncs."""

    lake: Lake
    domain: str
    connection: str

    @property
    def prefix(self) -> str:
        return f"{self.domain}/{self.connection}/_syncs"

    def write(self, sync: str, marker: Marker) -> None:
        self.lake.create_json(f"{self.prefix}/{sync}.json", marker.model_dump(mode="json"))

    def clear(self, sync: str, marker: Marker) -> None:
        """Remove the objects of a sync that no commit names, then its marker."""
        log = CommitLog(self.lake, self.domain, self.connection)
        named = {
            item.key
            for commit in log.since(marker.after)
            for stream in commit.streams.values()
            for item in stream.objects
        }
        prefixes = marker.prefixes
        left = [i.key for prefix in prefixes for i in self.lake.list(prefix) if i.key not in named]
        # What was written of an object in part, no listing shows: it goes with whatever is deleted
        # from its folder, if only a name that nothing has.
        nothing = [f"{prefix}/nothing" for prefix in (*prefixes, log.prefix)]
        self.lake.delete([*left, *nothing])
        self.remove(sync)

    def remove(self, sync: str) -> None:
        """Remove a marker: commits name all that the sync wrote."""
        self.lake.delete([f"{self.prefix}/{sync}.json"])

    def clear_dead(self, home: str, say: Callable[[str], None]) -> None:
        """Clear up after the syncs that are surely dead, as far as the lake allows.

        To be called under the connection's lock of this home.
        """
        dead_before = datetime.now(UTC) - MARGIN
        try:
            markers = list(self.lake.list(self.prefix))
        except LakeError as error:
            say(f"what stopped syncs left in the lake could not be listed: {error}")
            return
        for found in markers:
            try:
                marker = Marker.model_validate(self.lake.read_json(found.key))
                if marker.home == home or marker.deadline < dead_before:
                    self.clear(found.key.rsplit("/", 1)[-1].removesuffix(".json"), marker)
            except ValidationError:
                say(f"{found.key} is not the marker of a sync: remove it")
            except LakeError as error:
                say(f"what a stopped sync left in the lake could not be removed yet: {error}")


@contextmanager
def turn(
    home: Path, domain: str, connection: str, patience: float, say: Callable[[str], None]
) -> Iterator[tuple[Path, bool]]:
    """Be the only sync of the connection from this home: a private folder; whether others waited.

    The folder is for this block only: what a killed sync left there or in another's is removed.
    Raises BusyError if another sync goes on for more than `patience` seconds.
    """
    syncs = home / "syncs"
    syncs.mkdir(parents=True, exist_ok=True)
    name = f"{domain}.{connection}"
    lock = syncs / f"{name}.lock"
    descriptor = lease.acquire(lock, exclusive=True)
    waited = descriptor is None
    if descriptor is None:
        say(f"{domain}/{connection}: another sync is running; waiting for it to end")
        descriptor = lease.acquire(lock, exclusive=True, timeout=patience)
    if descriptor is None:
        raise BusyError(
            f"{domain}/{connection}: another sync of this connection still runs after "
            f"{patience:.0f} s. Wait for it, or end it, and run this again"
        )
    folder = syncs / name
    try:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_others(syncs)
        folder.mkdir(mode=0o700)
        yield folder, waited
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_others(syncs: Path) -> None:
    """Remove the folders of other connections whose sync was killed: they hold secrets."""
    for folder in syncs.iterdir():
        if folder.is_dir():
            with lease.held(folder.with_name(f"{folder.name}.lock"), exclusive=True) as dead:
                if dead:
                    shutil.rmtree(folder, ignore_errors=True)
