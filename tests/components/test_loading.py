"""What a load tells while it goes on."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest

from dagster_project.components import landing_feed, loading
from dagster_project.components.landing_feed import LandingFeed
from dagster_project.components.loading import LoadProgress
from dagster_project.identity import Table
from dagster_project.lake.store import Lake
from dagster_project.warehouse.rejects import RejectsShare
from tests.ingestion.zone import Zone, feed_of


def test_it_tells_rows_and_bytes_once_it_takes_long(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([100.0, 104.0, 110.0, 114.0, 115.0])
    monkeypatch.setattr(loading.time, "monotonic", lambda: next(now))
    lake.create("before", b"x" * 1000)
    lake.read("before")
    said: list[str] = []
    progress = LoadProgress(said.append, lake)
    lake.create("a", b"x" * 2_000_000)
    lake.read("a")
    for rows in (500, 1000, 1500, 3000):
        progress(rows)
    assert said == [
        "1,000 rows so far, 2.0 MB (100 rows/s, 0.2 MB/s)",
        "3,000 rows so far, 2.0 MB (200 rows/s, 0.1 MB/s)",
    ]


@pytest.mark.usefixtures("fresh_settings")
def test_the_load_of_a_feed_tells_it(
    tmp_path: Path,
    warehouse_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(LoadProgress, "EVERY", 0.0)
    monkeypatch.setattr(landing_feed, "domain_of", lambda path: "city")
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    zone = Zone(Lake((tmp_path / "lake").as_uri()), tmp_path / "lake", warehouse_url)
    zone.drop("2026-01-01", "1,2,x\n3,4,y\n")
    context = dg.ComponentTree.for_test().load_context
    defs = LandingFeed(feed_of()).build_defs(context)
    done = dg.materialize(
        [each for each in defs.assets or [] if isinstance(each, dg.AssetsDefinition)],
        partition_key="2026-01-01",
    )
    assert done.success
    assert re.search(
        r"2 rows so far, 0.0 MB \([\d,]+ rows/s, \d+\.\d MB/s\)", capfd.readouterr().err
    )


def test_the_share_of_rejected_rows_is_told_by_reason() -> None:
    table = Table("city_raw", "trips")
    reasons = {"id: not bigint": 2, "no_c: A | B.\nC.": 1} | {f"r{n}": 1 for n in range(30)}
    result = loading.rejects_result(table, RejectsShare(rows=67, rejected=33, reasons=reasons))
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["rejected %"].value == 33.0
    lines = str(result.metadata["reasons"].value).split("\n")
    assert lines[:4] == [
        "| rows | reason |",
        "| ---: | :--- |",
        "| 2 | id: not bigint |",
        "| 1 | no_c: A \\| B. C. |",
    ]
    assert lines[-1] == "| 12 | for 12 other reasons |"
    assert "`mesh rejects show city_raw.trips`" in str(result.metadata["what to do"].value)
    none = loading.rejects_result(table, RejectsShare(rows=0, rejected=0, reasons={}))
    assert none.passed
    assert loading.rejects_check(table).name == none.check_name
