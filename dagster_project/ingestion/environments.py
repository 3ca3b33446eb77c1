"""One Python environment a connector, installed from its hash-locked requirements.

Connectors pin libraries that agree neither with the platform nor with each other, so each has an
environment of its own under the platform's home, with the platform's Python version.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dagster_project.failures import DeclarationError, MeshError
from dagster_project.ingestion.package_index import advice, last_lines, uv_environment
from dagster_project.settings import REQUIREMENTS, connectors_folder

#: Not a connector, but installed the same way: a package that carries the reference data as files.
REFERENCE_DATA = "reference-data"

_STAMP = "installed.json"
_BUILD_TOOLS = "bootstrap.txt"


class InstallationError(MeshError):
    """An environment could not be installed."""


def available(requirements: Path = REQUIREMENTS) -> list[str]:
    """The names that an environment can have: the lock files that exist."""
    names = [path.stem for path in (requirements / "connectors").glob("*.txt")]
    if (requirements / f"{REFERENCE_DATA}.txt").is_file():
        names.append(REFERENCE_DATA)
    return sorted(names)


def _lock_file(name: str, requirements: Path) -> Path:
    names = available(requirements)
    if name not in names:
        raise DeclarationError(
            f"no environment is called {name!r}: there are {', '.join(names) or 'none'}. An "
            "environment is requirements/connectors/<name>.in, locked by `make lock`."
        )
    folder = requirements if name == REFERENCE_DATA else requirements / "connectors"
    return folder / f"{name}.txt"


def _stamp(lock: Path, environment: Path) -> str:
    """What an installed environment was made from; its scripts hold its own absolute path."""
    made_from = {
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "path": str(environment),
        "python": f"{sys.base_prefix} {sys.version_info.major}.{sys.version_info.minor}",
    }
    return json.dumps(made_from, indent=1, sort_keys=True) + "\n"


def _is_installed(environment: Path, stamp: str) -> bool:
    try:
        found = (environment / _STAMP).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return False
    # The interpreter is a link, which dangles when its Python has been removed.
    return found == stamp and (environment / "bin" / "python").exists()


@contextmanager
def _held(path: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """The lock at `path`, waited for. It dies with its holder and whoever inherited it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _uv() -> str:
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        beside = Path(sys.executable).with_name("uv")
        found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise InstallationError(
            "uv, which installs the connectors' environments, is missing: install "
            "requirements/platform.txt whole (`make run` does)"
        )
    return found


def _install(name: str, environment: Path, lock: Path, requirements: Path, held: int) -> None:
    """Replaces the environment. `held` is the lock's descriptor, which uv inherits: should this
    process be killed, nobody else touches the environment before uv has ended too.
    """
    if environment.exists():
        shutil.rmtree(environment)
    uv = _uv()
    python = environment / "bin" / "python"
    variables = uv_environment(Path(sys.executable))
    sync = [uv, "pip", "sync", "--python", str(python), "--require-hashes"]
    # Everything is a wheel but the reference data, whose build tool is held to its lock.
    build_tools = ["--build-constraints", str(requirements / _BUILD_TOOLS)]
    sync += build_tools if name == REFERENCE_DATA else ["--no-build"]
    for command in (
        [uv, "venv", "--no-project", "--python", sys.executable, str(environment)],
        [*sync, str(lock)],
    ):
        answer = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            pass_fds=[held],
        )
        if answer.returncode != 0:
            raise InstallationError(
                f"the environment {name} could not be installed in {environment}:\n"
                f"{last_lines(answer.stdout)}\n{advice(answer.stdout)}"
            )


def installed(name: str, home: Path, requirements: Path = REQUIREMENTS) -> bool:
    """Whether the environment is there as its lock file says. Raises DeclarationError."""
    environment = connectors_folder(home) / name
    return _is_installed(environment, _stamp(_lock_file(name, requirements), environment))


def ensure_environment(
    name: str,
    home: Path,
    *,
    requirements: Path = REQUIREMENTS,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of the environment `name` of this home, installed first if need be.

    It holds exactly what its lock file says; a changed lock, another Python, a moved folder or an
    installation that was interrupted makes it anew. Two callers at once wait for each other.
    `report` is told, in a line, what is being done, if anything.

    Raises DeclarationError for a name without a lock file and InstallationError, with the end of
    uv's output, when it cannot be installed.
    """
    lock = _lock_file(name, requirements)
    environment = connectors_folder(home) / name
    stamp = _stamp(lock, environment)
    if _is_installed(environment, stamp):
        return environment

    def waiting() -> None:
        report(f"{name}: another process is installing it; waiting")

    try:
        environment.parent.mkdir(parents=True, exist_ok=True)
        with _held(environment.parent / f".{name}.lock", waiting) as held:
            if _is_installed(environment, stamp):
                return environment
            report(f"{name}: installing")
            started = time.monotonic()
            _install(name, environment, lock, requirements, held)
            # Last, and in one step: an environment without it is one whose making was interrupted.
            temporary = environment / f"{_STAMP}.new"
            temporary.write_text(stamp)
            temporary.replace(environment / _STAMP)
            report(f"{name}: installed in {time.monotonic() - started:.1f} s")
    except OSError as error:
        raise InstallationError(
            f"the environment {name} could not be installed in {environment}: {error}\n"
            f"{advice(str(error))}"
        ) from error
    return environment


def install_all(
    home: Path,
    names: Iterable[str],
    report: Callable[[str], None],
    *,
    requirements: Path = REQUIREMENTS,
) -> dict[str, Path]:
    """Several environments, installed side by side: their folders by name.

    All are tried; then the first failure is raised. `report` is called from several threads.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        _lock_file(name, requirements)
    with ThreadPoolExecutor(max_workers=4) as pool:
        futures = {
            name: pool.submit(
                ensure_environment, name, home, requirements=requirements, report=report
            )
            for name in wanted
        }
    return {name: future.result() for name, future in futures.items()}
