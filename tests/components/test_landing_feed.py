"""What the asset of a feed's raw table shows of the landing zone."""

from __future__ import annotations

from dagster_project.components.landing_feed import feed_findings
from dagster_project.ingestion.landing import FeedLoad, Ignored
from dagster_project.warehouse.ledger import Load

LOAD = Load(0, 0, 0, 0, 0, 0, 0, rows=0, version="v")


def test_the_metadata_names_files_to_look_at_and_is_silent_without_any() -> None:
    assert feed_findings(FeedLoad(LOAD, {}, [], {})) == {}
    ignored = [Ignored(f"landing/f_{number}.txt", "why") for number in range(25)]
    superseded = {"2026-01-01": ["landing/f_2026-01-01.csv"]}
    found = feed_findings(FeedLoad(LOAD, superseded, ignored, {"2026-01-03": "2026-01-02"}))
    assert found["superseded"] == (
        "landing/f_2026-01-01.csv (another file of 2026-01-01 was written later)"
    )
    assert found["repeated"] == "the file of 2026-01-03 holds the same as that of 2026-01-02"
    assert found["ignored"].startswith("landing/f_0.txt (why); landing/f_1.txt (why)")
    assert found["ignored"].endswith("landing/f_19.txt (why) and 5 more")
