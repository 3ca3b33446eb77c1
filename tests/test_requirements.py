"""The locked requirements, and the script that makes .venv from them."""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
REQUIREMENTS = PROJECT / "requirements"
SET_UP = PROJECT / "scripts" / "set_up.py"
LOCKS = sorted(REQUIREMENTS.rglob("*.txt"))
PYTHONS = ["3.11", "3.12", "3.13"]


def name_of(path: Path) -> str:
    return str(path.relative_to(REQUIREMENTS))


def entries(lock: Path) -> Iterator[tuple[Requirement, list[str]]]:
    """Every requirement of a lock file with its hashes."""
    text = "\n".join(line for line in lock.read_text().splitlines() if "#" not in line)
    for entry in text.replace("\\\n", " ").splitlines():
        if entry.strip():
            requirement, *hashes = entry.split("--hash=")
            yield Requirement(requirement), [found.strip() for found in hashes]


def locked(lock: Path, python: str) -> dict[str, str]:
    """The versions that a lock file installs with a Python on Linux."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    found: dict[str, str] = {}
    for requirement, _ in entries(lock):
        if requirement.marker is None or requirement.marker.evaluate(where):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is locked twice for Python {python}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def wanted(source: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in source.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return found


def load_set_up(root: Path = PROJECT) -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up", root / "scripts" / "set_up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_every_requirement_is_one_version_with_hashes(lock: Path) -> None:
    found = list(entries(lock))
    assert found
    for requirement, hashes in found:
        assert re.fullmatch(r"==[^=*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_a_lock_names_no_index_and_no_place_on_a_machine(lock: Path) -> None:
    text = lock.read_text()
    assert "#    make lock\n" in text
    assert not re.search(r"://|--index|--extra-index|--find-links|(?m:(?:^|[\s=@])[/~])", text)


def test_every_source_is_locked_and_every_lock_has_a_source() -> None:
    sources = {
        path.relative_to(REQUIREMENTS).with_suffix("") for path in REQUIREMENTS.rglob("*.in")
    }
    locks = {path.relative_to(REQUIREMENTS).with_suffix("") for path in LOCKS}
    # The platform's source is pyproject.toml.
    assert locks - sources == {Path("platform")}
    assert sources <= locks


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_a_lock_satisfies_its_source(lock: Path, python: str) -> None:
    versions = locked(lock, python)
    if lock.name == "platform.txt":
        dependencies = project()["dependencies"]
        assert isinstance(dependencies, list)
        asked = [Requirement(text) for text in dependencies]
        asked += wanted(REQUIREMENTS / "bootstrap.in")
    else:
        asked = wanted(lock.with_suffix(".in"))
    for requirement in asked:
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is missing from {name_of(lock)}: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{name_of(lock)} has {requirement.name} {version}, not {requirement}: run `make lock`"
        )


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("other", ["bootstrap.txt", "dev.txt"])
def test_what_is_installed_together_agrees(other: str, python: str) -> None:
    platform = locked(REQUIREMENTS / "platform.txt", python)
    beside = locked(REQUIREMENTS / other, python)
    assert {n: v for n, v in beside.items() if n in platform} == {
        n: platform[n] for n in beside if n in platform
    }


def test_make_lock_compiles_every_lock() -> None:
    spec = importlib.util.spec_from_file_location("lock", PROJECT / "scripts" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert sorted(PROJECT / command[-1] for command in module.commands()) == LOCKS


def test_the_script_accepts_what_the_project_declares() -> None:
    set_up = load_set_up()
    declared = SpecifierSet(str(project()["requires-python"]))
    for minor in range(6, 20):
        assert set_up.fits((3, minor, 1)) == declared.contains(f"3.{minor}.1")
    assert [f"3.{minor}" for minor in range(20) if set_up.fits((3, minor, 0))] == PYTHONS


def test_every_python_3_can_read_the_script() -> None:
    ast.parse(SET_UP.read_text(), feature_version=(3, 6))
    # `from __future__ import annotations` is a syntax error before 3.7.
    assert "__future__" not in SET_UP.read_text()


def as_python(version: tuple[int, ...], *, path: Path) -> subprocess.CompletedProcess[str]:
    """The script run by an interpreter that says it is `version`, with `path` as PATH."""
    pretend = (
        f"import runpy, sys; sys.version_info = {(*version, 'final', 0)!r};"
        "sys.argv = ['set_up.py', 'no-level'];"
        f"runpy.run_path({str(SET_UP)!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-S", "-c", pretend],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 13), (3, 14, 0)], ids=str)
def test_an_unfit_python_is_refused_in_the_first_second(
    version: tuple[int, ...], tmp_path: Path
) -> None:
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        answer = as_python(version, path=tmp_path)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1
    assert answer.returncode == 2
    assert f"Python {'.'.join(map(str, version))} (cpython" in answer.stderr
    assert "needs CPython 3.11 to 3.13" in answer.stderr
    assert "make run PYTHON=/path/to/python3.13" in answer.stderr


def test_a_fitting_python_on_the_path_takes_its_place(tmp_path: Path) -> None:
    here = f"python3.{sys.version_info.minor}"
    for minor in (11, 12, 13):
        # A version manager's shim for a version that is not chosen.
        (tmp_path / f"python3.{minor}").write_text("#!/bin/sh\nexit 127\n")
        (tmp_path / f"python3.{minor}").chmod(0o755)
    (tmp_path / here).unlink()
    (tmp_path / here).symlink_to(sys.executable)
    answer = as_python((3, 10, 13), path=tmp_path)
    assert "does not fit" in answer.stderr
    assert re.search(r"Using \S*python\S* instead", answer.stderr)
    # It got as far as reading its arguments.
    assert "usage: python3 scripts/set_up.py" in answer.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose platform is three small packages."""
    root = tmp_path / "check out"
    (root / "requirements").mkdir(parents=True)
    (root / "scripts").mkdir()
    shutil.copy(SET_UP, root / "scripts")
    package = root / "dagster_project" / "ingestion"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    shutil.copy(PROJECT / "dagster_project" / "ingestion" / "package_index.py", package)
    whole = (PROJECT / "pyproject.toml").read_text()
    (root / "pyproject.toml").write_text(
        '[project]\nname = "dagster-project"\nversion = "0"\n'
        + whole[whole.index("[build-system]") :]
    )
    bootstrap = (REQUIREMENTS / "bootstrap.txt").read_text()
    (root / "requirements" / "bootstrap.txt").write_text(bootstrap)
    (root / "requirements" / "platform.txt").write_text(bootstrap + only("six"))
    (root / "requirements" / "dev.txt").write_text(only("iniconfig", "dev.txt"))
    return root


def only(package: str, lock: str = "platform.txt") -> str:
    """The lines of one package in a lock file."""
    text = (REQUIREMENTS / lock).read_text()
    found = re.search(rf"(?m)^{package}==(?:.*\\\n)+.*\n", text)
    assert found is not None
    return found.group()


def start(root: Path, level: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-S", str(root / "scripts" / "set_up.py"), level],
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def imports(root: Path, module: str) -> bool:
    python = str(root / ".venv" / "bin" / "python")
    command = [python, "-c", f"import {module}"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, cwd="/", check=False).returncode == 0


def test_a_set_up_that_was_killed_is_done_again_and_then_rests(checkout: Path) -> None:
    first = start(checkout, "run")
    while not (checkout / ".venv" / "bin" / "python").exists():
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()

    code, said = finish(start(checkout, "run"))
    assert code == 0, said
    assert "Setting up .venv with Python" in said
    assert "\x1b" not in said
    assert "\r" not in said
    assert imports(checkout, "six, setuptools, uv, dagster_project")
    assert not imports(checkout, "iniconfig")

    started = time.monotonic()
    assert finish(start(checkout, "run")) == (0, "")
    assert time.monotonic() - started < 1

    code, said = finish(start(checkout, "develop"))
    assert code == 0, said
    assert "what changed" in said
    assert imports(checkout, "iniconfig, six")
    # What tests need stays where it was wanted once.
    assert finish(start(checkout, "run")) == (0, "")

    bad = re.sub(r"sha256:.{8}", "sha256:00000000", only("tomli"))
    (checkout / "requirements" / "platform.txt").write_text(
        (REQUIREMENTS / "bootstrap.txt").read_text() + bad
    )
    code, said = finish(start(checkout, "run"))
    assert code == 1
    assert "The set-up failed while installing the locked packages" in said
    assert "file other than the one that was locked" in said
    assert not (checkout / ".venv" / "set-up.json").exists()


def test_two_set_ups_at_once_wait_for_each_other(checkout: Path) -> None:
    set_up = load_set_up(checkout)
    with (checkout / "scripts" / "set_up.py").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = start(checkout, "run")
        assert second.stderr is not None
        assert "Another set-up is at work" in second.stderr.readline()
        # What the first one would have left.
        (checkout / ".venv" / "bin").mkdir(parents=True)
        (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
        state = {**set_up.wanted_state("run"), "path": str(checkout / ".venv")}
        (checkout / ".venv" / "set-up.json").write_text(set_up.json.dumps(state))
    assert finish(second) == (0, "")


def test_a_checkout_that_was_moved_is_set_up_anew(checkout: Path) -> None:
    set_up = load_set_up(checkout)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (checkout / ".venv" / "set-up.json").write_text(set_up.json.dumps(set_up.wanted_state("run")))
    assert set_up.is_up_to_date("run")
    assert not set_up.is_up_to_date("develop")
    moved = checkout.rename(checkout.with_name("moved"))
    assert not load_set_up(moved).is_up_to_date("run")


def test_without_a_network_it_says_so(checkout: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-S", str(checkout / "scripts" / "set_up.py"), "run"],
        # Nothing listens on the port of TCP's discard service.
        env={**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_CACHE_DIR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "The set-up failed while installing uv" in process.stderr
    assert "The package index was not reached" in process.stderr


def test_a_disk_without_space_is_refused_before_anything_is_fetched(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up = load_set_up(checkout)
    monkeypatch.setattr(set_up.shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    with pytest.raises(
        set_up.SetUpError, match=r"0\.0 GB of free disk space and \.venv needs 1\.5"
    ):
        set_up.make_venv(held=0)
