"""A connector's process: its end with all that it started, however it behaves."""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from dagster_project.failures import SourceError
from dagster_project.ingestion import process
from dagster_project.ingestion.process import running
from tests.ingestion.scripted import WHOLE, Shop, assert_gone, wait_for


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 1.0)
    monkeypatch.setattr(process, "QUIET", 0.2)


def run(folder: Path, body: str, timeout: float = 20) -> tuple[bytes, int, list[str]]:
    """What a program with this body prints, its exit code and what it says of errors."""
    script = folder / "program.py"
    script.write_text("import os, signal, subprocess, sys, time\n" + textwrap.dedent(body))
    with running([sys.executable, "-S", str(script)], timeout, lambda text: text) as program:
        output = b"".join(program.output())
        return output, program.exit_code, program.errors


def test_all_output_and_the_exit_code_are_its_own(tmp_path: Path) -> None:
    body = """
    for _ in range(300):
        print("x" * 10_000)
    print("e" * 600, file=sys.stderr)
    sys.exit(7)
    """
    output, code, errors = run(tmp_path, body)
    assert output == (b"x" * 10_000 + b"\n") * 300
    assert (code, errors) == (7, ["e" * 500])


def test_a_signal_is_told_as_a_shell_does(tmp_path: Path) -> None:
    assert run(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")[1] == 128 + 11


def test_the_last_lines_of_standard_error_are_kept(tmp_path: Path) -> None:
    body = "for number in range(100):\n    print(number, file=sys.stderr)"
    assert run(tmp_path, body)[2] == [str(number) for number in range(80, 100)]


def test_it_is_asked_to_end_before_it_is_made_to(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    body = f"""
    def end(*_):
        open({str(asked)!r}, "w").write("x")
        sys.exit()
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    time.sleep(99)
    """
    with pytest.raises(SourceError, match=r"still ran after 2 s and was stopped; it had said"):
        run(tmp_path, body, timeout=2)
    assert asked.read_text() == "x"


def test_what_it_started_ends_with_it_even_if_it_will_not(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    child = subprocess.Popen([sys.executable, "-S", "-c", stubborn])
    open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(99)
    """
    with pytest.raises(SourceError):
        run(tmp_path, body, timeout=2)
    assert_gone(pids)


def test_a_connector_and_what_it_started_end_with_a_killed_sync(shop: Shop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"""
    import subprocess
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    child = subprocess.Popen([sys.executable, "-S", "-c", stubborn])
    record("users", id=1)
    open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(99)
    """
    with shop.apart(body) as process:
        wait_for(pids)
        secrets = list(shop.folder.rglob("config.json"))
        process.kill()
    assert_gone(pids)
    # What it leaves is removed by the next of any connection of this home.
    assert [path.parent.stat().st_mode & 0o777 for path in secrets] == [0o700]
    shop.sync(WHOLE)
    assert not list(shop.folder.rglob("config.json"))


def test_something_that_holds_its_output_open_is_not_waited_for(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"""
    away = "import os, time; os.setsid(); time.sleep(20)"
    child = subprocess.Popen([sys.executable, "-S", "-c", away])
    open({str(pids)!r}, "w").write(str(child.pid))
    time.sleep(0.2)
    print("done")
    """
    started = time.monotonic()
    output, code, _ = run(tmp_path, body)
    assert (output, code) == (b"done\n", 0)
    assert time.monotonic() - started < 15
    # It left the process group, and is ended all the same.
    assert_gone(pids)


@pytest.mark.parametrize("is_deaf", [False, True])
def test_what_left_its_process_group_ends_with_it(tmp_path: Path, is_deaf: bool) -> None:
    pids = tmp_path / "pids"
    deafen = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if is_deaf else ""
    body = f"""
    {deafen}
    away = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(99) # {tmp_path}"
    children = [subprocess.Popen([sys.executable, "-S", "-c", away]) for _ in range(2)]
    far = "import os, sys, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(99)"
    child = subprocess.Popen([sys.executable, "-S", "-c", far], stdout=subprocess.PIPE)
    time.sleep(0.3)
    open({str(pids)!r}, "w").write(child.stdout.readline().decode())
    time.sleep(99)
    """
    with pytest.raises(SourceError):
        run(tmp_path, body, timeout=2)
    assert_gone(pids)
    left = [each for each in psutil.process_iter() if str(tmp_path) in str(_command(each))]
    assert not left


def _command(each: psutil.Process) -> list[str]:
    try:
        return each.cmdline()
    except psutil.Error:
        return []


def test_one_that_closes_its_output_and_goes_on_is_waited_for(tmp_path: Path) -> None:
    body = """
    os.close(1); os.close(2)
    time.sleep(0.3)
    os._exit(4)
    """
    assert run(tmp_path, body)[:2] == (b"", 4)


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    with running([str(tmp_path / "none")], 5, lambda text: text) as program:
        assert b"".join(program.output()) == b""
        assert program.exit_code == 1
    assert "FileNotFoundError" in program.errors[-1]
