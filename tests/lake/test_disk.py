"""The lake on disk, whose writers are killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dagster_project.lake import store
from dagster_project.lake.store import Lake

SIZE = 20_000_000

WRITER = """\
    import sys
    from dagster_project.lake.store import Lake

    lake = Lake(sys.argv[1])
    for number in range(10_000):
        lake.create(f"p/{sys.argv[2]}/{number:05d}", bytes([number % 251]) * int(sys.argv[3]))
"""


def test_a_killed_writer_leaves_whole_objects_only(tmp_path: Path) -> None:
    lake = Lake((tmp_path / "lake").as_uri())
    chance = random.Random(7)
    for turn in range(8):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), lake.url, str(turn), str(SIZE)]
        writer = subprocess.Popen(command)
        folder = tmp_path / "lake" / "p" / str(turn)
        while not any(folder.glob("*")):
            assert writer.poll() is None
            time.sleep(0.002)
        time.sleep(chance.random() * 0.1)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    found = list(lake.list("p"))
    for item in found:
        number = int(item.key.rsplit("/", 1)[1])
        assert item.size == SIZE
        assert lake.read(item.key) == bytes([number % 251]) * SIZE
    left = [path for path in tmp_path.rglob("*") if "#" in path.name]
    print(f"{len(found)} whole objects, {len(left)} parts that are none")
    assert left, "none was killed while it wrote"


def test_what_a_killed_writer_left_stands_in_nobodys_way(tmp_path: Path) -> None:
    lake = Lake((tmp_path / "lake").as_uri())
    lake.create("p/a", b"whole")
    folder = tmp_path / "lake" / "p"
    for name in ("a#1", "b#1", "b#27"):
        (folder / name).write_bytes(b"part")
    assert [item.key for item in lake.list("")] == ["p/a"]
    lake.create("p/b", b"whole")
    assert lake.read("p/b") == b"whole"
    lake.delete(["p/b"])
    assert [path.name for path in folder.iterdir()] == ["a"]
    lake.delete(["p/a"])
    assert list((tmp_path / "lake").iterdir()) == []


def test_clearing_up_next_to_a_writer_costs_it_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PAUSES", (0.001, 0.01))
    lake, other = (Lake((tmp_path / "lake").as_uri()) for _ in range(2))
    lake.create("p/first", b"x")
    ended = threading.Event()

    def clear_up() -> None:
        while not ended.is_set():
            other.delete(["p/none"])

    with ThreadPoolExecutor(1) as pool:
        clearing = pool.submit(clear_up)
        try:
            for number in range(300):
                lake.create(f"p/{number:03d}", bytes(100_000))
        finally:
            ended.set()
        clearing.result()
    assert [item.size for item in lake.list("p")] == [100_000] * 300 + [1]
