"""Makes .venv from the locked requirements; when it is up to date, says nothing and ends at once.

    python3 scripts/set_up.py bootstrap | run | develop

`bootstrap` installs uv alone (`make lock` needs no more), `run` the platform, `develop` also what
tests and linters need. The standard library is all it uses, and every Python 3 can parse it, so
that a Python which does not fit is refused with a sentence instead of a syntax error.
"""

import fcntl
import hashlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from pathlib import Path

LOWEST = (3, 11)
HIGHEST = (3, 13)
#: Set for an interpreter that was chosen in place of one that does not fit, which chooses no more.
CHOSEN = "SET_UP_PYTHON_CHOSEN"

PROJECT = Path(__file__).resolve().parent.parent
REQUIREMENTS = PROJECT / "requirements"
VENV = PROJECT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "set-up.json"

#: What each level installs. A higher level holds everything of the lower ones.
LEVELS = {
    "bootstrap": ["bootstrap.txt"],
    "run": ["bootstrap.txt", "platform.txt"],
    "develop": ["bootstrap.txt", "platform.txt", "dev.txt"],
}
#: Bytes: what .venv takes (1.1 GB with what tests need), and some room to work in.
NEEDED_SPACE = 1_500_000_000
#: Seconds between two signs of life where output is no terminal.
HEARTBEAT = 15.0


class SetUpError(Exception):
    """Why the set-up stops and what to do; printed without a traceback."""


def fits(version: "tuple[int, ...]") -> bool:
    return LOWEST <= tuple(version[:2]) <= HIGHEST


def fitting_interpreter() -> str:
    """The newest fitting `python3.x` on PATH that really starts; empty if there is none."""
    for minor in range(HIGHEST[1], LOWEST[1] - 1, -1):
        path = shutil.which(f"python3.{minor}")
        if not path:
            continue
        # The name alone promises nothing: a version manager's shim exists for versions it will
        # not start here.
        ask = "import sys; print(sys.version_info[1]); print(sys.executable)"
        try:
            answer = subprocess.check_output(
                [path, "-I", "-S", "-c", ask], stderr=subprocess.DEVNULL, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            continue
        found, executable = answer.decode().splitlines()[:2]
        if int(found) == minor:
            return executable
    return ""


def refusal(version: "tuple[int, ...]", implementation: str, executable: str) -> str:
    """The sentence for an interpreter that does not fit; empty for one that does."""
    if fits(version) and implementation == "cpython":
        return ""
    number = ".".join(str(part) for part in version[:3])
    lowest, highest = (f"{major}.{minor}" for major, minor in (LOWEST, HIGHEST))
    return (
        f"Python {number} ({implementation}, {executable}) does not fit: "
        f"the platform needs CPython {lowest} to {highest}."
    )


def settle_interpreter() -> None:
    """Goes on if this Python fits; else starts anew with one that does, or ends with the reason."""
    reason = refusal(sys.version_info[:3], sys.implementation.name, sys.executable)
    if not reason:
        return
    other = "" if os.environ.get(CHOSEN) else fitting_interpreter()
    if not other:
        sys.stderr.write(
            f"{reason}\nNone was found on PATH as python3.13, python3.12 or python3.11. Install "
            "one (your system's packages, pyenv, or `uv python install 3.13`), or name it:\n"
            "  make run PYTHON=/path/to/python3.13\n"
        )
        sys.exit(2)
    sys.stderr.write(f"{reason} Using {other} instead.\n")
    sys.stderr.flush()
    os.environ[CHOSEN] = "1"
    os.execv(other, [other, "-S", str(Path(__file__).resolve()), *sys.argv[1:]])


def digest(names: "list[str]") -> str:
    content = b"".join((REQUIREMENTS / name).read_bytes() for name in names)
    return hashlib.sha256(content).hexdigest()


def wanted_state(level: str) -> "dict[str, str]":
    """What .venv has to have been made from. Its scripts hold its own absolute path."""
    state = {
        "interpreter": f"{sys.base_prefix} {sys.version_info[0]}.{sys.version_info[1]}",
        "path": str(VENV),
    }
    for part in ("bootstrap", "run", "develop"):
        state[part] = digest(LEVELS[part])
        if part == "run":
            state["project"] = hashlib.sha256((PROJECT / "pyproject.toml").read_bytes()).hexdigest()
        if part == level:
            break
    return state


def installed_state() -> "dict[str, str]":
    """What .venv was made from; empty if it is missing or its making was interrupted."""
    try:
        found = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    # A link to the interpreter dangles when that Python has been removed.
    return found if isinstance(found, dict) and PYTHON.exists() else {}


def is_up_to_date(level: str) -> bool:
    return wanted_state(level).items() <= installed_state().items()


class Progress:
    """One line a step on standard error: rewritten in place on a terminal, else added to."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = self.spoken = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.width = 0

    def tell(self, detail: str) -> None:
        now = time.monotonic()
        line = f"  {self.title} ({now - self.started:.0f} s so far) {detail}"
        if self.terminal:
            self._rewrite(line[: shutil.get_terminal_size().columns - 1])
        elif now - self.spoken >= HEARTBEAT:
            self.spoken = now
            self._write(f"{line}\n")

    def done(self) -> None:
        line = f"  {self.title}: {time.monotonic() - self.started:.1f} s"
        if self.terminal:
            self._rewrite(line)
        self._write("\n" if self.terminal else f"{line}\n")

    def failed(self) -> None:
        if self.terminal:
            self._write("\n")

    def _rewrite(self, line: str) -> None:
        self._write("\r" + line.ljust(self.width))
        self.width = len(line)

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def step(title: str, command: "list[str]", environment: "dict[str, str]", held: int) -> None:
    """Runs one command of the set-up, showing its last line while it works.

    The command inherits `held`, the lock's descriptor: should this process be killed, no other
    set-up begins before the command has ended too. Raises SetUpError with the end of its output.
    """
    from dagster_project.ingestion.package_index import advice, last_lines

    progress = Progress(title)
    output = b""
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[held],
    ) as process, selectors.DefaultSelector() as selector:
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=1.0):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                output += chunk
            lines = output[-4096:].decode(errors="replace").split("\n")
            progress.tell(next((line.strip() for line in reversed(lines) if line.strip()), ""))
    text = output.decode(errors="replace")
    if process.returncode != 0:
        progress.failed()
        raise SetUpError(f"The set-up failed while {title}:\n{last_lines(text)}\n{advice(text)}")
    progress.done()


def make_venv(held: int) -> None:
    """A new .venv with nothing but uv in it, whatever stood there."""
    if VENV.is_dir() and not VENV.is_symlink():
        shutil.rmtree(VENV)
    elif VENV.is_symlink() or VENV.exists():
        VENV.unlink()
    free = shutil.disk_usage(PROJECT).free
    if free < NEEDED_SPACE:
        raise SetUpError(
            f"{PROJECT} has {free / 1e9:.1f} GB of free disk space and .venv needs "
            f"{NEEDED_SPACE / 1e9:.1f} GB: free some, then run the same command again."
        )
    # Not sys.executable: this process may itself run in the .venv that was just removed.
    base = os.path.join(
        sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"
    )
    if not os.path.exists(base):
        base = sys.executable
    step("making .venv", [base, "-I", "-m", "venv", str(VENV)], dict(os.environ), held)


def install(level: str, held: int) -> None:
    """Brings .venv to `level`, or the higher one it had. Its stamp goes first, comes back last."""
    from dagster_project.ingestion.package_index import uv_environment

    found = installed_state()
    level = "develop" if "develop" in found else level
    wanted = wanted_state(level)
    if found:
        STAMP.unlink()
    anew = any(wanted[part] != found.get(part) for part in ("interpreter", "path", "bootstrap"))
    version = ".".join(str(part) for part in sys.version_info[:3])
    extent = "about 1 GB, once" if anew else "what changed"
    sys.stderr.write(f"Setting up .venv with Python {version} ({extent})\n")
    if anew:
        make_venv(held)
        pip = [str(PYTHON), "-I", "-m", "pip", "install", "--quiet", "--require-hashes"]
        pip += ["--only-binary", ":all:", "--no-deps", "--retries", "2"]
        pip += ["--disable-pip-version-check", "-r", str(REQUIREMENTS / "bootstrap.txt")]
        # These would put it elsewhere than into .venv.
        elsewhere = ("PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PIP_ROOT", "PIP_TARGET", "PIP_USER")
        pip_environment = {k: v for k, v in os.environ.items() if k not in elsewhere}
        step("installing uv", pip, pip_environment, held)
    if level != "bootstrap":
        environment = uv_environment(PYTHON)
        uv = [str(VENV / "bin" / "uv"), "pip"]
        target = ["--python", str(PYTHON)]
        files = [str(REQUIREMENTS / name) for name in LEVELS[level] if name != "bootstrap.txt"]
        # Wheels only: building one would fetch tools that nothing locks.
        sync = [*uv, "sync", *target, "--require-hashes", "--no-build", *files]
        step("installing the locked packages", sync, environment, held)
        itself = [*uv, "install", *target, "--no-deps", "--no-build-isolation"]
        step("installing the project", [*itself, "--editable", str(PROJECT)], environment, held)
    temporary = STAMP.with_suffix(".new")
    temporary.write_text(json.dumps(wanted, indent=1) + "\n")
    os.replace(temporary, STAMP)


def set_up(level: str) -> None:
    if is_up_to_date(level):
        return
    # The lock is held on this file, so that none is left lying about; it dies with its holder.
    with open(__file__, "rb") as itself:
        try:
            fcntl.flock(itself, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"Another set-up is at work in {PROJECT}: waiting for it.\n")
            sys.stderr.flush()
            fcntl.flock(itself, fcntl.LOCK_EX)
        if is_up_to_date(level):
            return
        started = time.monotonic()
        install(level, itself.fileno())
        sys.stderr.write(f".venv is ready: {time.monotonic() - started:.0f} s\n")


def main() -> int:
    settle_interpreter()
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0] not in LEVELS:
        sys.stderr.write(f"usage: python3 scripts/set_up.py {' | '.join(LEVELS)}\n")
        return 2
    sys.path.insert(0, str(PROJECT))
    try:
        set_up(arguments[0])
    except SetUpError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        from dagster_project.ingestion.package_index import advice

        sys.stderr.write(f"The set-up failed: {error}\n{advice(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nThe set-up was interrupted: the next one starts it anew.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
