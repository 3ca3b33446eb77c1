"""Telling the catalog what happened: Dagster's event log is followed, and nothing else asked.

So no run waits for the catalog, and none can lose what it did: what a run that was killed has done
is told by whoever saw it die. Each event is told at least once, in the order of the log; the cursor
moves once a destination has taken what came before, or has refused it, which is kept with why.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg

from dagster_project.catalog.bookkeeping import NEWER_HOLDS, Books, to_keep
from dagster_project.catalog.dead_letters import DeadLetter, Refused
from dagster_project.catalog.destination import DECLARATIONS, Destination
from dagster_project.catalog.events import RunTold
from dagster_project.catalog.files import as_proposal, as_record
from dagster_project.catalog.history import told_proposals
from dagster_project.catalog.metadata import (
    FindInPython,
    declared_version,
    static_metadata,
    urns_of,
)
from dagster_project.catalog.said_once import is_said_once, place_of, unsaid
from dagster_project.catalog.withdrawal import withdrawn
from dagster_project.failures import BusyError
from dagster_project.orchestration.event_log import Event, EventLog
from dagster_project.orchestration.known_assets import KnownAssets
from dagster_project.orchestration.told import KINDS, Untellable, told
from dagster_project.settings import PROJECT, Settings

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal
    from dagster_project.catalog.events import Told

#: Events that are told at once.
BATCH = 500


@dataclass(slots=True)
class Delivered:
    """What was delivered."""

    events: int = 0
    records: int = 0
    refused: int = 0
    #: Records of the declarations, if these had changed.
    declarations: int = 0

    def add(self, other: Delivered) -> None:
        """Count what was delivered then, too."""
        self.events += other.events
        self.records += other.records
        self.refused += other.refused
        self.declarations += other.declarations

    def __bool__(self) -> bool:
        return bool(self.events or self.declarations)

    def __str__(self) -> str:
        parts = []
        if self.declarations:
            parts.append(f"the declarations in {self.declarations:,} records")
        if self.events:
            parts.append(f"{self.events:,} events in {self.records:,} records")
        if self.refused:
            parts.append(f"{self.refused:,} refused, which `mesh catalog dead-letters` lists")
        return ", ".join(parts)


class Deliverer:
    """Delivers to one destination, whose books are open."""

    def __init__(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        destination: Destination,
        books: Books,
        say: Callable[[str], None],
        in_python: FindInPython,
        known: KnownAssets | None = None,
    ) -> None:
        """`in_python` finds what domains define in Python; what is `known` need not be read."""
        self._settings, self._instance, self._say = settings, instance, say
        self._in_python = in_python
        self._known = known or KnownAssets(settings, in_python)
        self._destination, self._books = destination, books
        self._log = EventLog(instance)
        self._urns = urns_of(settings)

    def declare(self, version: str | None = None) -> Delivered:
        """Tell what the domains' files declare, if that is not what was told last.

        `version` is theirs from before this process has read any: it keeps what it has read, and
        may not say that it has told what they have become since. Raises DeclarationError for a
        mistake in these files, BusyError if somebody who has newer ones is there: he knows what
        happens, too.
        """
        version = version or declared_version(self._settings)
        if version == self._books.declared:
            return Delivered()
        if self._books.is_outdated(version, _who()):
            raise BusyError(
                f"{self._destination.name} is told by another process, whose declarations are "
                "newer than these: as during a rollout. If these are to be told again, end that "
                f"one; they are {NEWER_HOLDS / 60:.0f} minutes after it was last there"
            )
        now = [
            as_record(each) for each in static_metadata(self._settings, self._say, self._in_python)
        ]
        before = self._books.declarations()
        gone = list(withdrawn(before, now, self._settings.env.speaks_for_all))
        records = [*(unsaid(before, now) if self._destination.is_edited else now), *gone]
        refusals = self._destination.deliver(DECLARATIONS, [as_proposal(r) for r in records])
        refused = [Refused(None, why, records[index]) for index, why in refusals.items()]
        # What was refused was not told.
        unknown = {place_of(each.record) for each in refused if each.record}
        kept = [r for r in now if not (is_said_once(r) and place_of(r) in unknown)]
        self._books.told_declarations(version, to_keep([*kept, *gone]), refused, _who())
        return Delivered(declarations=len(records), refused=len(refused))

    def forget(self, since: datetime) -> None:
        """Have told again what is declared, and what happened since then."""
        self._books.forget(self._log.last_before(since))

    def catch_up(self) -> Iterator[Delivered]:
        """Tell what happened since the last time, a batch of events at a time."""
        after = self._books.event_id
        if not self._log.goes_on(after, self._books.event_mark):
            self._say(
                f"event {after} of Dagster's log, which was told last, is not there or is another "
                "one: the log was restored from a backup, or made anew. All of it is told again"
            )
            self._books.begin_anew()
            after = 0
        reached = self._books.reached
        up_to = self._log.complete_up_to(after)
        while after < up_to:
            part = self._log.read(after, up_to, KINDS, BATCH)
            # Told again from the same event on, it takes the place of what was told before.
            delivered, refused = self._deliver(f"{after + 1:015d}", part.events)
            if gone := self._gone(max(after, reached), part.up_to):
                self._say(gone)
            self._books.told_events(part.up_to, refused, self._log.mark(part.up_to))
            after = part.up_to
            yield delivered

    def _gone(self, after: int, up_to: int) -> str:
        """What is to be said of events that nobody was told of; empty if there are none."""
        if not after or not (number := self._log.missing(after, up_to)):
            return ""
        return (
            f"{number:,} of the events {after + 1} to {up_to} of Dagster's log are not there, and "
            "the catalog is not told of them: their runs were deleted before it was, or the "
            "database was killed, or rolled back, when it wrote them"
        )

    def replay(self, letters: Sequence[DeadLetter]) -> Delivered:
        """Tell once more what was refused. What is taken is no dead letter any more."""
        done = Delivered()
        with_record = [letter for letter in letters if letter.record is not None]
        records = [letter.record for letter in letters if letter.record is not None]
        if records:
            # Together, so that a server that takes nothing now is told from one that refuses one.
            name = f"replayed-{with_record[0].id:015d}"
            refusals = self._destination.deliver(name, [as_proposal(each) for each in records])
            for place, letter in enumerate(with_record):
                why = refusals.get(place)
                refused = [Refused(letter.event_id, why, letter.record)] if why else []
                self._books.replayed(letter, refused)
            done.add(Delivered(0, len(records), len(refusals)))
        for letter in letters:
            if letter.record is None and letter.event_id is not None:
                part = self._log.read(letter.event_id - 1, letter.event_id, KINDS, 1)
                now, refused = self._deliver(f"replayed-{letter.id:015d}", part.events)
                self._books.replayed(letter, refused)
                done.add(now)
        return done

    def _deliver(self, name: str, events: Sequence[Event]) -> tuple[Delivered, list[Refused]]:
        known = self._known.of(self._books)
        numbers: list[int] = []
        proposals: list[Proposal] = []
        refused: list[Refused] = []
        for number, each in told(self._instance, self._log, events):
            if why := self._untellable(each):
                refused.append(Refused(number, why, None))
                continue
            assert not isinstance(each, Untellable)
            ui, dataset = self._settings.ui, known.datasets.get
            try:
                found = list(told_proposals(self._urns, each, ui, dataset, known.jobs))
            except Exception as error:  # noqa: BLE001 - it is to hold up no other
                why = f"event {number}: {type(error).__name__}: {error}"
                refused.append(Refused(number, why, None))
                continue
            proposals += found
            numbers += [number] * len(found)
        for index, why in self._destination.deliver(name, proposals).items():
            refused.append(Refused(numbers[index], why, as_record(proposals[index])))
        return Delivered(len(events), len(proposals), len(refused)), refused

    def _untellable(self, each: Told | Untellable) -> str:
        """Why it cannot be told now; empty if it can."""
        if isinstance(each, Untellable):
            return each.reason
        if not self._known.mistake or isinstance(each, RunTold):
            return ""
        if each.asset_key in self._known.of(self._books).datasets:
            return ""
        return f"{'/'.join(each.asset_key)} is not known, as {self._known.mistake}"


def _who() -> str:
    """Which checkout, or image, this is."""
    return f"{socket.gethostname()}:{PROJECT}"
