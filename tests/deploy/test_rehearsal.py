"""The deployment without a cluster: each process as the values declare it, on this machine.

Webserver, daemon and a code server a domain are started with the commands, the environment and the
dagster.yaml that the charts make of the values; runs are Jobs, which Dagster's own launcher asks
tests/deploy/cluster.py for. What differs is what one machine forces: addresses, and folders in
place of volumes.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dagster._core.storage.tags import DOCKER_IMAGE_TAG

from dagster_project.deployment.checks import CHECKS
from dagster_project.lake.store import Lake
from dagster_project.transformation.project import ensure_manifest
from dagster_project.warehouse.embedded import (
    DAGSTER,
    MESH,
    WAREHOUSE,
    EmbeddedPostgres,
    Endpoint,
)
from tests.deploy.charts import (
    DEPLOY,
    Values,
    code_server,
    config_maps,
    daemon,
    domains,
    extra_manifests,
    merge,
    platform,
    probe,
    webserver,
)
from tests.deploy.cluster import Cluster, Pod
from tests.deploy.conftest import image_environment
from tests.e2e.ui import OVER, Ui

LAUNCH = """mutation ($location: String!, $job: String!) { launchRun(executionParams: {selector: {
    repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job}}) {
        __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """mutation ($run: String!) { terminateRun(runId: $run) { __typename
    ... on TerminateRunFailure { message } } }"""
#: Seconds that PostgreSQL is away: longer than whoever would not wait for it at all.
AWAY = 20.0
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,"
    "flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until(found: Callable[[], object], what: str, seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < limit, what
        time.sleep(0.3)


def on_this_machine(postgres: Endpoint, cluster: Cluster) -> tuple[Values, dict[str, Values]]:
    """The values, with other addresses: everything has its own host elsewhere."""
    ports = {domain: free_port() for domain in domains()}
    port = free_port()
    asks = {"httpGet": {"port": port}}
    values = merge(
        platform("kind"),
        {
            "postgresql": {
                "postgresqlHost": postgres.host,
                "service": {"port": postgres.port},
                "postgresqlUsername": DAGSTER,
                "postgresqlDatabase": DAGSTER,
            },
            "dagsterWebserver": {
                "service": {"port": port},
                **dict.fromkeys(("startupProbe", "readinessProbe", "livenessProbe"), asks),
                "workspace": {
                    "servers": [
                        {"host": "127.0.0.1", "port": each, "name": domain}
                        for domain, each in ports.items()
                    ]
                },
            },
            "runLauncher": {
                "config": {
                    "k8sRunLauncher": {
                        "loadInclusterConfig": False,
                        "kubeconfigFile": cluster.kubeconfig,
                    }
                }
            },
        },
    )
    found = domains()
    for domain, each in ports.items():
        found[domain]["deployments"][0]["port"] = each
    return values, found


@dataclass
class Rehearsal:
    """The deployment."""

    cluster: Cluster
    values: Values
    domains: dict[str, Values]
    lake: Lake
    postgres: Endpoint
    servers: dict[str, Pod] = field(default_factory=dict)
    ui: Ui = field(init=False)

    def job(self, name: str) -> Pod:
        """A pod of a Job that the values add, run to its end."""
        (manifest,) = (
            each
            for each in extra_manifests(self.values)
            if each["kind"] == "Job" and each["metadata"]["name"].endswith(name)
        )
        pod = self.cluster.start(name, manifest["spec"]["template"]["spec"])
        pod.process.wait(manifest["spec"]["activeDeadlineSeconds"])
        return pod

    def upgrade(self, domain: str, tag: str) -> None:
        """What `helm upgrade` of the domain's release does: a code server with another image."""
        self.domains[domain]["deployments"][0]["image"]["tag"] = tag
        spec = code_server(domain, self.domains[domain])
        self.servers[domain] = self.cluster.start(f"{domain}-{tag}", spec)

    def probe(self, domain: str, kind: str) -> int:
        """What the probe of the code server says, as a kubelet asks it: in the container."""
        port = str(self.domains[domain]["deployments"][0]["port"])
        command = [part.replace("3030", port) for part in probe(self.domains[domain], kind)]
        pod = self.servers[domain]
        asked = subprocess.run(command, env=pod.environment, capture_output=True, check=False)
        return asked.returncode

    def locations(self) -> dict[str, str]:
        """Of each location what loading it gave."""
        return {
            entry["name"]: (entry["locationOrLoadError"] or {}).get("__typename", "")
            for entry in self.ui.locations()
        }

    def reload(self, domain: str) -> None:
        """As the page of the deployment does."""
        self.ui.ask(
            """mutation ($name: String!) { reloadRepositoryLocation(
                repositoryLocationName: $name) { __typename } }""",
            name=domain,
        )

    @contextmanager
    def server_away(self) -> Iterator[None]:
        """While it lasts nobody answers where PostgreSQL was."""
        server = EmbeddedPostgres(self.cluster.folder.parent / "postgres")
        assert server.stop(force=True)
        try:
            yield
        finally:
            # Kept running by nobody but this, until the rehearsal ends it.
            assert server.pin().port == self.postgres.port

    def answers(self) -> bool:
        """Whether the webserver does, from its database."""
        with suppress(OSError):
            return bool(self.ui.runs())
        return False

    def servers_that_stay(self) -> list[Pod]:
        """The pods of webserver, daemon and code servers that nobody ended."""
        return [self.cluster.pods["webserver"], self.cluster.pods["daemon"], *self.servers.values()]

    def drop(self, *days: int) -> None:
        """Drop a file of flights for each of these days of June."""
        for day in days:
            date = f"2013-06-{day:02}"
            row = (
                f"2013,6,{day},517,515,2,830,819,11,UA,15,N1,EWR,IAH,227,1400,5,15,{date}T09:00:00Z"
            )
            key = f"landing/flights/flights/flights_{date}.csv"
            self.lake.replace(key, f"{HEADER}\n{row}\n".encode())

    def loaded(self) -> list[int]:
        """The days of June whose flights are in the warehouse."""
        with psycopg.connect(self.postgres.url(MESH, WAREHOUSE)) as connection:
            there = connection.execute("SELECT to_regclass('flights_raw.flights')").fetchone()
            if not there or not there[0]:
                return []
            days = connection.execute("SELECT DISTINCT day FROM flights_raw.flights ORDER BY 1")
            return [int(day) for (day,) in days]

    def run_of(self, job: str, after: set[str]) -> dict[str, Any]:
        """The first run of a location that was not there before."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [
                run
                for run in self.ui.runs()
                if run["runId"] not in after
                and run["repositoryOrigin"]["repositoryLocationName"] == job
            ]
            return bool(found)

        until(look, f"no run of {job}")
        return found[-1]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp("rehearsal")
    image = image_environment()
    # What the image has parsed already.
    image["MESH_DBT_TARGET_DIR"] = str(ensure_manifest().parent)
    lake = (folder / "lake").as_uri()
    with (
        EmbeddedPostgres(folder / "postgres").lease() as postgres,
        Cluster(folder / "cluster", image) as cluster,
    ):
        values, found = on_this_machine(postgres, cluster)
        settings = dict(
            line.split("=", 1)
            for line in (DEPLOY / "environments" / "kind.env").read_text().splitlines()
            if line and not line.startswith("#")
        )
        port = values["dagsterWebserver"]["service"]["port"]
        settings |= {"MESH_LAKE_URL": lake, "MESH_UI_URL": f"http://127.0.0.1:{port}"}
        cluster.config_maps = {**config_maps(values, found), "mesh-settings": settings}
        url = postgres.url(DAGSTER, DAGSTER)
        cluster.secrets = {
            "mesh-dagster-database": {
                "postgresql-password": psycopg.conninfo.conninfo_to_dict(url)["password"],
                "url": url,
            },
            "mesh-warehouse": {"MESH_WAREHOUSE_URL": postgres.url(MESH, WAREHOUSE)},
            **{name: {} for name in ("mesh-object-store", "mesh-datahub")},
            **{f"mesh-{domain}": {} for domain in found},
        }
        there = Rehearsal(cluster, values, found, Lake(lake), postgres)
        # As the hook does: before anything starts.
        migrated = there.job("migrate")
        assert migrated.process.returncode == 0, migrated.log
        for domain in found:
            there.upgrade(domain, "0.1.0")
        web = cluster.start("webserver", webserver(values))
        cluster.start("daemon", daemon(values))
        there.ui = Ui(port, web.process, None)  # type: ignore[arg-type]
        loaded = dict.fromkeys(found, "RepositoryLocation")
        until(
            lambda: there.locations() == loaded or web.process.poll() is not None,
            "the locations did not load",
        )
        assert there.locations() == loaded, web.log
        yield there
    EmbeddedPostgres(folder / "postgres").stop(force=True)


def test_probes_say_that_what_serves_is_ready(rehearsal: Rehearsal) -> None:
    assert {rehearsal.probe(domain, "startupProbe") for domain in rehearsal.domains} == {0}
    for kind in ("readinessProbe", "livenessProbe"):
        assert rehearsal.probe("fleet", kind) == 0
    path = rehearsal.values["dagsterWebserver"]["readinessProbe"]["httpGet"]["path"]
    with socket.create_connection(("127.0.0.1", rehearsal.ui.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert b" 200 " in connection.recv(100)


def test_to_migrate_again_does_no_harm(rehearsal: Rehearsal) -> None:
    again = rehearsal.job("migrate")
    assert again.process.returncode == 0, again.log
    assert again.log.count("nothing to do") == 4, again.log


def test_the_check_finds_all_that_it_looks_at_well(rehearsal: Rehearsal) -> None:
    check = rehearsal.job("check")
    assert check.process.returncode == 0, check.log
    assert check.log.count(" ok ") == len(check.log.splitlines()) == len(CHECKS)


def test_a_domain_is_killed_and_upgraded_while_anothers_run_goes_on(rehearsal: Rehearsal) -> None:
    ui = rehearsal.ui
    rehearsal.drop(1, 2, 3)
    run = rehearsal.run_of("flights", set())
    pod = rehearsal.cluster.run_pod(run["runId"])
    until(lambda: ui.run(run["runId"])["status"] in {"STARTED", *OVER}, "the run did not start")
    pod.signal(signal.SIGSTOP)  # so that it is at work for as long as this takes
    try:
        rehearsal.servers["fleet"].kill()
        assert rehearsal.probe("fleet", "readinessProbe") != 0
        rehearsal.reload("fleet")
        states = rehearsal.locations()
        assert states.pop("fleet") == "PythonError"
        assert set(states.values()) == {"RepositoryLocation"}

        rehearsal.upgrade("fleet", "0.2.0")
        until(lambda: rehearsal.probe("fleet", "startupProbe") == 0, "fleet does not serve")
        rehearsal.reload("fleet")
        assert set(rehearsal.locations().values()) == {"RepositoryLocation"}
        launched = ui.ask(LAUNCH, location="fleet", job="fleet_pipeline")["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        newer = launched["run"]["runId"]
        image = rehearsal.cluster.run_pod(newer).spec["containers"][0]["image"]
        assert image == "mesh-with-connectors:0.2.0"
    finally:
        pod.signal(signal.SIGCONT)
    ended = ui.ended(run["runId"])
    tags = {tag["key"]: tag["value"] for tag in ended["tags"]}
    assert tags[DOCKER_IMAGE_TAG] == "mesh:0.1.0"
    # It came to its own end: loaded, and then refused by the check that a day has more flights.
    assert {1, 2, 3} <= set(rehearsal.loaded())
    assert "flights_raw/flights: row_count" in pod.log
    assert pod.process.wait(60) == 0  # Kubernetes is not told of failures that Dagster tells

    # A run is ended as Kubernetes ends it, and says so.
    ui.ask(TERMINATE, run=newer)
    assert ui.ended(newer)["status"] in {"CANCELED", "FAILURE"}


def test_a_run_whose_pod_is_lost_is_noticed_and_goes_on_in_another(rehearsal: Rehearsal) -> None:
    ui = rehearsal.ui
    before = {run["runId"] for run in ui.runs()}
    rehearsal.drop(11, 12)
    lost = rehearsal.run_of("flights", before)
    rehearsal.cluster.run_pod(lost["runId"])
    until(lambda: ui.run(lost["runId"])["status"] in {"STARTED", *OVER}, "it did not start")
    rehearsal.cluster.run_pod(lost["runId"]).kill()
    assert ui.ended(lost["runId"], 60)["status"] == "FAILURE"
    again = rehearsal.run_of("flights", before | {lost["runId"]})
    assert again["parentRunId"] == lost["runId"]
    assert ui.ended(again["runId"])
    assert {11, 12} <= set(rehearsal.loaded())


def test_a_run_goes_on_when_the_database_was_away(rehearsal: Rehearsal) -> None:
    ui = rehearsal.ui
    before = {run["runId"] for run in ui.runs()}
    rehearsal.drop(21, 22)
    run = rehearsal.run_of("flights", before)
    pod = rehearsal.cluster.run_pod(run["runId"])
    until(lambda: ui.run(run["runId"])["status"] in {"STARTED", *OVER}, "it did not start")
    with rehearsal.server_away():
        time.sleep(AWAY)
    until(rehearsal.answers, "the webserver does not find its database again")
    ended = ui.ended(run["runId"])
    assert {21, 22} <= set(rehearsal.loaded()), pod.log[-3000:]
    # Neither was it lost, nor was another one needed.
    assert "flights_raw/flights: row_count" in pod.log, pod.log[-3000:]
    others = [each for each in ui.runs() if each["parentRunId"] == ended["runId"]]
    assert not others
    assert all(pod.process.poll() is None for pod in rehearsal.servers_that_stay())


def test_what_a_step_printed_is_shown_though_its_pod_is_gone(rehearsal: Rehearsal) -> None:
    run = rehearsal.ui.runs()[-1]  # the first
    kept = [item.key for item in rehearsal.lake.list(f"_logs/{run['runId']}")]
    assert kept
    key = kept[0].removeprefix("_logs/").rpartition(".")[0].split("/")
    found = rehearsal.ui.ask(
        """query ($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }""", key=key
    )["capturedLogs"]
    assert found["stderr"] or found["stdout"]


def test_each_step_of_a_location_can_be_a_job(rehearsal: Rehearsal) -> None:
    ui = rehearsal.ui
    (own,) = rehearsal.domains["flights"]["deployments"]
    (chosen,) = (each for each in own["env"] if each["name"] == "MESH_EXECUTOR")
    chosen["value"] = "k8s_job"
    rehearsal.servers["flights"].kill()
    rehearsal.upgrade("flights", "0.3.0")
    until(lambda: rehearsal.probe("flights", "startupProbe") == 0, "flights does not serve")
    rehearsal.reload("flights")
    before = {run["runId"] for run in ui.runs()}
    rehearsal.drop(25)
    run = rehearsal.run_of("flights", before)
    ended = ui.ended(run["runId"])
    steps = {
        job["metadata"]["labels"]["dagster/op"]: rehearsal.cluster.of_job(name)[0]
        for name, job in rehearsal.cluster.jobs.items()
        if job["metadata"]["labels"]["app.kubernetes.io/component"] == "step_worker"
    }
    assert {"load_flights_raw_flights", "expect_flights_raw_flights"} <= steps.keys(), ended
    assert 25 in rehearsal.loaded(), steps["load_flights_raw_flights"].log[-3000:]
    # The check found what it finds in a run's pod, too.
    assert "flights_raw/flights: row_count" in steps["expect_flights_raw_flights"].log
    images = {pod.spec["containers"][0]["image"] for pod in steps.values()}
    assert images == {"mesh:0.3.0"}


def test_the_deliverer_follows_and_ends_when_it_is_told(rehearsal: Rehearsal) -> None:
    (manifest,) = (
        each for each in extra_manifests(rehearsal.values) if each["kind"] == "Deployment"
    )
    pod = rehearsal.cluster.start("catalog", manifest["spec"]["template"]["spec"])
    home = Path(pod.environment["MESH_HOME"])
    until(lambda: list(home.rglob("*.json")) or pod.process.poll() is not None, pod.log)
    assert pod.process.poll() is None, pod.log
    grace = manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert pod.end(grace) == 0, pod.log
