"""What people are told of a sync."""

from __future__ import annotations

import pytest

from dagster_project.ingestion.synced import Synced, SyncProgress, SyncReport
from tests.ingestion.scripted import WHOLE, Shop


def progress(seconds: float) -> SyncProgress:
    return SyncProgress("users", 120_000, 34_100_000, seconds, 126_000, 36_000_000)


@pytest.fixture
def said() -> list[str]:
    return []


def test_progress_is_reported_every_few_seconds_of_a_long_sync(said: list[str]) -> None:
    report = SyncReport(said.append)
    for second in range(1, 17):
        report.progress(progress(second))
    assert said == [
        "users: 120,000 rows so far, 34.1 MB (25,200 rows/s, 7.2 MB/s)",
        "users: 120,000 rows so far, 34.1 MB (12,600 rows/s, 3.6 MB/s)",
        "users: 120,000 rows so far, 34.1 MB (8,400 rows/s, 2.4 MB/s)",
    ]


def test_a_last_line_sums_up(shop: Shop, said: list[str]) -> None:
    done = shop.sync(WHOLE)
    SyncReport(said.append).end(done)
    SyncReport(said.append).end(Synced(done.commits, joined=True))
    assert said[0].startswith("3 rows, 0.0 MB in 0.")
    assert said[0].endswith(" MB/s)")
    assert said[1] == f"another sync, which is not made twice, brought {said[0]}"
