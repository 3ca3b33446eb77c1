"""Dagster's log as one sequence: what is written late, forgotten, deleted, restored or huge."""

from __future__ import annotations

import random
import threading
import time

import dagster as dg
import psycopg
import pytest

from dagster_project.catalog.bookkeeping import read_progress
from dagster_project.catalog.dead_letters import read_dead_letters
from dagster_project.catalog.destination import destination_of
from dagster_project.failures import TransientCatalogError
from dagster_project.orchestration import event_log, told
from dagster_project.orchestration.event_log import EventLog
from dagster_project.settings import get_settings
from tests.catalog.gms import RecordingGms
from tests.orchestration.catalog.told_runs import RAW, TABLE, Seen, deliver, deliverer, run

COPY = (
    "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, asset_key) "
    "SELECT run_id, event, dagster_event_type, timestamp, asset_key "
    "FROM event_logs ORDER BY id LIMIT 1 RETURNING id"
)


def report(instance: dg.DagsterInstance, rows: int = 1, **metadata: object) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(RAW, metadata={"dagster/row_count": rows, **metadata})
    )


def catch_up(url: str, instance: dg.DagsterInstance) -> list[str]:
    """Deliver; what was said meanwhile."""
    said: list[str] = []
    with deliverer(url, instance) as each:
        each._say = said.append
        list(each.catch_up())
    return said


def test_nothing_is_read_past_what_may_still_be_written(
    url: str, instance: dg.DagsterInstance
) -> None:
    """Many write at once: late, in other orders, and some of it not at all."""
    report(instance)
    log, written, ending = EventLog(instance), [], threading.Event()
    chance = random.Random(6)

    def write(pauses: list[float]) -> None:
        with psycopg.connect(url) as connection:
            for number, pause in enumerate(pauses):
                found = connection.execute(COPY).fetchone()
                time.sleep(pause)
                if number % 4:
                    connection.commit()
                    assert found
                    written.append(found[0])
                else:
                    connection.rollback()

    after, seen = log.complete_up_to(0), []
    writers = [
        threading.Thread(target=write, args=([chance.random() / 20 for _ in range(40)],))
        for _ in range(6)
    ]
    for each in writers:
        each.start()
    try:
        while not ending.is_set():
            if not any(each.is_alive() for each in writers):
                ending.set()
            up_to = log.complete_up_to(after)
            seen += [each.id for each in log.read(after, up_to, told.KINDS, 10**6).events]
            after = up_to
    finally:
        for each in writers:
            each.join()
    assert len(written) == 6 * 30
    assert sorted(written) == seen


def test_a_session_that_has_nothing_to_do_with_the_log_holds_up_nothing(
    url: str, instance: dg.DagsterInstance
) -> None:
    report(instance)
    with psycopg.connect(url) as idle:
        idle.execute("SELECT count(*) FROM event_logs")
        idle.execute("CREATE TABLE elsewhere (id int)")
        idle.execute("INSERT INTO elsewhere VALUES (1)")
        log = EventLog(instance)
        assert log.complete_up_to(0) > 0
        idle.rollback()


def test_a_transaction_that_was_forgotten_is_named(
    url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_PATIENCE", 0.1)
    report(instance)
    log = EventLog(instance)
    with psycopg.connect(url, application_name="somebody's psql") as forgotten:
        forgotten.execute("DELETE FROM event_logs WHERE id < 0")
        assert log.complete_up_to(0) == 0
        monkeypatch.setattr(event_log, "_FORGOTTEN", 0.0)
        pid = forgotten.info.backend_pid
        with pytest.raises(
            TransientCatalogError, match=rf"somebody's psql.*pg_terminate_backend\({pid}\)"
        ):
            log.complete_up_to(0)
    assert log.complete_up_to(0) > 0


def test_that_a_run_is_gone_before_it_was_told_is_said(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    """As Dagster's own storage lets one do it."""
    run(instance)
    assert catch_up(url, instance) == []
    instance._event_storage.delete_events(run(instance))
    seen = Seen(gms, run(instance))
    (said,) = catch_up(url, instance)
    assert "of Dagster's log are not there" in said
    assert "their runs were deleted before" in said
    assert seen.results() == ["STARTED", "SUCCESS"]
    # What was told before it was deleted is missed by nobody, also if it is told again.
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM event_logs WHERE id % 2 = 0")
        connection.execute("UPDATE mesh.catalog_destinations SET event_id = 1, event_mark = NULL")
    assert catch_up(url, instance) == []


def test_that_an_asset_is_wiped_takes_nothing_from_what_is_told(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    seen = Seen(gms, run(instance))
    instance.wipe_assets([RAW])
    deliver(url, instance)
    assert len(seen.of_table("_raw.planes", "operation")) == 1


def test_a_log_that_was_restored_is_told_again(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    """From a backup without our tables: its numbers begin where they have been before."""
    run(instance)
    deliver(url, instance)
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE event_logs RESTART IDENTITY CASCADE")
    assert catch_up(url, instance) != []
    assert read_progress(url)[0].event_id == 0
    seen = Seen(gms, run(instance))
    assert catch_up(url, instance) == []
    assert seen.results() == ["STARTED", "SUCCESS"]


def test_a_log_that_was_restored_and_has_grown_since_is_told_again(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    run(instance)
    deliver(url, instance)
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE event_logs RESTART IDENTITY CASCADE")
    seen = [Seen(gms, run(instance)) for _ in range(3)]
    (said,) = catch_up(url, instance)
    assert "the log was restored from a backup, or made anew. All of it is told again" in said
    assert [each.results() for each in seen] == [["STARTED", "SUCCESS"]] * 3
    assert catch_up(url, instance) == []


def test_the_end_of_the_log_may_be_deleted(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    last = run(instance)
    deliver(url, instance)
    instance.delete_run(last)
    assert catch_up(url, instance) == []
    seen = Seen(gms, run(instance))
    assert catch_up(url, instance) == []
    assert seen.results() == ["STARTED", "SUCCESS"]


def test_large_events_are_not_read_all_at_once(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in range(1, 7):
        report(instance, rows, large=dg.TextMetadataValue("ü" * 500_000))
    log = EventLog(instance)
    monkeypatch.setattr(event_log, "_AT_ONCE", 7_000_000)
    parts, after, last = [], 0, log.complete_up_to(0)
    while after < last:
        part = log.read(after, last, told.KINDS, 500)
        parts.append(len(part.events))
        after = part.up_to
    assert parts == [2, 2, 2]
    # Nor does one that is larger than that hold up others.
    monkeypatch.setattr(event_log, "_AT_ONCE", 10)
    assert deliver(url, instance) == 6
    profiles = gms.aspects[TABLE.format("_raw.planes"), "datasetProfile"]
    assert [each["rowCount"] for each in profiles] == [1, 2, 3, 4, 5, 6]


def test_an_event_that_cannot_be_read_holds_up_no_other(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    """As one that a later version of Dagster has written."""
    seen = Seen(gms, run(instance))
    with psycopg.connect(url) as connection:
        connection.execute(
            'UPDATE event_logs SET event = \'{"__class__": "EventOfTheFuture"}\' '
            "WHERE dagster_event_type = 'ASSET_CHECK_EVALUATION'"
        )
    deliver(url, instance)
    assert seen.results() == ["STARTED", "SUCCESS"]
    (letter,) = read_dead_letters(url, destination_of(get_settings()).name)
    assert "cannot be read" in letter.reason


@pytest.mark.parametrize("to_files", [False, True])
@pytest.mark.parametrize(
    "text",
    ["half \ud83d of a pair", "a NUL \x00", "2013-06-01 " * 10_000],
    ids=["surrogate", "NUL", "long"],
)
def test_a_text_that_cannot_be_told_holds_up_nothing(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    to_files: bool,
) -> None:
    if to_files:
        monkeypatch.delenv("MESH_DATAHUB_GMS_URL")
        get_settings.cache_clear()
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=RAW, check_name="tailnum_unique", passed=True, metadata={"partitions": text}
        )
    )
    for key in (["fleet_raw", text[:80]], [text[:80]], ["", ""], ["fleet_raw", "x" * 480]):
        instance.report_runless_asset_event(
            dg.AssetMaterialization(dg.AssetKey(key), metadata={"dagster/row_count": 1})
        )
    report(instance)
    deliver(url, instance)
    assert read_dead_letters(url, destination_of(get_settings()).name) == []
    if not to_files:
        assert gms.left_out == []
        told_of = gms.aspects[
            "urn:li:assertion:DEV.fleet_raw.planes.tailnum_unique", "assertionRunEvent"
        ]
        (event,) = told_of
        assert len(event["partitionSpec"]["partition"]) <= 1000
        assert (TABLE.format("_raw.planes"), "datasetProfile") in gms.aspects
