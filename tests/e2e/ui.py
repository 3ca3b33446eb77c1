"""Dagster as `mesh ui` serves it, asked over GraphQL."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import psutil

from dagster_project.orchestration.prefork import address
from dagster_project.orchestration.run_process import PROCESS
from tests.e2e.platform import Platform, until

LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
RUNS = """{ runsOrError { ... on Runs { results {
    runId jobName status parentRunId tags { key value } assetSelection { path }
    stepStats { stepKey startTime } repositoryOrigin { repositoryLocationName } } } } }"""
TICKS = """query ($since: Float!) { workspaceOrError { ... on Workspace { locationEntries {
    locationOrLoadError { ... on RepositoryLocation { repositories { sensors {
        name sensorState { ticks(afterTimestamp: $since) { status } } } } } } } } } }"""
AGAIN = """mutation ($parent: String!) { launchRunReexecution(
    reexecutionParams: {parentRunId: $parent, strategy: ALL_STEPS}) {
        __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
OVER = {"SUCCESS", "FAILURE", "CANCELED"}


@dataclass
class Ui:
    """A Dagster that serves."""

    port: int
    process: subprocess.Popen[str]
    platform: Platform

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """What GraphQL answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        return found["data"]

    def locations(self) -> list[dict[str, Any]]:
        """The code locations; none while nobody answers."""
        try:
            return self.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
        except OSError:
            return []

    def runs(self) -> list[dict[str, Any]]:
        return self.ask(RUNS)["runsOrError"]["results"]

    def at_rest(self, since: float) -> bool:
        """Whether the sensors of all four locations looked twice since then and found nothing."""
        entries = self.ask(TICKS, since=since)["workspaceOrError"]["locationEntries"]
        loaded = [entry["locationOrLoadError"].get("repositories") for entry in entries]
        looks = [
            [
                tick["status"]
                for tick in sensor["sensorState"]["ticks"]
                if tick["status"] != "STARTED"
            ]
            for repositories in loaded
            for repository in repositories or ()
            for sensor in repository["sensors"]
            if not sensor["name"].endswith("_alerts")
        ]
        return all(loaded) and all(last[:2] == ["SKIPPED"] * 2 for last in looks)

    def quiet(self, seconds: float = 180) -> list[dict[str, Any]]:
        """The runs, once all are over and no sensor asks for another."""
        limit = time.monotonic() + seconds
        since, before = time.time(), -1
        while True:
            runs = self.runs()
            if len(runs) != before or any(run["status"] not in OVER for run in runs):
                since, before = time.time(), len(runs)
            elif self.at_rest(since):
                return runs
            assert time.monotonic() < limit, [(run["jobName"], run["status"]) for run in runs]
            time.sleep(1)

    def launch(self, job: str) -> str:
        """Execute a run of the job again, all of it; the new run."""
        parent = next(run["runId"] for run in self.runs() if run["jobName"] == job)
        launched = self.ask(AGAIN, parent=parent)["launchRunReexecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return launched["run"]["runId"]

    def run(self, number: str) -> dict[str, Any]:
        return next(run for run in self.runs() if run["runId"] == number)

    def at_work(self, number: str) -> psutil.Process:
        """The run's own process, once a step of the run has started."""
        limit = time.monotonic() + 120
        while not any(step["startTime"] for step in self.run(number)["stepStats"]):
            run = self.run(number)
            assert run["status"] not in OVER, run
            assert time.monotonic() < limit, run
            time.sleep(0.3)
        tags = {tag["key"]: tag["value"] for tag in self.run(number)["tags"]}
        return psutil.Process(int(tags[PROCESS].split(":")[1]))

    def ended(self, number: str, seconds: float = 300) -> dict[str, Any]:
        """The run, once it is over."""
        limit = time.monotonic() + seconds
        while (run := self.run(number))["status"] not in OVER:
            assert time.monotonic() < limit, run
            time.sleep(0.5)
        return run

    def forking(self, seconds: float = 90) -> psutil.Process:
        """The server that forks runs, once it does."""
        limit = time.monotonic() + seconds
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            while True:
                with suppress(OSError), address(self.platform.home / "dagster") as path:
                    connection.connect(path)
                    break
                assert time.monotonic() < limit
                time.sleep(0.3)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
        return psutil.Process(int.from_bytes(peer, sys.byteorder))

    def processes(self) -> list[psutil.Process]:
        """All that it started, PostgreSQL apart."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        alive = [each for each in found if each.status() != psutil.STATUS_ZOMBIE]
        return [each for each in alive if "postgres" not in each.name()]


@contextmanager
def serving(platform: Platform) -> Iterator[Ui]:
    """`mesh ui` with its four code locations loaded, on a PostgreSQL that is its own."""
    assert platform.mesh("down").code == 0
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ui = Ui(port, platform.start("ui", "--port", str(port)), platform)
    try:
        until(ui.process, rf"http://127\.0\.0\.1:{port}")
        # Whose output nobody reads stands still once the pipe is full.
        for stream in (ui.process.stdout, ui.process.stderr):
            Thread(target=lambda stream=stream: deque(stream, maxlen=0), daemon=True).start()
        limit = time.monotonic() + 300
        while [entry["loadStatus"] for entry in ui.locations()] != ["LOADED"] * 4:
            assert ui.process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.3)
        yield ui
    finally:
        if ui.process.poll() is None:
            ui.process.send_signal(signal.SIGTERM)
            ui.process.wait(timeout=60)
        assert platform.mesh("up").code == 0
