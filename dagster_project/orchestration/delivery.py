"""Telling the catalog what happened: Dagster's event log is followed, and nothing else asked.

So no run waits for the catalog, and none can lose what it did: what a run that was killed has done
is told by whoever saw it die. Each event is told at least once, in the order of the log; the cursor
moves once a destination has taken what came before, or has refused it, which is kept with why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg

from dagster_project.catalog.bookkeeping import Books, DeadLetter, Refused, to_keep
from dagster_project.catalog.destination import DECLARATIONS, Destination
from dagster_project.catalog.files import as_proposal, as_record
from dagster_project.catalog.history import told_proposals
from dagster_project.catalog.metadata import (
    Assets,
    FindInPython,
    assets,
    declared_version,
    static_metadata,
    urns_of,
)
from dagster_project.catalog.said_once import is_said_once, place_of, unsaid
from dagster_project.catalog.withdrawal import withdrawn
from dagster_project.orchestration.event_log import Event, EventLog
from dagster_project.orchestration.told import KINDS, Untellable, told
from dagster_project.settings import Settings

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal

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
    ) -> None:
        """`in_python` finds what domains define in Python."""
        self._settings, self._instance, self._say = settings, instance, say
        self._in_python = in_python
        self._destination, self._books = destination, books
        self._log = EventLog(instance)
        self._urns = urns_of(settings)
        self._assets: Assets | None = None

    def declare(self, version: str | None = None) -> Delivered:
        """Tell what the domains' files declare, if that is not what was told last.

        `version` is theirs from before this process has read any: it keeps what it has read, and
        may not say that it has told what they have become since. Raises DeclarationError for a
        mistake in these files.
        """
        version = version or declared_version(self._settings)
        if version == self._books.declared:
            return Delivered()
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
        self._books.told_declarations(version, to_keep([*kept, *gone]), refused)
        return Delivered(declarations=len(records), refused=len(refused))

    def forget(self, since: datetime) -> None:
        """Have told again what is declared, and what happened since then."""
        self._books.forget(self._log.last_before(since))

    def catch_up(self) -> Iterator[Delivered]:
        """Tell what happened since the last time, a batch of events at a time."""
        after = self._books.event_id
        up_to = self._log.complete_up_to(after)
        while after < up_to:
            events = self._log.read(after, up_to, KINDS, BATCH)
            last = events[-1].id if len(events) == BATCH else up_to
            # Told again from the same event on, it takes the place of what was told before.
            delivered, refused = self._deliver(f"{after + 1:015d}", events)
            self._books.told_events(last, refused)
            after = last
            yield delivered

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
                events = self._log.read(letter.event_id - 1, letter.event_id, KINDS, 1)
                now, refused = self._deliver(f"replayed-{letter.id:015d}", events)
                self._books.replayed(letter, refused)
                done.add(now)
        return done

    def _deliver(self, name: str, events: Sequence[Event]) -> tuple[Delivered, list[Refused]]:
        if self._assets is None:
            self._assets = assets(self._settings, self._in_python)
        known = self._assets
        numbers: list[int] = []
        proposals: list[Proposal] = []
        refused: list[Refused] = []
        for number, each in told(self._instance, self._log, events):
            if isinstance(each, Untellable):
                refused.append(Refused(number, each.reason, None))
                continue
            found = list(
                told_proposals(self._urns, each, self._settings.ui, known.datasets.get, known.jobs)
            )
            proposals += found
            numbers += [number] * len(found)
        for index, why in self._destination.deliver(name, proposals).items():
            refused.append(Refused(numbers[index], why, as_record(proposals[index])))
        return Delivered(len(events), len(proposals), len(refused)), refused
