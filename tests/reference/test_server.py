from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from dagster_project.failures import SourceError
from dagster_project.reference import data, server

PROJECT = Path(__file__).parents[2]


def fetch(url: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urlencode(parameters)}", timeout=10) as response:
        return json.load(response)


def refused(url: str, **parameters: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(url, **parameters)
    with caught.value as response:
        assert response.headers["Content-Type"] == "application/json"
        return response.code, json.load(response)["error"]


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", [data.PLANES, data.AIRPORTS, data.AIRLINES])
def test_fleet_files_are_the_source_byte_for_byte(
    source: str, reference_data: Path, name: str
) -> None:
    with urllib.request.urlopen(f"{source}/fleet/{name}", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/csv")
        assert response.read() == (reference_data / name).read_bytes()


def test_pages_give_every_reading_once_in_order(source: str, reference_data: Path) -> None:
    readings: list[dict[str, Any]] = []
    parameters = {"limit": "4999"}
    while True:
        page = fetch(f"{source}/weather/readings", **parameters)
        readings += page["readings"]
        if page["next"] is None:
            break
        assert len(page["readings"]) == 4999
        parameters["after"] = page["next"]
    keys = [(reading["time_hour"], reading["origin"]) for reading in readings]
    assert keys == sorted(set(keys))

    with (reference_data / data.WEATHER).open(newline="") as file:
        expected = {(row["time_hour"], row["origin"]): row for row in csv.DictReader(file)}
    assert len(keys) == len(expected) == 26_115
    for key, reading in zip(keys, readings, strict=True):
        for name, value in reading.items():
            text = expected[key][name]
            if text == "NA":
                assert value is None
            elif name in ("origin", "time_hour"):
                assert value == text
            else:
                assert not isinstance(value, str)
                assert value == float(text)


def test_since_and_until_are_included(source: str) -> None:
    hour = "2013-11-03T05:00:00Z"
    page = fetch(f"{source}/weather/readings", since=hour, until=hour)
    assert [r["origin"] for r in page["readings"]] == ["EWR", "JFK", "LGA"]
    assert {r["time_hour"] for r in page["readings"]} == {hour}
    assert page["next"] is None


def test_a_time_in_another_zone_is_the_same_time(source: str) -> None:
    page = fetch(
        f"{source}/weather/readings",
        since="2013-12-30T18:00:00-05:00",
        until="2013-12-30T23:59:59Z",
    )
    assert {r["time_hour"] for r in page["readings"]} == {"2013-12-30T23:00:00Z"}


def test_a_page_that_ends_exactly_at_the_end_is_the_last(source: str) -> None:
    page = fetch(f"{source}/weather/readings", since="2013-12-30T23:00:00Z", limit="3")
    assert (len(page["readings"]), page["next"]) == (3, None)


def test_after_the_last_hour_there_is_nothing(source: str) -> None:
    page = fetch(f"{source}/weather/readings", since="2014-01-01T00:00:00Z")
    assert page == {"readings": [], "next": None}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"since": "yesterday"}, "since must be"),
        ({"since": "2013-01-01"}, "since must be"),
        ({"until": ""}, "until must be"),
        ({"limit": "0"}, "limit must be"),
        ({"limit": "5001"}, "limit must be"),
        ({"limit": "0000005001"}, "limit must be"),
        ({"limit": "ten"}, "limit must be"),
        ({"after": "42"}, "after must be"),
        ({"after": "now/EWR"}, "after must be"),
        ({"page": "2"}, "unknown parameter page"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(
    source: str, parameters: dict[str, str], message: str
) -> None:
    code, error = refused(f"{source}/weather/readings", **parameters)
    assert code == 400
    assert message in error


def test_a_parameter_given_twice_is_refused(source: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(f"{source}/weather/readings?limit=1&limit=2", timeout=10)


def test_an_unknown_path_is_not_found(source: str) -> None:
    code, error = refused(f"{source}/fleet/flights.csv")
    assert code == 404
    assert "/fleet/planes.csv" in error


def test_another_method_is_refused_as_json(source: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{source}/health", data=b"{}", timeout=10)
    with caught.value as response:
        assert "POST" in json.load(response)["error"]


def test_first_readings_asked_for_side_by_side_agree(home: Path) -> None:
    counts: list[int] = []
    with server.running(home) as url:
        threads = [
            threading.Thread(
                target=lambda: counts.append(
                    len(fetch(f"{url}/weather/readings", limit="5000")["readings"])
                )
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts == [5000] * 4


def test_only_loopback_is_served(source: str) -> None:
    address = urlsplit(source)
    assert address.hostname == "127.0.0.1"
    assert address.port is not None
    # A server on all addresses would answer here too: Linux gives loopback all of 127/8.
    assert not accepts("127.0.0.2", address.port)


def test_it_starts_and_ends_at_once(home: Path) -> None:
    begun = time.monotonic()
    with server.running(home) as url:
        port = urlsplit(url).port or 0
        assert fetch(f"{url}/health") == {"status": "ok"}
    assert time.monotonic() - begun < 3
    assert not accepts("127.0.0.1", port)


def test_it_ends_when_the_work_fails(home: Path) -> None:
    with pytest.raises(RuntimeError, match="the work"), server.running(home) as url:
        raise RuntimeError("the work")
    assert not accepts("127.0.0.1", urlsplit(url).port or 0)


def test_it_ends_when_its_parent_is_killed(home: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from dagster_project.reference.server import running\n"
        "with running(pathlib.Path(sys.argv[1])) as url:\n"
        "    print(url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(home)], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    assert parent.stdout is not None
    with parent.stdout as said:
        port = urlsplit(said.readline().strip()).port or 0
        assert accepts("127.0.0.1", port)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 5
    while accepts("127.0.0.1", port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not accepts("127.0.0.1", port)


def test_a_server_that_cannot_start_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(SourceError, match="did not start"), server.running(home):
        pass
