"""The process that tells the catalog what happens, for as long as it runs.

It ends when the domains' files, or this code, have changed: whoever started it starts it again, and
the new process knows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from threading import Event

import dagster as dg
import psycopg
import sqlalchemy.exc
from dagster_postgres.utils import DagsterPostgresException

from dagster_project.catalog.bookkeeping import Books, books_of, seen
from dagster_project.catalog.destination import Destination, destination_of
from dagster_project.catalog.metadata import FindInPython, declared_version
from dagster_project.failures import (
    BusyError,
    CatalogError,
    DeclarationError,
    MeshError,
    SettingsError,
    TransientCatalogError,
)
from dagster_project.orchestration.alerts import Message
from dagster_project.orchestration.delivery import Deliverer
from dagster_project.orchestration.diagnosis import LONGEST, PATIENCE
from dagster_project.orchestration.known_assets import KnownAssets
from dagster_project.orchestration.problem import Kind, Problem, by_key, keep, standing
from dagster_project.settings import Settings
from dagster_project.warehouse.connection import masked

#: Under which name, and to whom, what is the matter is told.
NAME, OWNER = "catalog", "who runs the platform"
#: Seconds between two looks at the log and the files, each of which costs runs on the same machine
#: some processor time; and between two tries while nothing can be delivered, at first and at most.
LOOK, FIRST_PAUSE, LONGEST_PAUSE = 5.0, 1.0, 60.0
#: Seconds that a server is left alone at most, however many it asks for.
LONGEST_ASKED = 600.0
#: Seconds between two words of that somebody with these declarations is there.
_SEEN_EVERY = 60.0


def follow(
    settings: Settings, say: Callable[[str], None], ending: Event, in_python: FindInPython
) -> None:
    """Deliver what happens until `ending` is set, or the declarations have changed.

    `in_python` finds what domains define in Python.
    What keeps it from that is told once, noted where `mesh status` finds it, and tried again after
    a pause that grows. Meanwhile, and whenever somebody waits for them, others may have the books.
    """
    if settings.dagster_url is None:
        raise SettingsError("MESH_DAGSTER_URL is not set: `mesh ui` and `mesh catalog deliver` do")
    url = settings.dagster_url.get_secret_value()
    with dg.DagsterInstance.get() as instance, closing(destination_of(settings)) as destination:
        follower = _Follower(settings, url, instance, destination, say, ending, in_python)
        while not ending.is_set():
            try:
                with books_of(url, destination.name, destination.former) as books:
                    if follower.deliver(books):
                        return
            except MeshError as error:
                follower.rest(error)
            else:
                ending.wait(LOOK)


class _Follower:
    def __init__(
        self,
        settings: Settings,
        url: str,
        instance: dg.DagsterInstance,
        destination: Destination,
        say: Callable[[str], None],
        ending: Event,
        in_python: FindInPython,
    ) -> None:
        self._settings, self._url = settings, url
        self._instance, self._destination = instance, destination
        self._say, self._ending, self._in_python = say, ending, in_python
        self._assets = KnownAssets(settings, in_python)
        self._version = declared_version(settings)
        self._pause, self._said = FIRST_PAUSE, ""
        #: By the clock that nobody sets.
        self._failing_since: float | None = None
        self._seen_at: float | None = None
        #: A mistake in the declarations, and when they are read again.
        self._mistake: DeclarationError | None = None
        self._declare_at = 0.0
        #: What people were told is the matter, by this process or one before it.
        self._told: dict[str, Problem] = {}
        #: When they are told again what nobody could hear.
        self._alert_at = 0.0

    def deliver(self, books: Books) -> bool:
        """Deliver until somebody waits for the books; whether the declarations have changed."""
        # Somebody else may have told of it, too.
        self._told = by_key(standing(self._settings.home).get(NAME, ()))
        deliverer = Deliverer(
            *(self._settings, self._instance, self._destination, books),
            *(self._say, self._in_python, self._assets),
        )
        while not self._ending.is_set():
            # Before anything is told: of what is new, this process knows nothing.
            if declared_version(self._settings) != self._version:
                return True
            self._be_seen()
            try:
                self._once(deliverer, books)
            except (BusyError, psycopg.Error):
                # Of the books: who has opened them knows what that means.
                raise
            except MeshError as error:
                self._fails(error, books.failed(str(error)))
                raise
            except (sqlalchemy.exc.SQLAlchemyError, DagsterPostgresException) as error:
                cause = getattr(error, "orig", None) or error.__cause__ or error
                raise TransientCatalogError(
                    f"Dagster's event log does not answer: {masked(str(cause)).strip()}"
                ) from None
            except Exception as error:
                # A mistake of ours: the next process may do better, and people have to know.
                why = f"{type(error).__name__}: {masked(str(error))}. The log has where"
                self._fails(CatalogError(why), books.failed(why))
                raise
            if self._mistake:
                self._fails(self._mistake, books.failed(str(self._mistake)))
                self._say_once(str(self._mistake))
            else:
                self._recover(books)
            if books.are_wanted:
                return False
            self._ending.wait(LOOK)
        return False

    def _once(self, deliverer: Deliverer, books: Books) -> None:
        if time.monotonic() >= self._declare_at:
            try:
                if done := deliverer.declare(self._version):
                    self._say(str(done))
                self._mistake = None
            except DeclarationError as error:
                # What happens can be told meanwhile.
                self._mistake, self._declare_at = error, time.monotonic() + LONGEST_PAUSE
        for done in deliverer.catch_up():
            if done:
                self._say(str(done))
            if self._ending.is_set() or books.are_wanted:
                break

    def _be_seen(self) -> None:
        """Who has older declarations leaves these alone while we are there."""
        now = time.monotonic()
        if self._seen_at is None or now - self._seen_at > _SEEN_EVERY:
            self._seen_at = now
            with suppress(CatalogError):
                seen(self._url, self._destination.name, self._version)

    def _recover(self, books: Books) -> None:
        if self._said:
            self._say("delivers again")
        self._pause, self._said, self._failing_since = FIRST_PAUSE, "", None
        # Also if there was nothing to tell.
        books.recovered()
        refused = books.refused()
        key = Problem(Kind.REFUSED, self._destination.name, "", "/", 0).key
        if not refused:
            self._alert({})
        elif key not in self._told or len(self._told) > 1:
            number, reason = refused
            what = (
                f"{number:,} of what it was told it does not take: `mesh catalog dead-letters` "
                f"lists that, `replay` tells it again and `discard` drops it. The last: {reason}"
            )
            new = Problem(Kind.REFUSED, self._destination.name, what[:LONGEST], "/", time.time())
            self._alert({key: self._told.get(key, new)})

    def _alert(self, found: Mapping[str, Problem]) -> None:
        """Tell people of it as of any other problem; again later if nobody hears of it now."""
        if found == self._told or time.monotonic() < self._alert_at:
            return
        keep(self._settings.home, NAME, found.values())
        message = Message(NAME, self._settings.ui, found, self._told, OWNER)
        try:
            if message:
                message.tell(self._settings, self._say)
            self._told = dict(found)
        except MeshError as error:
            self._alert_at = time.monotonic() + LONGEST_PAUSE
            self._say(str(error))

    def _fails(self, error: MeshError, lasted: float = 0) -> None:
        """It is so, and was for `lasted` seconds; one that lasts is an alert."""
        now = time.monotonic()
        since = self._failing_since = self._failing_since or now
        lasted = max(lasted, now - since)
        if lasted > PATIENCE.total_seconds():
            what = Problem(
                *(Kind.CATALOG, self._destination.name, str(error)[:LONGEST], "/"),
                time.time() - lasted,
            )
            self._alert({what.key: what} | self._told)

    def _say_once(self, said: str) -> None:
        if said != self._said:
            self._said = said
            self._say(said)

    def rest(self, error: MeshError) -> None:
        """Say what is the matter, unless that was said, and wait; one that lasts is an alert."""
        self._be_seen()
        if not isinstance(error, BusyError):
            self._fails(error)
        self._say_once(str(error))
        asked = error.retry_after if isinstance(error, TransientCatalogError) else None
        self._ending.wait(max(self._pause, min(asked or 0, LONGEST_ASKED)))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
