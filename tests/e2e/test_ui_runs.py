"""`mesh ui` as a person uses it: what it shows, what it runs again, and how it ends.

The tests follow on each other, in their order, on one Dagster whose PostgreSQL nobody else uses.
They end runs in the middle, which those of the events (which come before them) could not tell from
what an event has started.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from dagster_project.domain import domain_names
from dagster_project.warehouse.embedded import EmbeddedPostgres
from tests.e2e.platform import Ended, Platform
from tests.e2e.ui import Ui, serving

CANCEL = """mutation ($run: String!) { terminateRun(runId: $run) {
    __typename ... on TerminateRunFailure { message } } }"""
ASSETS = """{ assetNodes { assetKey { path } groupName description owners {
        ... on TeamAssetOwner { team } } isMaterializable
    assetMaterializations(limit: 1) { metadataEntries { label
        ... on IntMetadataEntry { intValue } } } } }"""


@pytest.fixture(scope="module")
def ui(platform: Platform, first_run: Ended) -> Iterator[Ui]:
    with serving(platform) as ui:
        yield ui


def test_every_domain_is_a_code_location_that_loads(ui: Ui):
    loaded = {entry["name"]: entry["locationOrLoadError"]["__typename"] for entry in ui.locations()}
    assert loaded == dict.fromkeys(domain_names(), "RepositoryLocation")


def test_it_listens_on_loopback_alone(ui: Ui):
    listening = {
        (found.laddr.ip, found.laddr.port)
        for process in [psutil.Process(ui.process.pid), *ui.processes()]
        for found in process.net_connections(kind="tcp")
        if found.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", ui.port) in listening
    assert {address for address, _ in listening} <= {"127.0.0.1", "::1"}


def test_the_runs_of_mesh_run_are_there_with_their_location(ui: Ui):
    found = {
        (run["jobName"], run["repositoryOrigin"]["repositoryLocationName"])
        for run in ui.runs()
        # Those that sensors asked for have no job of their own.
        if not run["jobName"].startswith("__")
    }
    assert found == {(f"{name}_pipeline", name) for name in domain_names()}


def test_every_asset_has_group_owner_description_and_rows(ui: Ui):
    nodes = ui.ask(ASSETS)["assetNodes"]
    assert len(nodes) > 40
    for node in nodes:
        name = "/".join(node["assetKey"]["path"])
        assert node["groupName"] in domain_names(), name
        assert [owner["team"] for owner in node["owners"]] == [f"{node['groupName']}-data"], name
        assert node["description"], name
        if node["isMaterializable"]:
            (last,) = node["assetMaterializations"]
            rows = {entry["label"]: entry.get("intValue") for entry in last["metadataEntries"]}
            assert rows.get("dagster/row_count") is not None, name


def test_a_run_can_be_executed_again_in_a_fork(ui: Ui):
    server = ui.forking()
    parent = next(run["runId"] for run in ui.runs() if run["jobName"] == "fleet_pipeline")
    number = ui.launch("fleet_pipeline")
    assert ui.at_work(number).ppid() == server.pid
    run = ui.ended(number)
    assert run["status"] == "SUCCESS"
    assert run["parentRunId"] == parent
    assert run["repositoryOrigin"]["repositoryLocationName"] == "fleet"
    counted = ui.platform.rows("SELECT count(*) FROM fleet_raw.planes")
    assert counted == [(3_322,)]


def test_a_run_that_is_canceled_ends(ui: Ui):
    number = ui.launch("fleet_pipeline")
    process = ui.at_work(number)
    assert ui.ask(CANCEL, run=number)["terminateRun"]["__typename"] == "TerminateRunSuccess"
    assert ui.ended(number, 60)["status"] == "CANCELED"
    process.wait(30)


def test_a_run_that_was_killed_is_marked_as_failed_and_its_rest_is_run(ui: Ui):
    # Not one that was executed again before: what people ask for counts, too.
    number = ui.launch("weather_pipeline")
    ui.at_work(number).kill()
    killed = ui.ended(number, 60)
    assert killed["status"] == "FAILURE"
    limit = time.monotonic() + 60
    while not (again := [run for run in ui.runs() if run["parentRunId"] == number]):
        assert time.monotonic() < limit
        time.sleep(0.5)
    (retry,) = again
    assert ui.ended(retry["runId"])["status"] == "SUCCESS"


def test_the_server_that_forks_runs_comes_back(ui: Ui):
    killed = ui.forking()
    killed.kill()
    psutil.wait_procs([killed], timeout=10)
    assert ui.forking() != killed


def test_one_interrupt_ends_all_of_it(ui: Ui):
    ui.forking()
    number = ui.launch("fleet_pipeline")
    process = ui.at_work(number)
    started = ui.processes()
    assert len(started) > 8
    assert process in started
    assert EmbeddedPostgres(ui.platform.home).status().running
    os.kill(ui.process.pid, signal.SIGINT)
    ui.process.wait(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=2)
    assert alive == []
    assert not EmbeddedPostgres(ui.platform.home).status().running
    ui.platform.wait_until_quiet(5)
    # The run was told, and said so.
    assert ui.platform.mesh("up").code == 0
    assert ui.platform.runs()[number] == ("fleet", "FAILURE")
