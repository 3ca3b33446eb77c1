"""`mesh up`, `status`, `down` and `clean`: twice is as good as once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagster_project.orchestration.problem import Kind, Problem, keep
from dagster_project.warehouse.embedded import EmbeddedPostgres
from tests.e2e.platform import Platform, until


def test_up_status_and_down_bear_repetition(fresh: Platform):
    assert "stopped" in fresh.mesh("status").out
    assert not fresh.home.exists()

    first, second = fresh.mesh("up"), fresh.mesh("up")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out == second.out
    server = EmbeddedPostgres(fresh.home).status()
    assert f"127.0.0.1:{server.port}" in first.out

    for _ in range(2):
        status = fresh.mesh("status")
        assert status.code == 0
        assert f"127.0.0.1:{server.port}, process {server.pid}" in status.out
        assert "pinned" in status.out
        assert not any(secret in status.out for secret in fresh.secrets())
    assert fresh.mesh("sql", "SELECT 1 AS a").out == "a\n1\n"
    assert EmbeddedPostgres(fresh.home).status().pid == server.pid

    assert fresh.mesh("down").out == "PostgreSQL stopped\n"
    again = fresh.mesh("down")
    assert (again.code, again.out) == (0, "PostgreSQL was not running\n")
    assert "stopped" in fresh.mesh("status").out

    cleaned = fresh.mesh("clean", "-y")
    assert cleaned.code == 0, cleaned.err
    assert not fresh.home.exists()
    again = fresh.mesh("clean", "-y")
    assert (again.code, "nothing to remove" in again.out) == (0, True)


def test_down_leaves_to_others_what_they_use(served: Platform):
    ended = served.mesh("down")
    assert ended.code == 3
    assert "in use" in ended.err
    assert "--force" in ended.err
    assert served.mesh("sql", "SELECT 1 AS a").code == 0


def test_clean_ends_who_works_there_and_removes_all(fresh: Platform):
    worker = fresh.start("exec", "python", "-uc", "print('here'); import time; time.sleep(600)")
    until(worker, "here")
    ended = fresh.mesh("clean", "-y", timeout=90)
    assert ended.code == 0, ended.err
    assert worker.wait(timeout=10) != 0
    assert not fresh.home.exists()
    assert fresh.processes() == []


@pytest.mark.parametrize("name", ["thesis.tex", "dagster", "lake"])
def test_clean_refuses_a_folder_that_is_not_its_own(tmp_path: Path, name: str):
    mine = tmp_path / "mine" / name
    mine.mkdir(parents=True)
    (mine / "chapter").write_text("years of work")
    ended = Platform(tmp_path / "mine").mesh("clean", "-y")
    assert ended.code == 1
    assert str(tmp_path / "mine") in ended.err
    assert (mine / "chapter").read_text() == "years of work"


def test_clean_refuses_to_take_along_what_others_put_there(fresh: Platform):
    assert fresh.mesh("sql", "SELECT 1").code == 0
    (fresh.home / "thesis.tex").write_text("years of work")
    ended = fresh.mesh("clean", "-y")
    assert ended.code == 1
    assert "thesis.tex" in ended.err
    assert (fresh.home / "postgres").is_dir()
    assert (fresh.home / "thesis.tex").read_text() == "years of work"


def test_status_shows_what_is_the_matter(fresh: Platform):
    since = 1361000000.0
    keep(
        fresh.home,
        "fleet",
        [
            Problem(Kind.RUN, "4f8c", "load_fleet_raw_planes", "/runs/4f8c", since),
            Problem(Kind.WARNING, "fleet/dim_planes seats", "3 unexpected rows", "/assets", since),
        ],
    )
    keep(fresh.home, "weather", [])
    ended = fresh.mesh("status")
    assert ended.code == 0
    (run,) = [line for line in ended.out.splitlines() if "4f8c" in line]
    for told in ("fleet", "team:fleet-data", "2013-02-16", "run failed", "load_fleet_raw_planes"):
        assert told in run
    assert "3 unexpected rows" in ended.out
    assert "weather" not in ended.out
