"""What a run shows: complete at every width, nothing cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dagster_project.cli.progress import Display, DomainProgress, in_words


def _domains() -> list[DomainProgress]:
    found = []
    for domain, synced, loaded in (
        ("commerce", 1_100, 1_100),
        ("fleet", 4_796, 4_796),
        ("weather", 26_115, 26_115),
        ("flights", 0, 336_776),
    ):
        run = DomainProgress(domain, "succeeded", started=0.0, ended=79.0, passed=111)
        run.streams, run.loaded = {"a stream": synced}, {("a run", "a table"): loaded}
        found.append(run)
    return found


def _shown(width: int, domains: list[DomainProgress]) -> str:
    out = io.StringIO()
    terminal = Console(
        file=out, width=width, force_terminal=True, color_system=None, soft_wrap=True
    )
    Display(domains, terminal).summary()
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_at_the_end_is_never_cut(width: int):
    shown = _shown(width, _domains())
    assert "…" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["flights", "1", "0", "336,776", "0", "111", "0", "0", "79.0", "succeeded"] in lines
    assert lines[1][-3:] == ["warned", "failed", "seconds"]


def test_it_fits_a_terminal_of_80_columns():
    assert max(len(line.rstrip()) for line in _shown(80, _domains()).splitlines()) <= 80


def test_errors_follow_the_table_whole():
    domains = _domains()
    domains[1].errors.append("load_fleet_raw_planes: " + "reason " * 40 + "end")
    assert ("reason " * 40 + "end") in _shown(80, domains)


@pytest.mark.parametrize(
    ("domain", "steps", "said"),
    [
        ("commerce", ["airbyte_commerce_shop"], "sync shop"),
        (
            "commerce",
            ["load_commerce_raw_users", "expect_commerce_raw_products", "load_commerce_raw_items"],
            "load users, items; check raw products",
        ),
        ("fleet", ["transform_fleet"], "build fleet"),
        ("flights", ["incremental_fct_flights"], "build fct_flights"),
        ("flights", ["expect_flights_on_time_by_day"], "check on_time_by_day"),
        ("flights", ["an_asset_of_mine"], "run an_asset_of_mine"),
        ("flights", [], ""),
    ],
)
def test_steps_are_told_in_words(domain: str, steps: list[str], said: str):
    assert in_words(steps, domain) == said
