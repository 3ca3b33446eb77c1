"""What the catalog has of Dagster's assets, as far as the domains' files let one know it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dagster_project.catalog.metadata import Assets, FindInPython, assets
from dagster_project.failures import DeclarationError
from dagster_project.settings import Settings

if TYPE_CHECKING:
    from dagster_project.catalog.bookkeeping import Books

#: Seconds until files that are mistaken are read again.
_AGAIN = 60.0


class KnownAssets:
    """The assets of all domains, read once a process.

    A mistake in one domain's files is not to keep what happens to the others from being told: as
    long as it is there, what was known before it is what is known.
    """

    def __init__(self, settings: Settings, in_python: FindInPython) -> None:
        """`in_python` finds what domains define in Python."""
        self._settings, self._in_python = settings, in_python
        self._known: Assets | None = None
        #: What is wrong with the files; empty if nothing is.
        self.mistake = ""
        self._read_at = 0.0

    def of(self, books: Books) -> Assets:
        """The assets; those that the books keep if files are mistaken, and `mistake` says how.

        Raises DeclarationError for files that have been mistaken from the first.
        """
        is_due = self.mistake and time.monotonic() - self._read_at > _AGAIN
        if self._known is not None and not is_due:
            return self._known
        self._read_at = time.monotonic()
        try:
            self._known, self.mistake = assets(self._settings, self._in_python), ""
        except DeclarationError as error:
            kept = books.assets()
            if kept is None:
                raise
            self._known, self.mistake = Assets.from_json(kept), str(error)
        else:
            books.keep_assets(self._known.as_json())
        return self._known
