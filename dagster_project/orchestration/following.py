"""The process that tells the catalog what happens, for as long as it runs.

It ends when the domains' files, or this code, have changed: whoever started it starts it again, and
the new process knows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from threading import Event

import dagster as dg
import sqlalchemy.exc

from dagster_project.catalog.bookkeeping import Books, books_of
from dagster_project.catalog.destination import Destination, destination_of
from dagster_project.catalog.metadata import FindInPython, declared_version
from dagster_project.failures import (
    BusyError,
    DeclarationError,
    MeshError,
    SettingsError,
    TransientCatalogError,
)
from dagster_project.orchestration.alerts import Message
from dagster_project.orchestration.delivery import Deliverer
from dagster_project.orchestration.diagnosis import LONGEST, PATIENCE
from dagster_project.orchestration.problem import Kind, Problem, by_key, keep, standing
from dagster_project.settings import Settings
from dagster_project.warehouse.connection import masked

#: Under which name, and to whom, what is the matter is told.
NAME, OWNER = "catalog", "who runs the platform"
#: Seconds between two looks at the log and the files; and between two tries while nothing can be
#: delivered, at first and at most.
LOOK, FIRST_PAUSE, LONGEST_PAUSE = 1.0, 1.0, 60.0


def follow(
    settings: Settings, say: Callable[[str], None], ending: Event, in_python: FindInPython
) -> None:
    """Deliver what happens until `ending` is set, or the declarations have changed.

    `in_python` finds what domains define in Python.
    What keeps it from that is told once, noted where `mesh status` finds it, and tried again after
    a pause that grows.
    """
    if settings.dagster_url is None:
        raise SettingsError("MESH_DAGSTER_URL is not set: `mesh ui` and `mesh catalog deliver` do")
    url = settings.dagster_url.get_secret_value()
    with dg.DagsterInstance.get() as instance, closing(destination_of(settings)) as destination:
        follower = _Follower(settings, instance, destination, say, ending, in_python)
        while not ending.is_set():
            try:
                with books_of(url, destination.name) as books:
                    if follower.deliver(books):
                        return
            except MeshError as error:
                follower.rest(error)


class _Follower:
    def __init__(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        destination: Destination,
        say: Callable[[str], None],
        ending: Event,
        in_python: FindInPython,
    ) -> None:
        self._in_python = in_python
        self._settings, self._instance, self._destination = settings, instance, destination
        self._say, self._ending = say, ending
        self._version = declared_version(settings)
        self._pause, self._said = FIRST_PAUSE, ""
        self._failing_since: float | None = None
        #: What people were told is the matter, by this process or one before it.
        self._told = by_key(standing(settings.home).get(NAME, ()))

    def deliver(self, books: Books) -> bool:
        """Deliver for as long as the books are open; whether the declarations have changed."""
        deliverer = Deliverer(
            *(self._settings, self._instance, self._destination, books),
            *(self._say, self._in_python),
        )
        while not self._ending.is_set():
            # Before anything is told: of what is new, this process knows nothing.
            if declared_version(self._settings) != self._version:
                return True
            try:
                self._once(deliverer)
            except MeshError as error:
                books.failed(str(error))
                self.rest(error)
            except sqlalchemy.exc.OperationalError as error:
                raise TransientCatalogError(
                    f"Dagster's event log does not answer: {masked(str(error.orig)).strip()}"
                ) from None
            else:
                self._recover()
            self._ending.wait(LOOK)
        return False

    def _once(self, deliverer: Deliverer) -> None:
        mistake: DeclarationError | None = None
        try:
            if done := deliverer.declare(self._version):
                self._say(str(done))
        except DeclarationError as error:
            # What happens can be told meanwhile.
            mistake = error
        for done in deliverer.catch_up():
            if done:
                self._say(str(done))
            if self._ending.is_set():
                break
        if mistake:
            raise mistake

    def _recover(self) -> None:
        if self._said:
            self._say("delivers again")
        self._pause, self._said, self._failing_since = FIRST_PAUSE, "", None
        if self._told:
            self._alert({})

    def _alert(self, found: Mapping[str, Problem]) -> None:
        """Tell people of it as of any other problem; again later if nobody hears of it now."""
        keep(self._settings.home, NAME, found.values())
        message = Message(NAME, self._settings.ui, found, self._told, OWNER)
        try:
            if message:
                message.tell(self._settings, self._say)
            self._told = dict(found)
        except MeshError as error:
            self._say(str(error))

    def rest(self, error: MeshError) -> None:
        """Say what is the matter, unless that was said, and wait; one that lasts is an alert."""
        said = str(error)
        since = self._failing_since = self._failing_since or time.time()
        if time.time() - since > PATIENCE.total_seconds() and not isinstance(error, BusyError):
            what = Problem(Kind.CATALOG, self._destination.name, said[:LONGEST], "/", since)
            self._alert(self._told or by_key([what]))
        if said != self._said:
            self._said = said
            self._say(said)
        asked = error.retry_after if isinstance(error, TransientCatalogError) else None
        is_long = isinstance(error, BusyError)
        self._ending.wait(LONGEST_PAUSE if is_long else max(self._pause, asked or 0))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
