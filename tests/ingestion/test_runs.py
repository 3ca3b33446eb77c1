"""Runs of Dagster that are killed and followed by another: what is appended is there once a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ingestion.aftermath import World
from tests.ingestion.crashes import Lane
from tests.ingestion.test_crashes import moments_of

#: Between the end of the sync and that of the run, to its very end.
MOMENTS = (
    "delete a marker",
    "record STEP_OUTPUT of airbyte_D_main",
    "within COMMIT",
    "record PIPELINE_SUCCESS of None",
)


@pytest.fixture
def world(tmp_path: Path, warehouse_url: str) -> Iterator[World]:
    lane = Lane()
    yield World(lane, tmp_path / "world", "shop", warehouse_url)
    lane.close()


def test_a_run_after_one_that_was_killed_does_not_append_again(world: World) -> None:
    def snapshots() -> int:
        (good, bad) = (len(world.outcome().rows[name]) for name in ("visits", "visits__rejects"))
        assert good == 4 * bad
        return bad

    job = world.job("run")
    world.finish(job)
    names = moments_of(world, job)
    # After a run that succeeded another one appends: that is what was asked for.
    assert snapshots() == 2
    for number, moment in enumerate(MOMENTS, 3):
        code = world.run(job.but(moment=names.index(moment), named=moment))
        assert code == -signal.SIGKILL, f"{moment}: {code}"
        world.finish(job)
        assert snapshots() == number, moment
        assert sum(world.commits()) == number, moment
    # Its load alone is run again: that ends it, and the next run is another one.
    world.run(job.but(moment=names.index("connect to the warehouse")))
    world.finish(job.but(syncs=False))
    world.finish(job)
    assert snapshots() == number + 2
