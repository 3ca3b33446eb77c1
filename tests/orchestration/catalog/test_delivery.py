"""What the catalog is told of what happened: all of it, in order, whatever is killed or away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange

from dagster_project.catalog import metadata
from dagster_project.catalog.bookkeeping import read_progress
from dagster_project.catalog.dead_letters import read_dead_letters
from dagster_project.catalog.destination import destination_of
from dagster_project.catalog.files import events_folder, metadata_file, read
from dagster_project.domain import read_domain
from dagster_project.failures import BusyError, CatalogError, TransientCatalogError
from dagster_project.orchestration import delivery, event_log, told
from dagster_project.orchestration.event_log import EventLog
from dagster_project.settings import PROJECT, get_settings
from tests.catalog.gms import RecordingGms
from tests.orchestration.catalog.told_runs import (
    ANN,
    MART,
    RAW,
    TABLE,
    Seen,
    deliver,
    deliverer,
    forget,
    run,
    run_days,
    until,
)


def test_a_run_is_told_with_its_assets_and_checks(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    seen = Seen(gms, run(instance, "unique"))
    assert deliver(url, instance) == 5
    assert seen.results() == ["STARTED", "SUCCESS"]
    assert seen.results("fleet_raw/planes") == ["STARTED", "SUCCESS"]
    assert seen.of_run("dataProcessInstanceProperties")["externalUrl"].endswith(seen.run_id)
    assert seen.of_run("dataProcessInstanceRelationships", "fleet/dim_planes")[
        "parentTemplate"
    ] == ("urn:li:dataJob:(urn:li:dataFlow:(dagster,fleet,DEV),fleet/dim_planes)")
    (operation,) = seen.of_table("_raw.planes", "operation")
    assert (operation["operationType"], operation["numAffectedRows"]) == ("INSERT", 22)
    # What was as it had to be was not changed; how many rows it has is known.
    assert seen.of_table(".dim_planes", "operation") == []
    assert [each["rowCount"] for each in seen.of_table(".dim_planes", "datasetProfile")] == [3322]
    verdict = "urn:li:assertion:DEV.fleet_raw.planes.tailnum_unique", "assertionRunEvent"
    (event,) = gms.aspects[verdict]
    result = event["result"]
    assert (result["type"], result["unexpectedCount"]) == ("FAILURE", 7)
    assert "N10156" not in json.dumps(gms.requests)
    assert deliver(url, instance) == 0


def test_what_is_delivered_again_changes_nothing(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(instance)
    run(instance, "mart", "unique")
    deliver(url, instance)
    known, sent = dict(gms.aspects), len(gms.requests)
    forget(url)
    # And in other batches, too.
    monkeypatch.setattr(delivery, "BATCH", 3)
    deliver(url, instance)
    assert gms.aspects == known
    assert len(gms.requests) == 2 * sent


def test_a_run_that_failed_or_was_killed_is_told_as_failed(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    failed = Seen(gms, run(instance, "mart"))
    deliver(url, instance)
    assert failed.results() == ["STARTED", "FAILURE"]
    assert failed.results("fleet_raw/planes") == ["STARTED", "SUCCESS"]
    assert failed.results("fleet/dim_planes") == ["STARTED", "FAILURE"]
    assert "secret" not in json.dumps(gms.requests)
    # Killed in its second step: what it wrote last is that the step began.
    killed = Seen(gms, run(instance, "mart"))
    over = ("STEP_FAILURE", "PIPELINE_FAILURE", "STEP_UP_FOR_RETRY")
    with psycopg.connect(url) as connection:
        connection.execute(
            "DELETE FROM event_logs WHERE run_id = %s AND dagster_event_type = ANY(%s)",
            (killed.run_id, list(over)),
        )
        connection.execute("UPDATE runs SET status = 'STARTED' WHERE run_id = %s", (killed.run_id,))
    deliver(url, instance)
    assert killed.results() == ["STARTED"]
    left = instance.get_run_by_id(killed.run_id)
    assert left
    instance.report_run_failed(left, "its process is gone")
    deliver(url, instance)
    assert killed.results() == ["STARTED", "FAILURE"]
    assert killed.results("fleet/dim_planes") == ["STARTED", "FAILURE"]


def test_what_nobody_ran_is_told_too(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(RAW, partition="2013-06-01", metadata={"dagster/row_count": 5})
    )
    # Of somebody else's asset nothing is.
    instance.report_runless_asset_event(dg.AssetMaterialization("elsewhere"))
    deliver(url, instance)
    (profile,) = gms.aspects[TABLE.format("_raw.planes"), "datasetProfile"]
    assert profile["rowCount"] == 5
    (operation,) = gms.aspects[TABLE.format("_raw.planes"), "operation"]
    assert operation["partitionSpec"]["partition"] == "2013-06-01"
    assert {urn for urn, _ in gms.aspects} == {TABLE.format("_raw.planes")}


@pytest.mark.parametrize("batch", [500, 2])
def test_a_load_of_many_days_is_one_change_of_the_table(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    monkeypatch.setattr(delivery, "BATCH", batch)
    days = [f"2013-06-0{day}" for day in range(1, 6)]
    seen = Seen(gms, run_days(instance, days, new=22))
    deliver(url, instance)
    told = seen.of_table("_raw.planes", "operation")
    (whole,) = (each for each in told if "numAffectedRows" in each)
    assert (whole["numAffectedRows"], whole["operationType"]) == (22, "INSERT")
    assert whole["partitionSpec"]["partition"] == "2013-06-01 to 2013-06-05"
    # Told in several batches, each says that rows were changed, and one how many.
    others = [each["partitionSpec"]["partition"] for each in told if each is not whole]
    assert set(others) < set(days)
    assert len(others) == (0 if batch == 500 else 2)
    assert len(seen.of_table("_raw.planes", "datasetProfile")) == 1
    # One that changed nothing says so with none of its days.
    seen = Seen(gms, run_days(instance, days, new=0))
    deliver(url, instance)
    assert seen.of_table("_raw.planes", "operation") == []


def test_an_event_that_is_committed_late_is_not_missed(
    url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_PATIENCE", 0.3)
    log = EventLog(instance)

    def report(rows: int) -> None:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(RAW, metadata={"dagster/row_count": rows})
        )

    def read() -> list[int]:
        events = log.read(0, log.complete_up_to(0), told.KINDS, 100).events
        made = [each.entry.dagster_event.step_materialization_data for each in events]
        return [each.materialization.metadata["dagster/row_count"].value for each in made]

    report(1)
    with psycopg.connect(url) as slow:
        # A writer that has its number, and has not committed.
        slow.execute(
            "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, asset_key) "
            "SELECT run_id, replace(event, ': 1', ': 2'), dagster_event_type, timestamp, asset_key "
            "FROM event_logs ORDER BY id DESC LIMIT 1"
        )
        report(3)
        assert read() == []
        threading.Timer(0.1, slow.commit).start()
        monkeypatch.setattr(event_log, "_PATIENCE", 20)
        assert read() == [1, 2, 3]


@pytest.mark.parametrize("how", ["down", "slow", "overloaded", "half", "unheard"])
def test_what_happens_while_the_catalog_is_away_is_told_later(
    url: str,
    instance: dg.DagsterInstance,
    gms: RecordingGms,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dagster_project.catalog.server.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(delivery, "BATCH", 4)
    runs = [Seen(gms, run(instance)), Seen(gms, run(instance, "mart"))]
    if how == "down":
        gms.stop()
    elif how == "slow":
        gms.slow = 5
    elif how == "overloaded":
        gms.answer(429, Retry_After="7")
    elif how == "half":
        gms.take_half()
    else:
        gms.drop()
    if how == "half":
        # It takes the rest at once.
        deliver(url, instance)
    else:
        with pytest.raises(TransientCatalogError) as failure:
            deliver(url, instance)
        assert failure.value.retry_after == (7 if how == "overloaded" else None)
    if how == "down":
        gms.start()
    gms.recover()
    runs.append(Seen(gms, run(instance)))
    deliver(url, instance)
    ended = [seen.results() for seen in runs]
    assert ended == [["STARTED", "SUCCESS"], ["STARTED", "FAILURE"], ["STARTED", "SUCCESS"]]


def test_a_failure_is_noted_until_it_is_over(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    run(instance)
    with deliverer(url, instance) as each:
        each._books.failed("it does not answer")
        each._books.failed("it still does not")
        (progress,) = read_progress(url)
        assert (progress.failure, progress.event_id) == ("it still does not", 0)
        assert progress.failing_since
        list(each.catch_up())
    (progress,) = read_progress(url)
    assert (progress.failure, progress.failing_since) == (None, None)
    assert progress.event_id > 0


def test_only_one_delivers_and_one_that_lost_its_lock_does_no_harm(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BATCH", 2)
    seen = Seen(gms, run(instance))
    with suppress(TransientCatalogError), deliverer(url, instance) as first:
        with pytest.raises(BusyError, match="another process delivers to http"):
            deliver(url, instance)
        going = first.catch_up()
        next(going)
        with psycopg.connect(url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            )
        # The second takes over while the first believes that it has the lock.
        until(lambda: _is_free(url))
        assert deliver(url, instance) == 3
        next(going)
        pytest.fail("nobody told it that its lock is lost")
    assert seen.results() == ["STARTED", "SUCCESS"]
    (progress,) = read_progress(url)
    assert progress.event_id == EventLog(instance).complete_up_to(0)


def _is_free(url: str) -> bool:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        return row.fetchone() == (0,)


KILLED = """
import os, signal, sys
from dagster_project.catalog import bookkeeping, server
from dagster_project.cli import delivering
from dagster_project.orchestration import delivery

delivery.BATCH = 2
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
times = iter(range(99))
send, told = server.Server._send, bookkeeping.Books.told_events
where = sys.argv[1]

def sending(self, letters):
    if where == "before the send" and next(times) == 2:
        die()
    answer = send(self, letters)
    if where == "after the send" and next(times) == 2:
        die()
    return answer

def telling(self, *arguments):
    told(self, *arguments)
    if where == "after the cursor moved" and next(times) == 1:
        die()

server.Server._send, bookkeeping.Books.told_events = sending, telling
delivery.Deliverer.declare = lambda *_: delivery.Delivered()
sys.exit(delivering.main())
"""


@pytest.mark.parametrize("where", ["before the send", "after the send", "after the cursor moved"])
def test_a_deliverer_that_is_killed_leaves_nothing_out(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, where: str
) -> None:
    seen = [Seen(gms, run(instance)), Seen(gms, run(instance, "mart"))]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where], cwd=PROJECT, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [each.results() for each in seen] != [["STARTED", "SUCCESS"], ["STARTED", "FAILURE"]]
    deliver(url, instance)
    assert [each.results() for each in seen] == [["STARTED", "SUCCESS"], ["STARTED", "FAILURE"]]
    # In the order in which it happened, but for what was told twice.
    told_of = list(dict.fromkeys(each["entityUrn"] for each in gms.requests))
    instances = [urn for urn in told_of if urn.count(".") == 1]
    assert [urn.rpartition(".")[2] for urn in instances] == [each.run_id for each in seen]


def test_what_the_catalog_refuses_is_kept_and_told_again_when_asked(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    gms.chokes_on.add(TABLE.format("_raw.planes"))
    seen = Seen(gms, run(instance))
    deliver(url, instance)
    assert seen.results() == ["STARTED", "SUCCESS"]
    letters = read_dead_letters(url, destination_of(get_settings()).name)
    assert {letter.aspect for letter in letters} == {"operation", "datasetProfile"}
    assert {letter.entity for letter in letters} == {TABLE.format("_raw.planes")}
    assert "500" in letters[0].reason
    with deliverer(url, instance) as each:
        with pytest.raises(TransientCatalogError, match="takes nothing"):
            each.replay(letters)
        assert each._books.dead_letters() == letters
        gms.chokes_on.clear()
        assert each.replay(each._books.dead_letters()).refused == 0
        assert each._books.dead_letters() == []
    assert len(seen.of_table("_raw.planes", "operation")) == 1


def test_an_event_that_cannot_be_told_holds_up_no_other(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> Iterator[Any]:
        raise KeyError("a mistake")

    judged = told._judged
    monkeypatch.setattr(told, "_judged", mistaken)
    seen = Seen(gms, run(instance))
    deliver(url, instance)
    assert seen.results() == ["STARTED", "SUCCESS"]
    (letter,) = read_dead_letters(url, destination_of(get_settings()).name)
    assert letter.record is None
    assert "KeyError: 'a mistake'" in letter.reason
    monkeypatch.setattr(told, "_judged", judged)
    with deliverer(url, instance) as each:
        assert each.replay([letter]).refused == 0
        assert each._books.dead_letters() == []
    verdict = "urn:li:assertion:DEV.fleet_raw.planes.tailnum_unique", "assertionRunEvent"
    assert len(gms.aspects[verdict]) == 1


def test_many_that_are_not_even_sent_hold_up_nothing(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of nothing but URNs that are too long."""
    monkeypatch.setattr("dagster_project.catalog.server.URN_BYTES", 10)
    for _ in range(5):
        run(instance)
    assert deliver(url, instance) == 25
    assert len(read_dead_letters(url, gms.url)) > 20
    assert gms.requests == []


def test_a_server_that_refuses_everything_is_none(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    for _ in range(5):
        run(instance)
    gms.answer_always(422)
    with pytest.raises(CatalogError, match="refuses everything, such as: it answers 422"):
        deliver(url, instance)
    assert read_dead_letters(url, gms.url) == []


def test_declarations_are_told_once_and_what_is_gone_is_taken_back(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deliverer(url, instance) as each:
        assert each.declare().declarations > 1000
        assert not each.declare()
        kept = [p for p in metadata.static_metadata(get_settings()) if "planes" not in p.entityUrn]
        # What people added stays.
        mine = TABLE.format(".dim_planes")
        gms.aspects[mine, "ownership"]["owners"].append({"owner": ANN, "type": "DATAOWNER"})
        monkeypatch.setattr(delivery, "declared_version", lambda settings: "another")
        monkeypatch.setattr(delivery, "static_metadata", lambda *_: iter(kept))
        each.declare()
    removed = {urn for (urn, name), said in gms.aspects.items() if said == {"removed": True}}
    assert mine in removed
    assert all("planes" in urn for urn in removed)
    assert ANN in json.dumps(gms.aspects[mine, "ownership"])


def test_what_people_called_a_domain_stays_until_its_files_say_something_else(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, product = "urn:li:domain:fleet", "urn:li:dataProduct:fleet.airlines_and_airports"
    with deliverer(url, instance) as each:
        gms.chokes_on = {domain}
        assert each.declare("first").refused
        gms.chokes_on = set()
        # What was refused is told again, as it was never told.
        assert not each.declare("second").refused
        told = gms.aspects[domain, "domainProperties"]["description"]
        assert told == read_domain("fleet").purpose
        gms.aspects[domain, "domainProperties"]["parentDomain"] = "urn:li:domain:company"
        gms.aspects[product, "dataProductProperties"]["description"] = "By hand."
        each.declare("third")
        assert "parentDomain" in gms.aspects[domain, "domainProperties"]
        assert gms.aspects[product, "dataProductProperties"]["description"] == "By hand."


def test_what_happened_since_a_moment_is_told_again_to_a_catalog_that_was_restored(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    first = Seen(gms, run(instance))
    moment = datetime.now(UTC)
    second = Seen(gms, run(instance))
    with deliverer(url, instance) as each:
        each.declare()
        list(each.catch_up())
        gms.aspects.clear()
        each.forget(moment)
        each.declare()
        list(each.catch_up())
        assert ("urn:li:domain:fleet", "domainProperties") in gms.aspects
        assert second.results() == ["STARTED", "SUCCESS"]
        assert first.results() == []
        # A moment to come forgets no event.
        each.forget(datetime.now(UTC) + timedelta(days=1))
        assert list(each.catch_up()) == []


def test_without_a_server_it_is_written_to_files(
    url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(instance)
    settings = get_settings()
    with deliverer(url, instance) as each:
        each.declare()
        list(each.catch_up())
    first = sorted(events_folder(settings).glob("*.json"))
    records = [record for path in first for record in read(path)]
    assert len(read(metadata_file(settings))) > 1000
    # Told again, as after a kill, it is the same file.
    forget(url)
    run(instance)
    deliver(url, instance)
    assert sorted(events_folder(settings).glob("*.json")) == first
    assert read(first[0])[: len(records)] == records


def test_that_a_table_got_older_than_promised_is_told(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    states = [FreshnessState.UNKNOWN, FreshnessState.FAIL, FreshnessState.PASS]
    for number, state in enumerate(states, start=1):
        change = FreshnessStateChange(
            key=MART,
            new_state=state,
            previous_state=FreshnessState.NOT_APPLICABLE,
            state_change_timestamp=1_795_000_000.0 + number,
        )
        instance._report_runless_asset_event(change)
    deliver(url, instance)
    urn = "urn:li:assertion:DEV.fleet.dim_planes.contract-freshness"
    results = [each["result"]["type"] for each in gms.aspects[urn, "assertionRunEvent"]]
    assert results == ["FAILURE", "SUCCESS"]


def test_a_run_that_was_not_told_cannot_be_deleted(
    url: str, instance: dg.DagsterInstance, gms: RecordingGms
) -> None:
    first = run(instance)
    instance.delete_run(run(instance))  # nobody delivers
    deliver(url, instance)
    second = run(instance)
    with pytest.raises(CatalogError, match=f"{second} has events that http://127.0.0.1:"):
        instance.delete_run(second)
    instance.delete_run(first)
    deliver(url, instance)
    instance.delete_run(second)
    assert instance.get_run_by_id(second) is None
    # Of a deleted run nothing is told, and nothing waits for it.
    forget(url)
    assert deliver(url, instance) == 0
