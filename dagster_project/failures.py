"""Failures as types: what kind of mistake it was decides what a person, and a retry, does next."""

from __future__ import annotations

from collections.abc import Mapping


class MeshError(Exception):
    """A failure that a person can act on.

    The message says what happened, to which table, file or setting, and what to do next. `mesh`
    prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1
    #: Whether running the same step again can end otherwise. Retry layers obey it.
    transient = False


class SettingsError(MeshError):
    """A setting that is unknown, malformed or missing."""

    exit_code = 2


class DeclarationError(MeshError):
    """A mistake in a file that a domain owns; the message names file, line and what is allowed."""

    exit_code = 2


class BusyError(MeshError):
    """Somebody else holds what is needed: a lock, a port."""

    exit_code = 3


class SourceError(MeshError):
    """A connector or a source system failed, or what it sent is not whole."""


class RefusedFilesError(SourceError):
    """Files of a feed that cannot be loaded as they are; other files of the load may be sound."""

    def __init__(self, why: str, files: Mapping[str, str]) -> None:
        """Why the first one is refused, and all that are, by their partition."""
        others = list(files.values())[1:]
        shown = f"{', '.join(others[:5])}{f' and {len(others) - 5} more' if others[5:] else ''}"
        super().__init__(f"{why}. Nor can be loaded: {shown}" if others else why)
        self.partitions = tuple(files)


class TransientSourceError(SourceError):
    """The source is away, overloaded or slow, or its connector was killed: it can pass later."""

    transient = True


class NotMigratedError(MeshError):
    """The project's own tables in a database are older than this code."""


class NewerDatabaseError(MeshError):
    """What is to be migrated was migrated by a newer release already."""


class WarehouseError(MeshError):
    """The warehouse refused or could not be reached."""


class TransientWarehouseError(WarehouseError):
    """The warehouse is away, or out of connections: the same step can pass later."""

    transient = True


class TransformationError(MeshError):
    """dbt could not build a model, or one of its tests failed."""


class TransientTransformationError(TransformationError):
    """dbt lost the warehouse, or came into another's way: the same build can pass later."""

    transient = True


class LakeError(MeshError):
    """An object could not be read or written, or is not what its name promises."""


class TransientLakeError(LakeError):
    """The lake is away, overloaded or silent: the same step can pass later."""

    transient = True


class CatalogError(MeshError):
    """What is told to the catalog is not there, or is not what it takes."""


class TransientCatalogError(CatalogError):
    """The catalog is away, overloaded or slow: the same can be told later."""

    transient = True

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        """Why, and for how many seconds it asks to be left alone, if it does."""
        super().__init__(why)
        self.retry_after = retry_after
