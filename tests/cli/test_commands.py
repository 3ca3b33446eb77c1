"""What `mesh` says: its help, and how it refuses."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.platform import PROGRAM, Platform

COMMANDS = [
    "run", "ui", "up", "down", "status", "sql", "exec", "install", "domains", "settings", "clean",
    "docs", "expect", "lint", "rejects", "catalog", "lineage",
]  # fmt: skip
PASSWORD = "5ecret-and-l0ng"


def plain(text: str) -> str:
    """The text without the frames and line ends that a terminal's width makes."""
    return " ".join(text.replace("│", " ").split())


def test_help_names_every_command_and_what_it_does(fresh: Platform):
    ended = fresh.mesh("--help")
    assert ended.code == 0
    said = plain(ended.out)
    for command in COMMANDS:
        assert f" {command} " in said
    assert "MESH_" in said
    assert not fresh.home.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(fresh: Platform, command: str):
    ended = fresh.mesh(command, "--help")
    assert ended.code == 0
    assert f"Usage: mesh {command}" in ended.out
    assert len(plain(ended.out)) > 80
    assert not fresh.home.exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MESH_FOO", "x", ["MESH_FOO is not a setting: did you mean MESH_HOME?"]),
        ("MESH_XYZZYX", "x", ["MESH_XYZZYX is not a setting", "known are", "MESH_ENV, "]),
        ("MESH_WAREHOUSE_URI", "x", ["MESH_WAREHOUSE_URI", "did you mean MESH_WAREHOUSE_URL?"]),
        ("MESH_ENV", "prod", ["MESH_ENV", "'local', 'staging' or 'production'"]),
        ("MESH_FAKER_USERS", "many", ["MESH_FAKER_USERS", "integer"]),
        (
            "MESH_WAREHOUSE_URL",
            f"mysql://me:{PASSWORD}@db/x",
            ["MESH_WAREHOUSE_URL", "postgresql://"],
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(
    fresh: Platform, name: str, value: str, said: list[str]
):
    ended = fresh.mesh("run", **{name: value})
    assert ended.code == 2
    assert all(each in ended.err for each in said), ended.err
    assert ended.out == ""
    assert PASSWORD not in ended.err
    assert "Traceback" not in ended.err
    assert not fresh.home.exists()


def test_an_unknown_domain_is_refused_with_those_there_are(fresh: Platform):
    ended = fresh.mesh("run", "--domain", "flihgts")
    assert ended.code == 2
    assert "flihgts" in ended.err
    assert all(name in ended.err for name in ("commerce", "fleet", "flights", "weather"))
    assert not fresh.home.exists()


def test_an_unknown_command_is_refused(fresh: Platform):
    ended = fresh.mesh("rnu")
    assert ended.code == 2
    assert "rnu" in ended.err


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_refused_at_once(fresh: Platform, taken: int):
    ended = fresh.mesh("ui", "--port", str(taken))
    assert ended.code == 3
    assert f"port {taken} of 127.0.0.1 is taken" in ended.err
    assert "--port" in ended.err
    assert ended.seconds < 10
    assert not fresh.home.exists()


@pytest.fixture
def closed() -> Iterator[int]:
    """A port on which nobody listens, and that nobody else gets."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.mark.parametrize("arguments", [("sql", "SELECT 1"), ("run", "-d", "fleet")])
def test_a_warehouse_that_is_down_is_named_without_its_password(
    served: Platform, tmp_path: Path, closed: int, arguments: tuple[str, ...]
):
    home = Platform(tmp_path / "home")
    url = f"postgresql://me:{PASSWORD}@127.0.0.1:{closed}/away"
    ended = home.mesh(*arguments, MESH_WAREHOUSE_URL=url, MESH_DAGSTER_URL=url)
    assert ended.code == 1, ended.out
    assert f"127.0.0.1:{closed}/away" in ended.err
    assert "Traceback" not in ended.out + ended.err
    assert PASSWORD not in ended.out + ended.err
    written = [path for path in home.home.rglob("*") if path.is_file() and not path.is_symlink()]
    logs = [path for path in written if "connectors" not in path.parts]
    assert not any(PASSWORD.encode() in path.read_bytes() for path in logs)


@pytest.mark.parametrize("command", [("up",), ("run",), ("sql", "SELECT 1"), ("install",)])
def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, command: tuple[str, ...]):
    # A file in its place: root may write everywhere else.
    (tmp_path / "file").write_text("here")
    home = Platform(tmp_path / "file" / "home")
    ended = home.mesh(*command)
    assert ended.code == 1
    assert str(home.home) in ended.err
    assert "MESH_HOME" in ended.err
    assert "Traceback" not in ended.err


def test_settings_show_nothing_of_a_secret_that_is_no_database(fresh: Platform):
    secrets = {"MESH_DATAHUB_TOKEN": "s3cret-word", "MESH_ALERTS_WEBHOOK": "http://h/s3cret-word"}
    ended = fresh.mesh("settings", **secrets)
    assert ended.code == 0
    assert "s3cret" not in ended.out + ended.err


def test_settings_show_where_a_secret_points_and_not_what_it_is(fresh: Platform):
    url = f"postgresql://me:{PASSWORD}@db.example:5433/mesh"
    ended = fresh.mesh("settings", MESH_WAREHOUSE_URL=url)
    assert ended.code == 0
    assert "db.example:5433/mesh" in ended.out
    assert PASSWORD not in ended.out
    for name in ("MESH_ENV", "MESH_HOME", "MESH_LAKE_URL", "MESH_FAKER_USERS"):
        assert name in ended.out


def test_domains_are_listed_with_owner_and_data_products(fresh: Platform):
    ended = fresh.mesh("domains")
    assert ended.code == 0
    for said in ("commerce", "flights", "team:fleet-data", "Fleet register", "fleet, weather"):
        assert said in ended.out


def test_exec_runs_a_command_within_the_platform(served: Platform):
    program = "import os; print(os.environ['DAGSTER_HOME'], 'MESH_WAREHOUSE_URL' in os.environ)"
    ended = served.mesh("exec", "python", "-c", program)
    assert ended.code == 0, ended.err
    assert ended.out == f"{served.home / 'dagster'} True\n"


@pytest.mark.parametrize("code", [0, 7])
def test_exec_passes_the_exit_code_on(served: Platform, code: int):
    assert served.mesh("exec", "python", "-c", f"raise SystemExit({code})").code == code


def test_exec_names_a_program_that_is_not_there(served: Platform):
    ended = served.mesh("exec", "no-such-program")
    assert ended.code == 1
    assert "no-such-program: no such program" in ended.err


def test_no_colours_where_nobody_sees_them(fresh: Platform):
    for arguments in (["--help"], ["domains"], ["settings"], ["status"]):
        ended = fresh.mesh(*arguments)
        assert "\x1b" not in ended.out + ended.err, arguments


def test_a_reader_who_has_seen_enough_is_no_error(served: Platform):
    environment = os.environ | {"MESH_HOME": str(served.home)}
    command = f"'{PROGRAM}' sql 'SELECT * FROM asked.things, generate_series(1, 20)' | head -1"
    ended = subprocess.run(
        ["bash", "-c", command],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "id,generate_series\n"
    assert ended.stderr == ""
