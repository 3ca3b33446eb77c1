"""The site of all results: what its pages show, and what they do not; built, killed and served."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
import pytest

from dagster_project.cli.docs import serving
from dagster_project.failures import BusyError
from dagster_project.identity import Table
from dagster_project.lake.store import Lake
from dagster_project.quality.asked import Request
from dagster_project.quality.docs import SITE, build
from dagster_project.quality.outcome import MASK, Partitions
from dagster_project.quality.results import keep
from dagster_project.quality.suites import Suite
from dagster_project.quality.validation import validate
from dagster_project.settings import Settings, get_settings
from tests.e2e.platform import Platform

ORDERS = Table("shop_raw", "orders")
PERSON = "anna@secret.example"
DAYS = Partitions("day", ("2013-01-01",))


def expectation(check: str, kind: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "kwargs": kwargs,
        "severity": "critical",
        "description": f"Says <what> {check} costs: $5 & $column.",
        "meta": {"check": check},
    }


SUITE = Suite.model_validate(
    {
        "name": str(ORDERS),
        "expectations": [
            expectation("number_present", "expect_column_values_to_not_be_null", column="id"),
            expectation(
                "code_known", "expect_column_values_to_be_in_set", column="code", value_set=["a"]
            ),
            expectation("rows", "expect_table_row_count_to_be_between", min_value=1),
            expectation("mail", "expect_column_values_to_match_regex", column="email", regex="@x"),
            expectation("mails", "expect_column_distinct_values_to_be_in_set", column="email",
                        value_set=["x"]),
            expectation("big", "unexpected_rows_expectation",
                        unexpected_rows_query="select id, code from {batch} where id > 2"),
            expectation("gone", "expect_column_values_to_not_be_null", column="not_there"),
        ],
    }
)  # fmt: skip
UNCHECKED = SUITE.model_copy(update={"name": "shop.customers"})


class Page(HTMLParser):
    """A page as a browser has it: its text, its links, and what it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self._said: list[str] = []
        self._tag = ""
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self._said).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._tag = tag
        for name, value in attrs:
            if tag == "a" and name == "href":
                self.links.append(value or "")
            elif name in ("src", "href") or name.startswith("on"):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._tag != "style":
            self._said.append(data)


@pytest.fixture
def result(warehouse_url: str) -> dict[str, Any]:
    """What Great Expectations finds of five orders; personal data is not masked."""
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop_raw")
        connection.execute("CREATE TABLE shop_raw.orders (id bigint, code text, email text)")
        connection.execute(
            "INSERT INTO shop_raw.orders VALUES (1, 'a', %(person)s), (2, 'a', 'b@x'), "
            "(3, '<script>alert(1)</script>', %(person)s), (4, 'z', NULL), (NULL, 'a', NULL)",
            {"person": PERSON},
        )
    checks = [expectation.check for expectation in SUITE.expectations]
    return dict(validate(warehouse_url, Request(SUITE, checks)).result)


def test_every_suite_and_result_has_a_page_without_network_script_or_personal_data(
    tmp_path: Path, lake: Lake, result: dict[str, Any]
) -> None:
    assert PERSON in str(result)
    folder = tmp_path / "docs"
    personal = {str(ORDERS): ["email"]}
    keep(lake, ORDERS, "run-1", DAYS, result)
    said: list[tuple[int, int]] = []
    first = build(folder, lake, [SUITE, UNCHECKED], personal, lambda *done: said.append(done))
    assert (first.suites, first.results, first.rendered, list(first.faults)) == (2, 1, 1, [])
    assert said[-1] == (3, 3)
    before = (folder / SITE / "results/shop_raw.orders/run-1.html").read_text()

    keep(lake, ORDERS, "run-2", None, {**result, "success": True, "results": result["results"][:1]})
    keep(lake, Table("shop", "dropped"), "run-2", None, result)
    second = build(folder, lake, [SUITE, UNCHECKED], personal)
    assert (second.results, second.rendered, list(second.faults)) == (3, 2, [])
    site = folder / SITE
    # The page of before is taken over, and nothing else of it is left.
    assert (site / "results/shop_raw.orders/run-1.html").read_text() == before
    assert len(list(folder.glob("build-*"))) == 1
    pages = {str(path.relative_to(site)): Page(path) for path in site.rglob("*.html")}
    assert set(pages) == {
        "index.html",
        "suites/shop.customers.html",
        "suites/shop.dropped.html",
        "suites/shop_raw.orders.html",
        "results/shop.dropped/run-2.html",
        "results/shop_raw.orders/run-1.html",
        "results/shop_raw.orders/run-2.html",
    }
    for name, page in pages.items():
        assert page.fetched == [], name
        assert not page.tags & {"script", "img", "link", "iframe"}, name
        for link in page.links:
            if not link.startswith("#"):
                assert ((site / name).parent / unquote(link)).is_file(), (name, link)

    shown = pages["results/shop_raw.orders/run-1.html"].text
    assert "shop_raw.orders · 20" in shown
    assert "Run run-1 of 2013-01-01" in shown
    assert "number_present critical Says <what> number_present costs: $5 & $column." in shown
    assert "1 unexpected values found. 20% of 5 total rows." in shown
    assert "2 unexpected values found. 40% of 5 total rows." in shown
    assert shown.count("<script>alert(1)</script>") == 2
    assert f"The column {MASK}" in shown
    assert "id code 3 <script>alert(1)</script> 4 z" in shown
    assert f"costs: $5 & $column. unexpected {MASK} " in shown
    assert MASK in shown
    index = pages["index.html"].text
    assert "3 tables, 1 whose newest result failed, 1 not checked yet" in index
    assert "number_present, code_known, mail" in index
    assert all(check.check in pages["suites/shop.customers.html"].text for check in
               SUITE.expectations)  # fmt: skip
    for path in site.rglob("*"):
        if path.is_file() and "shop_raw.orders" in str(path):
            assert PERSON not in path.read_text(), path

    # A column that is declared later is masked in what is there already.
    personal["shop.dropped"] = ["email"]
    assert build(folder, lake, [SUITE], personal).rendered == 3
    assert all(PERSON not in path.read_text() for path in site.rglob("*") if path.is_file())
    assert {path.name for path in site.iterdir()} == {
        "index.html", "results", "suites", "state.json",
    }  # fmt: skip


def test_a_result_that_cannot_be_read_is_told_and_the_others_are_shown(
    tmp_path: Path, lake: Lake
) -> None:
    key = keep(lake, ORDERS, "run-1", None, passed())
    keep(lake, ORDERS, "run-2", None, passed())
    lake.replace(key, b"{}")
    site = build(tmp_path, lake, [SUITE], {})
    assert [key in fault for fault in site.faults] == [True], site.faults
    index = (site.folder / "index.html").read_text()
    assert "run-2.html" in index
    assert "run-1.html" not in index


def passed() -> dict[str, Any]:
    counts = {"successful_expectations": 1, "unsuccessful_expectations": 0}
    statistics = {"evaluated_expectations": 1, "success_percent": 100.0, **counts}
    single = {
        "success": True,
        "expectation_config": expectation("rows", "expect_table_row_count_to_be_between"),
        "result": {"observed_value": 5},
        "meta": {},
        "exception_info": {
            "raised_exception": False,
            "exception_traceback": None,
            "exception_message": None,
        },
    }
    whole = {"suite_name": "x", "suite_parameters": {}, "meta": {}, "statistics": statistics}
    return {**whole, "success": True, "results": [single]}


def test_without_any_result_it_says_what_gives_one(fresh: Platform) -> None:
    ended = fresh.mesh("docs")
    assert ended.code == 1
    assert "no result of a validation yet: `mesh run` checks" in ended.err
    assert "Traceback" not in ended.err
    assert not (fresh.home / "docs" / SITE).exists()


def test_only_loopback_is_served(fresh: Platform) -> None:
    ended = fresh.mesh("docs", "--serve", MESH_DOCS_URL="https://docs.example.org")
    assert ended.code == 2
    assert "MESH_DOCS_URL is https://docs.example.org" in ended.err


@pytest.fixture
def settings(fresh: Platform, monkeypatch: pytest.MonkeyPatch, fresh_settings: None) -> Settings:
    """Of a home whose site answers on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MESH_HOME", str(fresh.home))
    monkeypatch.setenv("MESH_DOCS_URL", f"http://127.0.0.1:{port}")
    return get_settings()


def ask(settings: Settings, path: str, host: str | None = None) -> tuple[int, str]:
    place = (settings.docs or "").removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or place)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_a_kill_leaves_the_site_of_before_and_what_is_asked_for_is_built(
    fresh: Platform, settings: Settings
) -> None:
    lake, folder = Lake(settings.lake), fresh.home / "docs"
    keep(lake, ORDERS, "run-1", None, passed())
    build(folder, lake, [SUITE], {})
    before = {path: path.read_bytes() for path in (folder / SITE).rglob("*") if path.is_file()}
    keep(lake, ORDERS, "run-2", None, passed())

    process = fresh.start("docs")
    limit = time.monotonic() + 60
    while len(list(folder.glob("build-*"))) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(list(folder.glob("build-*"))) == 2
    assert before == {p: p.read_bytes() for p in (folder / SITE).rglob("*") if p.is_file()}

    with serving(settings):
        with pytest.raises(BusyError, match="MESH_DOCS_URL"), serving(settings):
            pass
        assert ask(settings, "/")[1] == (folder / SITE / "index.html").read_text()
        status, page = ask(settings, "/results/shop_raw.orders/run-2.html")
        assert status == 200
        assert re.search(r"<b class=\"check\">rows</b>", page)
        assert len(list(folder.glob("build-*"))) == 1
        # The suites are the project's own now.
        assert ask(settings, "/suites/flights_raw.flights.html")[0] == 200
        status, page = ask(settings, "/results/shop_raw.orders/run-3.html")
        assert status == 404
        assert "only the newest results of each table" in page
        for path in ("/results/", "/suites", "/../lock", "/%2e%2e/lock", "/results/../../lock"):
            assert ask(settings, path)[0] == 404, path
        assert ask(settings, "/", host="elsewhere.example")[0] == 403
