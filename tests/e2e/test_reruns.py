"""Running again: what did not change is left alone, what changed is carried through, and no more.

The tests follow on each other, in their order.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.platform import DAGSTER, Ended, Platform, until

DOMAINS = ("commerce", "fleet", "weather", "flights")
CHANGED = "2013-03-08"
LOST = 5
#: Days in a row; the file of the second is cut.
GOOD, CUT, FINE = "2013-10-08", "2013-10-09", "2013-10-10"


def state_of(platform: Platform) -> dict[str, str]:
    """Of every table and view of the domains a digest: of its rows, who wrote them, its storage."""
    schemas = ", ".join(f"'{name}{kind}'" for name in DOMAINS for kind in ("", "_raw", "_staging"))
    found = platform.rows(
        "SELECT format('%I.%I', nspname, relname), relkind = 'v', c.oid, relfilenode, r.xmin::text "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
        "LEFT JOIN pg_rewrite r ON r.ev_class = c.oid "
        f"WHERE nspname IN ({schemas}) AND relkind IN ('r', 'v')"
    )
    assert len(found) > 30
    state = {}
    for name, is_view, oid, storage, rule in found:
        rows = (
            ""
            if is_view
            else platform.rows(
                "SELECT md5(string_agg(md5(t::text) || t.xmin || t.ctid, '' ORDER BY t.ctid)) "
                f"FROM {name} t"
            )
        )
        state[name] = f"{oid} {storage} {rule} {rows}"
    return state


@dataclass
class Again:
    """The second run, and one that was started meanwhile."""

    run: Ended
    other: Ended
    other_than: int
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def again(platform: Platform, first_run: Ended) -> Again:
    before = state_of(platform)
    process = platform.start("run")
    heard = until(process, "starting")
    other = platform.mesh("run", "-d", "fleet")
    out, err = process.communicate(timeout=300)
    return Again(
        Ended(process.returncode, heard + out, err, 0.0),
        other,
        process.pid,
        before,
        state_of(platform),
    )


def test_the_second_run_changes_no_row_and_rebuilds_no_model(again: Again):
    assert again.run.code == 0, again.run.out + again.run.err
    changed = [name for name in again.before if again.after.get(name) != again.before[name]]
    assert changed == []
    assert again.after.keys() == again.before.keys()


def test_the_second_run_says_so(again: Again):
    for domain, row in again.run.table().items():
        assert row[2:4] == ["0", "0"], f"{domain}: rows loaded, models built"
        assert (row[6], row[8]) == ("0", "succeeded"), domain


def test_a_model_that_was_not_built_still_says_how_many_rows(platform: Platform, again: Again):
    run = [run for run, (domain, _) in platform.runs().items() if domain == "fleet"][-1]
    for event in platform.events("ASSET_MATERIALIZATION", run):
        found = event["event_specific_data"]["materialization"]
        assert "dagster/row_count" in {entry["label"] for entry in found["metadata_entries"]}, (
            found["asset_key"]
        )


def test_two_runs_at_once_are_refused(again: Again):
    assert again.other.code == 3
    assert f"process {again.other_than}" in again.other.err
    assert again.other.err.startswith("mesh: another `mesh run` or `mesh retry` is going in ")
    assert again.other.out == ""
    assert again.other.seconds < 10


@dataclass
class Correction:
    """A landed file that was replaced by one with fewer rows and another value."""

    run: Ended
    path: Path
    content: bytes
    rows: int
    days: dict[str, dict[str, tuple[object, object]]]


def _days(platform: Platform) -> dict[str, dict[str, object]]:
    """By table and day: who wrote its rows when, or what the mart says of it."""
    fact = "md5(string_agg(t.xmin::text || t.ctid, '' ORDER BY t.ctid))"
    statements = {
        "raw": "SELECT flight_date::text, min(_loaded_at), max(_loaded_at), count(*) "
        "FROM flights_raw.flights GROUP BY 1",
        "fact": f"SELECT flight_date::text, {fact} FROM flights.fct_flights t GROUP BY 1",
        "mart": "SELECT flight_date::text, flights_scheduled, average_arrival_delay_minutes "
        "FROM flights.on_time_by_day",
    }
    return {
        name: {day: rest for day, *rest in platform.rows(statement)}
        for name, statement in statements.items()
    }


@pytest.fixture(scope="module")
def correction(platform: Platform, again: Again) -> Correction:
    landing = platform.home / "lake" / "landing" / "flights" / "flights"
    path = landing / f"flights_{CHANGED}.csv"
    header, *rows = path.read_bytes().splitlines(keepends=True)
    fields = rows[0].split(b",")
    assert fields[8].strip() != b"NA"
    fields[8] = b"1000"
    kept = [b",".join(fields), *rows[1:-LOST]]
    content = header + b"".join(kept)
    path.write_bytes(content)
    # Of these, the first is no day of the feed, and the second no file of it.
    (landing / "flights_2014-01-01.csv").write_bytes(content)
    (landing / "README.txt").write_text("not for you")
    before = _days(platform)
    run = platform.mesh("run", "-d", "flights")
    after = _days(platform)
    changes = {
        name: {
            day: (before[name].get(day), after[name].get(day))
            for day in before[name].keys() | after[name].keys()
            if before[name].get(day) != after[name].get(day)
        }
        for name in before
    }
    return Correction(run, path, content, len(kept), changes)


def test_only_the_changed_day_is_loaded_and_rebuilt(correction: Correction):
    assert correction.run.code == 0, correction.run.out + correction.run.err
    assert {name: list(days) for name, days in correction.days.items()} == {
        "raw": [CHANGED],
        "fact": [CHANGED],
        "mart": [CHANGED],
    }


def test_the_correction_reaches_the_marts(platform: Platform, correction: Correction):
    before, after = correction.days["mart"][CHANGED]
    assert after[0] == before[0] - LOST == correction.rows  # type: ignore[index]
    assert after[1] != before[1]  # type: ignore[index]
    ((delayed, total),) = platform.rows(
        "SELECT count(*) FILTER (WHERE arrival_delay_minutes = 1000), count(*) "
        "FROM flights.fct_flights"
    )
    assert (delayed, total) == (1, 336_776 - LOST)
    ((scheduled,),) = platform.rows("SELECT sum(flights_scheduled) FROM flights.on_time_by_carrier")
    assert scheduled == 336_776 - LOST


def test_what_has_landed_stays_as_it_is(correction: Correction):
    assert correction.path.read_bytes() == correction.content


def test_only_the_changed_day_is_planned_and_materialised(
    platform: Platform, correction: Correction
):
    run = [run for run, (domain, _) in platform.runs().items() if domain == "flights"][-1]
    rows = platform.rows(
        "SELECT DISTINCT dagster_event_type, asset_key, partition FROM event_logs "
        f"WHERE run_id = '{run}' AND partition IS NOT NULL",
        DAGSTER,
    )
    kinds = ("ASSET_MATERIALIZATION", "ASSET_MATERIALIZATION_PLANNED")
    assert {
        (kind, tuple(json.loads(asset)), day) for kind, asset, day in rows if kind in kinds
    } == {
        (kind, asset, CHANGED)
        for kind in kinds
        for asset in (("flights_raw", "flights"), ("flights", "fct_flights"))
    }


def test_the_table_counts_one_day(correction: Correction):
    row = correction.run.table()["flights"]
    assert 0 < int(row[2].replace(",", "")) <= correction.rows


@dataclass
class CutFile:
    """A run of three days, of which one has a file that cannot be loaded."""

    run: Ended
    #: The runs, as they came: their first day, and how they ended.
    runs: list[tuple[str, str]]
    #: The days of which the fact and the mart have what the files say.
    changed: list[str]


@pytest.fixture(scope="module")
def cut_file(platform: Platform, correction: Correction) -> Iterator[CutFile]:
    landing = platform.home / "lake" / "landing" / "flights" / "flights"
    paths = {day: landing / f"flights_{day}.csv" for day in (GOOD, CUT, FINE)}
    for day, path in paths.items():
        header, row, *rows = path.read_bytes().splitlines(keepends=True)
        fields = row.split(b",")
        fields[8] = b"2000"
        if day == CUT:
            path.rename(path.with_suffix(".whole"))
            rows[-1] = rows[-1][:20]
        path.write_bytes(header + b",".join(fields) + b"".join(rows))
    before = platform.runs()
    run = platform.mesh("run", "-d", "flights")
    tag = "dagster/asset_partition_range_start"
    first = dict(platform.rows(f"SELECT run_id, value FROM run_tags WHERE key = '{tag}'", DAGSTER))
    runs = [
        (first.get(run_id, ""), status)
        for run_id, (_, status) in platform.runs().items()
        if run_id not in before
    ]
    changed = platform.rows(
        "SELECT flight_date::text FROM flights.fct_flights JOIN flights.on_time_by_day m "
        "USING (flight_date) GROUP BY flight_date, m.average_arrival_delay_minutes "
        "HAVING max(arrival_delay_minutes) = 2000 AND "
        "abs(avg(arrival_delay_minutes) - m.average_arrival_delay_minutes) < 0.1 ORDER BY 1"
    )
    yield CutFile(run, runs, [day for (day,) in changed])
    restore(paths[CUT])


def restore(path: Path) -> None:
    """The file that was loaded, to the nanosecond."""
    whole = path.with_suffix(".whole")
    if whole.exists():
        whole.rename(path)


def test_a_file_that_cannot_be_loaded_holds_up_no_other_day(cut_file: CutFile):
    assert cut_file.runs == [
        (GOOD, "FAILURE"),
        (GOOD, "SUCCESS"),
        (FINE, "SUCCESS"),
        ("", "SUCCESS"),
    ]
    assert cut_file.changed == [GOOD, FINE]


def test_the_day_that_failed_is_named_with_the_cause(cut_file: CutFile):
    assert cut_file.run.code == 1
    row = cut_file.run.table()["flights"]
    assert row[-1] == "failed"
    told = [line for line in cut_file.run.out.splitlines() if line.startswith("flights: ")]
    assert len(told) == 2
    assert f"flights_{CUT}.csv: its last row is cut" in told[0]
    assert told[1].startswith(f"flights: days that wait on: {CUT}. ")


@dataclass
class Failure:
    """A run whose source system is away."""

    run: Ended
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port of loopback on which nobody listens, and nobody else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def failure(
    platform: Platform, correction: Correction, cut_file: CutFile, closed_port: int
) -> Failure:
    before = state_of(platform)
    url = f"http://127.0.0.1:{closed_port}"
    run = platform.mesh(
        "run", "-d", "fleet", "-d", "flights", MESH_REFERENCE_URL=url, MESH_STEP_RETRIES="0"
    )
    return Failure(run, before, state_of(platform))


def test_a_source_that_is_away_fails_its_domain_with_the_cause(failure: Failure, closed_port: int):
    assert failure.run.code == 1
    said = failure.run.out
    assert failure.run.table()["fleet"][-1] == "failed"
    message = said[said.index("\nfleet: ") :]
    assert "fleet/register" in message
    assert str(closed_port) in message
    assert "onnection" in message
    assert "Traceback" not in said + failure.run.err


def test_a_domain_whose_upstream_failed_is_not_run(failure: Failure):
    assert failure.run.table()["flights"][-2:] == ["not", "run"]
    assert "flights: not run, since what it depends on failed" in failure.run.out


def test_nothing_of_a_failed_sync_is_loaded(failure: Failure):
    assert failure.after == failure.before


def test_nothing_works_on_after_the_runs(platform: Platform, failure: Failure):
    platform.wait_until_quiet(10)


@dataclass
class Retried:
    """Of the runs that stand failed, fleet's and the one of three days, what was run again."""

    failed: dict[str, str]
    #: By command: of one run by its id, of all, and of all once more.
    retries: list[Ended]
    #: Of each the steps that were started, by the run's domain.
    steps: list[dict[str, set[str]]]


@pytest.fixture(scope="module")
def retried(platform: Platform, failure: Failure) -> Retried:
    failed = {domain: run for run, (domain, how) in platform.runs().items() if how == "FAILURE"}
    landing = platform.home / "lake" / "landing" / "flights" / "flights"
    retries, steps = [], []
    for command in (("retry", failed["fleet"][:8]), ("retry",), ("retry",)):
        if len(command) == 1:
            restore(landing / f"flights_{CUT}.csv")
        before = platform.runs()
        retries.append(platform.mesh(*command))
        steps.append(
            {
                domain: {event["step_key"] for event in platform.events("STEP_START", run)}
                for run, (domain, _) in platform.runs().items()
                if run not in before
            }
        )
    return Retried(failed, retries, steps)


def test_a_retry_does_what_the_run_failed_to_do_and_what_follows(
    platform: Platform, retried: Retried
):
    first, all_, _ = retried.retries
    assert (first.code, all_.code) == (0, 0), first.out + first.err + all_.out + all_.err
    done = {
        domain: {event["step_key"] for event in platform.events("STEP_SUCCESS", run)}
        for domain, run in retried.failed.items()
    }
    assert [steps.keys() for steps in retried.steps] == [{"fleet"}, {"flights"}, set()]
    (fleet,), (flights,) = (steps.values() for steps in retried.steps[:2])
    assert "airbyte_fleet_register" in fleet
    assert "load_flights_raw_flights" in flights
    assert not fleet & done["fleet"]
    assert not flights & done["flights"]
    assert "fleet: run " + retried.failed["fleet"][:8] in first.out
    assert f"load_flights_raw_flights ({CUT})" in all_.out


def test_what_was_retried_stands_failed_no_more(retried: Retried):
    again = retried.retries[2]
    assert (again.code, again.out.splitlines()[-1]) == (
        0,
        "no run stands failed: there is nothing to retry",
    )


def test_what_did_not_fail_is_not_retried(platform: Platform, retried: Retried):
    succeeded = next(run for run, (_, how) in platform.runs().items() if how == "SUCCESS")
    refused = platform.mesh("retry", succeeded)
    assert refused.code == 1
    assert refused.err == (
        f"mesh: the run {succeeded} did not fail (it is in state: success): nothing to retry\n"
    )
    made_good = platform.mesh("retry", retried.failed["fleet"][:8])
    assert made_good.code == 1
    assert "failed to do has been done since, by other runs" in made_good.err
    unknown = platform.mesh("retry", "none")
    assert unknown.code == 1
    assert "no run's id begins with 'none'" in unknown.err
