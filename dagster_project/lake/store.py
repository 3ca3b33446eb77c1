"""The lake: objects under a URL. `file://` and `s3://` differ in nothing but the URL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from dagster_project.failures import LakeError

if TYPE_CHECKING:
    from obstore.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Object:
    """An object as a listing shows it."""

    key: str
    size: int
    #: Changes whenever the content is written anew.
    version: str


class AlreadyThereError(LakeError):
    """An object that was to be created exists."""


class Lake:
    """An object store. Opened at first use, so that a process that forks opens its own."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @cached_property
    def store(self) -> ObjectStore:
        from obstore.store import from_url

        try:
            if self.url.startswith("file://"):
                return from_url(self.url, mkdir=True)
            return from_url(self.url)
        except Exception as error:
            raise LakeError(f"the lake at {self.url} cannot be opened: {error}") from error

    def address(self, key: str) -> str:
        """The object's URL, for people and for the catalog."""
        return f"{self.url}/{key}"

    def create(self, key: str, content: bytes) -> None:
        """Write a new object, whole or not at all. Raises AlreadyThereError if it exists."""
        import obstore

        try:
            obstore.put(self.store, key, content, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            raise AlreadyThereError(f"{self.address(key)} exists already") from None
        except (obstore.exceptions.BaseError, OSError) as error:
            raise LakeError(f"{self.address(key)} could not be written: {error}") from error

    def read(self, key: str) -> bytes:
        """The content of an object."""
        import obstore

        try:
            return obstore.get(self.store, key).bytes().to_bytes()
        except (obstore.exceptions.BaseError, OSError) as error:
            raise LakeError(f"{self.address(key)} could not be read: {error}") from error

    def list(self, prefix: str, after: str | None = None) -> Iterator[Object]:
        """The objects under a prefix, in the order of their keys."""
        import obstore

        try:
            found = [
                Object(meta["path"], meta["size"], meta["e_tag"] or str(meta["last_modified"]))
                for chunk in obstore.list(self.store, prefix.rstrip("/") + "/", offset=after)
                for meta in chunk
            ]
        except (obstore.exceptions.BaseError, OSError) as error:
            raise LakeError(f"{self.address(prefix)} could not be listed: {error}") from error
        return iter(sorted(found, key=lambda item: item.key))

    def create_json(self, key: str, value: Any) -> None:
        self.create(key, orjson.dumps(value, option=orjson.OPT_INDENT_2))

    def read_json(self, key: str) -> Any:
        try:
            return orjson.loads(self.read(key))
        except orjson.JSONDecodeError as error:
            raise LakeError(f"{self.address(key)} is not valid JSON: {error}") from None
