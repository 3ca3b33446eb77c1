"""The lake: objects under a URL. `file://` and `s3://` differ in nothing but the URL.

What fails in passing (the server is away, overloaded or silent, an answer gets lost) is tried again
for PATIENCE seconds from its first failure, then it is a TransientLakeError. As a silent server is
waited for a minute, no call goes on for more than four minutes without any progress; but a large
object is given the time that a slow network takes to send it, see `s3.silence`.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import orjson

from dagster_project.failures import LakeError, TransientLakeError
from dagster_project.lake import s3

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

#: Seconds from the first failure within which the same thing is tried again.
PATIENCE = 60.0
#: Seconds before it is tried again; doubled each time, up to the second figure.
PAUSES = (0.2, 5.0)
#: Objects that S3 lists, and deletes, at once.
PAGE = 1000
#: Bytes from which on an object is not in memory twice while it is read, which takes longer.
LARGE = 16 * 2**20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Object:
    """An object as a listing shows it."""

    key: str
    size: int
    #: Changes whenever the content is written anew.
    version: str
    #: When it was written, in UTC.
    modified: datetime


class AlreadyThereError(LakeError):
    """An object that was to be created exists."""


class Lake:
    """An object store. Opened at first use, so that a process that forks opens its own.

    Raises LakeError for what will fail again, TransientLakeError for what may pass.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "file" and "@" in url:
            raise LakeError(
                "the lake's URL has credentials in it, or an @ that looks like it: set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
            )
        self.url = url.rstrip("/")
        #: The folder of a lake on this machine's disk.
        self._folder = Path(url2pathname(parts.path)) if parts.scheme == "file" else None
        #: By how long the server may be silent.
        self._stores: dict[timedelta, ObjectStore] = {}
        #: Of all objects that were read.
        self.bytes_read = 0

    @property
    def on_disk(self) -> bool:
        """Whether it is a folder, in which files can be seen while they are written."""
        return self._folder is not None

    @property
    def store(self) -> ObjectStore:
        return self._store(0)

    def _store(self, size: int) -> ObjectStore:
        """The store, as patient as it has to be with a request of so many bytes."""
        silent = timedelta() if self._folder else s3.silence(size)
        if silent not in self._stores:
            self._stores[silent] = self._opened(silent)
        return self._stores[silent]

    def _opened(self, silent: timedelta) -> ObjectStore:
        from obstore.store import from_url

        try:
            if self._folder:
                return from_url(self.url, mkdir=True, automatic_cleanup=True)
            return from_url(
                self.url, client_options=s3.client_config(silent), retry_config=s3.retry_config()
            )
        except LakeError as error:
            failure = LakeError(f"the lake at {self.url} cannot be opened: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the lake cannot be opened
            failure = LakeError(f"the lake at {self.url} cannot be opened: {s3.refusal(error)}")
        raise failure

    def address(self, key: str) -> str:
        """The object's URL, for people and for the catalog."""
        return f"{self.url}/{key}"

    def create(self, key: str, content: bytes) -> None:
        """Write a new object, whole or not at all.

        Raises AlreadyThereError if it exists with another content. With the same content it is
        taken for what this call wrote, as the answer to a write can get lost.
        """
        import obstore

        def write() -> None:
            try:
                obstore.put(self._store(len(content)), key, content, mode="create")
            except obstore.exceptions.AlreadyExistsError as error:
                try:
                    there = obstore.get(self.store, key).bytes().to_bytes()
                except FileNotFoundError:
                    # S3 also says so while another writer is at work, and that one may fail.
                    raise error from None
                if there != content:
                    raise AlreadyThereError(f"{self.address(key)} exists already") from None

        self._persist(f"{self.address(key)} could not be written", write)

    def replace(self, key: str, content: bytes) -> None:
        """Write an object, in place of what is there."""
        import obstore

        self._persist(
            f"{self.address(key)} could not be written",
            lambda: obstore.put(self._store(len(content)), key, content),
        )

    def read(self, key: str) -> bytes:
        """The content of an object."""
        import obstore

        def read() -> bytes:
            found = obstore.get(self.store, key)
            if found.meta["size"] < LARGE:
                return found.bytes().to_bytes()
            # Piece by piece into the one place that it is given from: it is not there twice.
            content = io.BytesIO()
            for piece in found.stream():
                content.write(piece)
            return content.getvalue()

        content = self._persist(f"{self.address(key)} could not be read", read)
        self.bytes_read += len(content)
        return content

    def list(self, prefix: str, after: str | None = None) -> Iterator[Object]:
        """The objects under a prefix, those past the key `after`, in the order of their keys."""
        found: list[Object] = []
        pages = _Pages(self, prefix.rstrip("/") + "/", after)
        while page := self._persist(f"{self.address(prefix)} could not be listed", pages.next):
            found += [
                Object(
                    meta["path"],
                    meta["size"],
                    meta["e_tag"] or str(meta["last_modified"]),
                    meta["last_modified"],
                )
                for meta in page
            ]
        return iter(sorted(found, key=lambda item: item.key))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error.

        On disk, also the parts of objects that killed writers left in the objects' folders; one
        who is still writing there has to begin that object again, and does.
        """
        remaining = iter(keys)
        while batch := list(islice(remaining, PAGE)):
            self._persist(
                f"{self.address(batch[0])} and {len(batch) - 1} more could not be deleted",
                lambda batch=batch: self._delete(batch),  # type: ignore[misc]
            )

    def _delete(self, keys: Sequence[str]) -> None:
        import obstore

        if self._folder is None:
            obstore.delete(self.store, keys)
            return
        for folder in {(self._folder / key).parent for key in keys}:
            for path in folder.glob("*#*"):
                if re.fullmatch(r".+#\d+", path.name):
                    path.unlink(missing_ok=True)
        for key in keys:
            with suppress(FileNotFoundError):
                obstore.delete(self.store, key)

    def create_json(self, key: str, value: Any) -> None:
        self.create(key, orjson.dumps(value, option=orjson.OPT_INDENT_2))

    def read_json(self, key: str) -> Any:
        try:
            return orjson.loads(self.read(key))
        except orjson.JSONDecodeError as error:
            raise LakeError(f"{self.address(key)} is not valid JSON: {error}") from None

    def _persist(self, failed: str, attempt: Callable[[], T]) -> T:
        """What the attempt gives; made again while it fails in passing and patience lasts.

        What obstore raises is no cause of what this raises, as its text may hold secrets.
        """
        import obstore

        pause, longest = PAUSES
        give_up: float | None = None
        while True:
            try:
                return attempt()
            except (obstore.exceptions.BaseError, OSError) as error:
                refusal = s3.refusal(error)
            if not refusal.transient:
                break
            now = time.monotonic()
            give_up = give_up or now + PATIENCE
            if now + pause > give_up:
                raise TransientLakeError(f"{failed}, tried for {PATIENCE:.0f} s: {refusal}")
            time.sleep(pause)
            pause = min(2 * pause, longest)
        raise LakeError(f"{failed}: {refusal}")


class _Pages:
    """A listing, a page at a time. Goes on after the last page that came, whatever failed then."""

    def __init__(self, lake: Lake, prefix: str, after: str | None) -> None:
        self._lake = lake
        self._prefix = prefix
        self._after = after
        self._stream: Iterator[Any] | None = None

    def next(self) -> Iterable[ObjectMeta]:
        """The next page; empty after the last."""
        import obstore

        if self._stream is None:
            self._stream = obstore.list(
                self._lake.store, self._prefix, offset=self._after, chunk_size=PAGE
            )
        try:
            page = next(self._stream, ())
        except BaseException:
            self._stream = None
            raise
        if page:
            # S3 lists in the order of the keys; disks do not, but do not fail in passing either.
            self._after = page[-1]["path"]
        return page
