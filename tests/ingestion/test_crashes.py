"""Ingestion is killed at every stage and run again: the tables are those of an undisturbed run.

With EVERY_MOMENT set in the environment, at every moment that there is (some minutes), else at each
kind of moment where there are few, and at an even choice of them where there are many.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Self, TypeVar

import pytest

from tests.ingestion.aftermath import Outcome, World
from tests.ingestion.crashes import FAILED, GRACE, Job, Lane
from tests.lake.s3 import S3Server

KILLED = -signal.SIGKILL
EVERY_MOMENT = "EVERY_MOMENT" in os.environ
#: How many different moments runs were killed at, by test.
MOMENTS: dict[str, int] = {}

T = TypeVar("T")


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    """As many as this machine has cores for, at least the two that a race needs."""
    lanes = [Lane() for _ in range(2)]
    yield lanes
    for lane in lanes:
        lane.close()


@pytest.fixture
def worlds(lanes: list[Lane], tmp_path: Path, warehouse_url: str) -> list[World]:
    """A world for each lane, all in one warehouse."""
    return [
        World(lane, tmp_path / str(number), f"shop{number}", warehouse_url)
        for number, lane in enumerate(lanes)
    ]


@pytest.fixture
def world(worlds: list[World]) -> World:
    return worlds[0]


@pytest.fixture
def told(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[int, int], None]:
    """Says at how many moments, of how many, the test has killed."""

    def told(killed: int, of: int) -> None:
        MOMENTS[request.node.name] = killed
        record_property("told", f"killed at {killed} moments of {of}")

    return told


@dataclass(frozen=True, slots=True)
class Expected:
    """What is there after the second turn, however often it was killed before."""

    kind: str
    begun: list[bool]
    outcome: Outcome

    @classmethod
    def of(
        cls, world: World, kind: str, turn: int = 2, anew: Callable[[], None] | None = None
    ) -> Self:
        """By an undisturbed run of the turn; leaves the world as it was, by `anew`."""
        anew = anew or world.again
        anew()
        world.finish(world.job(kind, turn))
        outcome = world.outcome()
        assert not outcome.wrong
        anew()
        return cls(kind, world.commits(), outcome)

    def complaints(self, world: World) -> list[str]:
        """What the run that came last has left otherwise than an undisturbed one."""
        found = [f"it left {what}" for what in world.leftovers()]
        syncs = sum(world.commits()) - sum(self.begun)
        # What is only appended to would be there twice; the rest is the same after two.
        if syncs not in ((0,) if self.kind == "feed" else (1, 2)[: 1 + (self.kind != "sync")]):
            found.append(f"it has committed {syncs} syncs")
        outcome = world.outcome()
        for table in sorted({*outcome.rows, *self.outcome.rows}):
            there, wanted = outcome.rows.get(table), self.outcome.rows.get(table)
            if there != wanted:
                found.append(f"{table} holds {there}, not {wanted}")
        for name in ("loaded", "partitions", "wrong"):
            there, wanted = getattr(outcome, name), getattr(self.outcome, name)
            if there != wanted:
                found.append(f"{name}: {there}, not {wanted}")
        return found


def moments_of(world: World, job: Job) -> list[str]:
    """The moments of the run, by their names; the same each time."""
    trace = world.folder / "trace"
    world.finish(job.but(trace=str(trace)))
    return trace.read_text().splitlines()


def chosen(names: Sequence[str], most: int) -> list[int]:
    """The first and the last of each kind of moment; if these are too many, evenly some of them.

    Those at which something is written half are never left out.
    """
    if EVERY_MOMENT:
        return list(range(len(names)))
    first = {name: n for n, name in reversed([*enumerate(names)])}
    last = {name: n for n, name in enumerate(names)}
    kinds = {*first.values(), *last.values()}
    always = {n for n in kinds if names[n].startswith("write half of")}
    others = sorted(kinds - always)
    step = max(1.0, len(others) / (most - len(always)))
    taken = {others[int(n * step)] for n in range(min(most - len(always), len(others)))}
    return sorted(always | taken)


def in_all(worlds: list[World], trials: Iterable[T], try_it: Callable[[World, T], None]) -> None:
    """Make the trials, in each world one at a time; all that fail are told."""
    free: SimpleQueue[World] = SimpleQueue()
    for world in worlds:
        free.put(world)

    def one(trial: T) -> str:
        world = free.get()
        try:
            world.again()
            try_it(world, trial)
        except AssertionError as error:
            return f"{trial}: {error}\n{world.log}"
        finally:
            free.put(world)
        return ""

    with ThreadPoolExecutor(len(worlds)) as pool:
        failed = [failure for failure in pool.map(one, trials) if failure]
    assert not failed, "\n\n".join(failed)


def begin(worlds: list[World], kind: str) -> Expected:
    """Have the first turn behind all worlds."""
    with ThreadPoolExecutor(len(worlds)) as pool:
        list(pool.map(lambda world: world.begin(kind), worlds))
    return Expected.of(worlds[0], kind)


def run_again(world: World, expected: Expected) -> None:
    """The run that is not killed, and what is there after it."""
    world.finish(world.job(expected.kind))
    assert not expected.complaints(world)
    assert not world.connectors_outliving(GRACE + 5)


@pytest.mark.parametrize(("kind", "most"), [("sync", 40), ("checkpoints", 24), ("feed", 16)])
def test_killed_at_any_moment(
    worlds: list[World], kind: str, most: int, told: Callable[[int, int], None]
) -> None:
    expected = begin(worlds, kind)
    names = moments_of(worlds[0], worlds[0].job(kind))
    # Checkpoints are of the sync: the loads after it are killed in the first case.
    there = names.index("connect to the warehouse") if kind == "checkpoints" else len(names)
    moments = chosen(names[:there], most)

    def kill(world: World, moment: int) -> None:
        code = world.run(world.job(kind, moment=moment, named=names[moment]))
        assert code == KILLED, f"{names[moment]}: {code}"
        run_again(world, expected)

    in_all(worlds, moments, kill)
    told(len(moments), len(names))
    assert len(moments) >= 16


def test_killed_at_any_moment_of_the_first_run(
    world: World, told: Callable[[int, int], None]
) -> None:
    """In a warehouse that has nothing at all."""
    expected = Expected.of(world, "sync", turn=1, anew=world.empty)
    names = moments_of(world, world.job("sync", turn=1))
    moments = chosen(names, 20)
    for moment in moments:
        world.empty()
        code = world.run(world.job("sync", turn=1, moment=moment, named=names[moment]))
        assert code == KILLED, f"{names[moment]}: {code}"
        world.finish(world.job("sync", turn=1))
        assert not expected.complaints(world), names[moment]
    told(len(moments), len(names))


def test_killed_twice_also_while_it_clears_up(
    worlds: list[World], told: Callable[[int, int], None]
) -> None:
    kind = "checkpoints"
    expected = begin(worlds, kind)
    world = worlds[0]
    names = moments_of(world, world.job(kind))
    objects = [n for n, name in enumerate(names) if name.startswith("write an object")]
    last = len(names) - 1 - names[::-1].index("write a commit")
    # With the most left behind, the next one is killed at each moment until its connector starts.
    world.again()
    world.run(world.job(kind, moment=last))
    clearing = moments_of(world, world.job(kind))
    pairs = [(last, n) for n in range(clearing.index("start the connector"))]
    chance = random.Random(3)
    pairs += [(chance.randint(objects[0], last), chance.randint(10, 100)) for _ in range(6)]

    def kill(world: World, pair: tuple[int, int]) -> None:
        assert world.run(world.job(kind, moment=pair[0])) == KILLED
        code = world.run(world.job(kind, moment=pair[1]))
        assert code == KILLED, f"{code}"
        run_again(world, expected)

    in_all(worlds, pairs, kill)
    told(len(pairs), len(pairs))


def test_killed_at_random_times(worlds: list[World], told: Callable[[int, int], None]) -> None:
    """With nothing in its way; the connector is as slow as the rest."""
    kind = "checkpoints"
    expected = begin(worlds, kind)
    begun = time.monotonic()
    worlds[0].again()
    worlds[0].finish(worlds[0].job(kind, pause=0.002))
    longest = time.monotonic() - begun
    wanted, killed = 300 if EVERY_MOMENT else 12, list[bool]()

    def kill(world: World, seed: int) -> None:
        if sum(killed) >= wanted:
            return
        after = random.Random(seed).uniform(0.0, longest)
        code = world.run(world.job(kind, pause=0.002, killed_after=after))
        assert code in (KILLED, 0)
        killed.append(code == KILLED)
        run_again(world, expected)

    # Some end before they are killed: more of them the busier the machine was when one was timed.
    in_all(worlds, range(5 * wanted), kill)
    told(sum(killed), len(killed))
    assert sum(killed) >= wanted


@pytest.mark.parametrize("kind", ["sync", "checkpoints"])
@pytest.mark.parametrize("stops", ["dies", "loses its minder"])
def test_a_connector_that_is_killed(
    worlds: list[World], kind: str, stops: str, told: Callable[[int, int], None]
) -> None:
    """After each of its lines, or so many of them; or its minder is, and it goes on."""
    expected = begin(worlds, kind)
    lines = sum(name.startswith("hear ") for name in moments_of(worlds[0], worlds[0].job(kind)))
    lines -= 1  # the end is none
    step = 1 if EVERY_MOMENT else 9
    after = [*range(1, lines, step), lines]

    def kill(world: World, line: int) -> None:
        assert world.run(world.job(kind, stops=stops, stops_after=line)) == FAILED
        assert "SourceError: " in world.log
        begun, commits = expected.begun, world.commits()
        assert commits[: len(begun)] == begun
        # What was checkpointed is whole as far as it goes.
        assert not any(commits[len(begun) :])
        assert kind == "checkpoints" or commits == begun
        run_again(world, expected)

    in_all(worlds, after, kill)
    told(len(after), lines)


def test_a_connector_that_hears_nothing_ends_after_the_grace(world: World) -> None:
    world.begin("sync")
    world.lane.start(world.job("sync", stops="hangs", stops_after=5, deaf=True, killed_after=3.0))
    most = 0
    deadline = time.monotonic() + 3.0
    while most < 2 and time.monotonic() < deadline:
        most = max(most, len(world.connectors()))
    assert most == 2, "the minder and the connector"
    assert world.lane.wait() == KILLED
    assert not world.connectors_outliving(GRACE + 5)


def test_two_runs_at_once(worlds: list[World]) -> None:
    """The same home and the same lake: one waits, and takes what the other brought."""
    world, other = worlds
    world.begin("sync")
    expected = Expected.of(world, "sync")
    job = world.job("sync", begins_after=0.3)
    world.lane.start(job)
    other.lane.start(job)
    assert (world.lane.wait(), other.lane.wait()) == (0, 0), world.log
    assert world.started == 1
    assert not expected.complaints(world)


def test_killed_on_s3(
    lanes: list[Lane],
    tmp_path: Path,
    s3_server: S3Server,
    warehouse_url: str,
    told: Callable[[int, int], None],
) -> None:
    """With a new bucket each time, as nothing there can be put back."""

    def world_of(number: int) -> World:
        bucket = f"{s3_server.new_bucket()}/lake"
        lane, folder = lanes[number % len(lanes)], tmp_path / f"s3-{number}"
        found = World(
            *(lane, folder, f"shop{number}", warehouse_url), bucket, dict(s3_server.environment)
        )
        found.finish(found.job("checkpoints", turn=1))
        found.sync_anew()
        return found

    calm = world_of(0)
    begun = calm.commits()
    names = moments_of(calm, calm.job("checkpoints"))
    once = calm.outcome()
    commits = [n for n, name in enumerate(names) if name == "write a commit"]
    moments = [
        names.index("hear STATE of events"),
        *(commits[0] + 1, commits[-1]),
    ]

    def kill(number: int) -> list[str]:
        world = world_of(number)
        moment = moments[number - 1]
        code = world.run(world.job("checkpoints", moment=moment, named=names[moment]))
        assert code == KILLED, f"{code}: {world.log}"
        world.finish(world.job("checkpoints"))
        outcome = world.outcome()
        assert outcome == once, names[moment]
        return [f"{names[moment]}: {what}" for what in world.leftovers()]

    assert sum(begun) == 1
    for number in range(1, len(moments) + 1):
        assert not kill(number)
    told(len(moments), len(names))


def test_these_were_many_moments(record_property: Callable[[str, object], None]) -> None:
    """All tests before this one together."""
    killed = sum(MOMENTS.values())
    record_property("told", f"killed at {killed} moments in all")
    assert killed >= 50
