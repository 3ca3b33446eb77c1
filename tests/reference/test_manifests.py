"""The low-code connectors, run for real against the source systems."""

from __future__ import annotations

import csv
import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dagster_project.settings import DEFS
from tests.reference.gate import gate

Message = dict[str, Any]
TYPES = {"integer": int, "number": float, "string": str}
#: The last hour of the year's readings, and the end to read to.
LAST_HOUR = "2013-12-30T23:00:00Z"
YEAR = {"start_date": "2013-01-01T00:00:00Z", "end_date": "2013-12-31T23:59:59Z"}


@dataclass(frozen=True)
class Connector:
    """A domain's manifest in the hands of the declarative source."""

    program: Path
    domain: str
    folder: Path

    def command(self, verb: str, **inputs: Any) -> list[str]:
        manifest = DEFS / self.domain / "ingest" / "manifest.yaml"
        arguments = [verb, "--manifest-path", str(manifest)]
        for name, content in inputs.items():
            path = self.folder / f"{self.domain}-{name}.json"
            path.write_text(json.dumps(content))
            arguments += [f"--{name}", str(path)]
        return [str(self.program), *arguments]

    def run(self, verb: str, **inputs: Any) -> tuple[int, list[Message]]:
        done = subprocess.run(
            self.command(verb, **inputs), capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def catalog(self, config: Message) -> Message:
        """All that the source discovers, incrementally where it can."""
        code, messages = self.run("discover", config=config)
        assert code == 0
        found = next(m["catalog"]["streams"] for m in messages if m["type"] == "CATALOG")
        return {"streams": [configured(stream) for stream in found]}


def configured(stream: Message) -> Message:
    incremental = "incremental" in stream["supported_sync_modes"]
    return {
        "stream": stream,
        "sync_mode": "incremental" if incremental else "full_refresh",
        "destination_sync_mode": "append_dedup" if incremental else "overwrite",
        "primary_key": stream["source_defined_primary_key"],
        "cursor_field": stream.get("default_cursor_field", []),
    }


def records(messages: list[Message], stream: str) -> list[Message]:
    return [
        message["record"]["data"]
        for message in messages
        if message["type"] == "RECORD" and message["record"]["stream"] == stream
    ]


def states(messages: list[Message]) -> list[Message]:
    return [message["state"] for message in messages if message["type"] == "STATE"]


def assert_whole(code: int, messages: list[Message], streams: set[str]) -> None:
    """The four conditions of a sync that sent all there is."""
    assert code == 0
    traces = [message["trace"] for message in messages if message["type"] == "TRACE"]
    assert not [trace for trace in traces if trace["type"] == "ERROR"]
    ended = {
        trace["stream_status"]["stream_descriptor"]["name"]: trace["stream_status"]["status"]
        for trace in traces
        if trace["type"] == "STREAM_STATUS"
    }
    assert ended == dict.fromkeys(streams, "COMPLETE")
    counted: Counter[str] = Counter()
    for state in states(messages):
        name = state["stream"]["stream_descriptor"]["name"]
        counted[name] += int(state["sourceStats"]["recordCount"])
    for name in streams:
        assert counted[name] == len(records(messages, name))


def python_type(field: Message) -> type:
    named = field["type"]
    return TYPES[named if isinstance(named, str) else next(t for t in named if t != "null")]


def expected(path: Path, schema: Message) -> list[Message]:
    """The rows of the CSV file in the schema's types; a missing value is an absent field."""
    types = {name: python_type(field) for name, field in schema["properties"].items()}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: types[name](text) for name, text in row.items() if text != "NA"}
            for row in csv.DictReader(file)
        ]


def same(found: list[Message], wanted: list[Message]) -> bool:
    """Equal in values and in types: 1 is not 1.0."""

    def normal(rows: list[Message]) -> list[str]:
        present = [{k: v for k, v in row.items() if v is not None} for row in rows]
        return sorted(json.dumps(row, sort_keys=True) for row in present)

    return normal(found) == normal(wanted)


@pytest.fixture(scope="module")
def program(home: Path) -> Path:
    return home / "connectors/source-declarative-manifest/bin/source-declarative-manifest"


@pytest.fixture(scope="module")
def fleet(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Connector:
    return Connector(program, "fleet", tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def weather(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Connector:
    return Connector(program, "weather", tmp_path_factory.mktemp("weather"))


@pytest.fixture(scope="module")
def weather_catalog(weather: Connector, source: str) -> Message:
    return weather.catalog({"base_url": source})


@pytest.mark.parametrize("domain", ["fleet", "weather"])
def test_check_passes(domain: str, source: str, request: pytest.FixtureRequest) -> None:
    connector: Connector = request.getfixturevalue(domain)
    code, messages = connector.run("check", config={"base_url": source})
    status = [m["connectionStatus"]["status"] for m in messages if m["type"] == "CONNECTION_STATUS"]
    assert (code, status) == (0, ["SUCCEEDED"])


def test_a_configuration_that_is_wrong_is_named(weather: Connector) -> None:
    config = {"base_url": "http://127.0.0.1:1", "start_date": "yesterday"}
    _, messages = weather.run("check", config=config)
    status = next(m["connectionStatus"] for m in messages if m["type"] == "CONNECTION_STATUS")
    assert status["status"] == "FAILED"
    assert "yesterday" in status["message"]


def test_fleet_reads_every_value_in_its_type(
    fleet: Connector, source: str, reference_data: Path
) -> None:
    config = {"base_url": source}
    catalog = fleet.catalog(config)
    code, messages = fleet.run("read", config=config, catalog=catalog)
    assert_whole(code, messages, {"planes", "airports", "airlines"})
    streams = [entry["stream"] for entry in catalog["streams"]]
    schemas = {stream["name"]: stream["json_schema"] for stream in streams}
    for name, count in {"planes": 3322, "airports": 1458, "airlines": 16}.items():
        found = records(messages, name)
        assert len(found) == count
        assert same(found, expected(reference_data / f"{name}.csv", schemas[name]))


def test_weather_reads_every_value_in_its_type_then_only_the_last_hour(
    weather: Connector, weather_catalog: Message, source: str, reference_data: Path
) -> None:
    config = {"base_url": source, **YEAR}
    stream = weather_catalog["streams"][0]["stream"]
    assert stream["is_resumable"]
    assert stream["source_defined_primary_key"] == [["origin"], ["time_hour"]]

    code, messages = weather.run("read", config=config, catalog=weather_catalog)
    assert_whole(code, messages, {"weather"})
    found = records(messages, "weather")
    assert len(found) == 26_115
    assert same(found, expected(reference_data / "weather.csv", stream["json_schema"]))
    hours = [record["time_hour"] for record in found]
    assert hours == sorted(hours)
    reached = [state["stream"]["stream_state"]["time_hour"] for state in states(messages)]
    assert reached == sorted(reached)
    assert (len(set(reached)), reached[-1]) == (12, LAST_HOUR)

    code, messages = weather.run(
        "read", config=config, catalog=weather_catalog, state=states(messages)[-1:]
    )
    assert_whole(code, messages, {"weather"})
    again = records(messages, "weather")
    assert [(r["time_hour"], r["origin"]) for r in again] == [
        (LAST_HOUR, "EWR"),
        (LAST_HOUR, "JFK"),
        (LAST_HOUR, "LGA"),
    ]


def test_a_killed_weather_sync_goes_on_from_its_last_state(
    weather: Connector, weather_catalog: Message, source: str
) -> None:
    config = {"base_url": source, **YEAR}
    killed: list[Message] = []
    with subprocess.Popen(
        weather.command("read", config=config, catalog=weather_catalog),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            killed.append(json.loads(line))
            if len(states(killed)) == 3:
                process.kill()
                break
    state = states(killed)[-1]
    reached = state["stream"]["stream_state"]["time_hour"]
    assert reached < LAST_HOUR

    code, messages = weather.run("read", config=config, catalog=weather_catalog, state=[state])
    assert_whole(code, messages, {"weather"})
    before = {(r["time_hour"], r["origin"]) for r in records(killed, "weather")}
    after = {(r["time_hour"], r["origin"]) for r in records(messages, "weather")}
    assert len(before | after) == 26_115
    assert {hour for hour, _ in before & after} == {reached}


def test_state_never_passes_a_month_that_failed(
    weather: Connector, weather_catalog: Message, source: str
) -> None:
    def refuse_march(path: str) -> bytes | None:
        return b'{"error": "closed in March"}' if "since=2013-03-01" in path else None

    with gate(source, refuse_march) as url:
        config = {"base_url": url, "end_date": "2013-06-30T23:59:59Z"}
        code, messages = weather.run("read", config=config, catalog=weather_catalog)
    assert code != 0
    errors = [m["trace"]["error"]["message"] for m in messages if "error" in m.get("trace", {})]
    assert errors[0] == "The weather service refused the request: closed in March"
    reached = [state["stream"]["stream_state"]["time_hour"] for state in states(messages)]
    assert max(reached) == "2013-02-28T23:00:00Z"
