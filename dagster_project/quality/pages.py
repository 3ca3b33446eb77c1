"""What the pages of Data Docs look like: the style, the frame around each, the first page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from dagster_project.identity import Table
from dagster_project.quality.results import Kept
from dagster_project.quality.suites import Suite


@dataclass(frozen=True, slots=True)
class Shown:
    """A result as the site shows it."""

    kept: Kept
    partitions: str
    result: Mapping[str, Any]


#: Nothing comes from the network, and no script is run, whatever a value has in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

#: The classes are those of Great Expectations' pages. What these do with scripts, to fold out and
#: to show what failed only, is done here without.
_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dde3, #3c444d);
  --soft: light-dark(#f3f5f7, #21262c); --bad: light-dark(#b3261e, #ff8a80);
  --good: light-dark(#1b7f3b, #7ddc9a); --link: light-dark(#0b57d0, #8ab4f8); }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem 1.5rem 4rem;
  max-width: 1500px; }
a { color: var(--link); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; } h4, h5, h6 { font-size: 1rem; margin: .2rem 0; }
header { border-bottom: 1px solid var(--line); margin-bottom: 1rem; padding-bottom: .6rem; }
header a, header span { margin-right: 1.2rem; }
table { border-collapse: collapse; margin: .4rem 0 1rem; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left;
  vertical-align: top; }
th { background: var(--soft); }
table.table, table.all { width: 100%; }
pre, code { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
ul { padding-left: 1.3rem; } hr { display: none; }
td a, td > code { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.card-header, [hidden] { display: none; }
.row { display: block; }
.sticky { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; }
.card-text { display: inline; } .btn { margin-right: .6rem; cursor: pointer; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: 0; }
.alert { background: var(--soft); border-left: 4px solid var(--line); padding: .4rem .8rem;
  margin-top: 1.2rem; }
.collapse { display: none; border-left: 2px solid var(--line); padding-left: .8rem; }
.collapse:target { display: block; }
.text-danger, .failed { color: var(--bad); } .text-success, .passed { color: var(--good); }
.fa-check-circle::before { content: "\\2713 passed"; }
.fa-times::before { content: "\\2717 failed"; }
.fa-exclamation-triangle::before { content: "\\26A0 could not be evaluated"; }
.severity { color: light-dark(#5f6a75, #a0abb6); }
body:has(#option2:checked) tr:has(> .hide-succeeded-validation-target-child) { display: none; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

#: What Great Expectations' pages have that is of no use here.
_LEFT_OUT = re.compile(
    r'<nav class="navbar .*?</nav>.*?</nav>|<script\b.*?</script>|'
    r"<link\b[^>]*>|<img\b[^>]*>|<footer\b.*?</footer>|\son\w+=\"[^\"]*\"",
    re.DOTALL,
)
_TO_INDEX = '<a href="../index.html">All results</a>'
_SUITE_LINK = re.compile(r'href="(?:\.\./)+expectations/[^"]*"')


def _page(title: str, body: str) -> str:
    return _PAGE.format(
        policy=html.escape(_POLICY), title=html.escape(title), style=_STYLE, body=body
    )


def suite_frame(page: str, suite: str) -> str:
    """The page of a suite, in suites/, from that of Great Expectations."""
    return _framed(page, f"Expectations of {suite}", _TO_INDEX)


def result_frame(page: str, shown: Shown) -> str:
    """The page of a result, in results/<table>/, from that of Great Expectations."""
    item = shown.kept
    links = (
        '<a href="../../index.html">All results</a>'
        f'<a href="{quote(item.run_id)}.json">This result as JSON</a>'
        f"<span>Run <code>{html.escape(item.run_id)}</code></span>"
    )
    if shown.partitions:
        links += f" <span>of {html.escape(shown.partitions)}</span>"
    page = _SUITE_LINK.sub(f'href="../../{suite_page(str(item.table))}"', page)
    return _framed(page, f"{item.table} · {item.time:%Y-%m-%d %H:%M:%S} UTC", links)


def _framed(page: str, title: str, links: str) -> str:
    body = _LEFT_OUT.sub("", page.partition("<body>")[2].rpartition("</body>")[0])
    return _page(title, f"<header><h1>{html.escape(title)}</h1>{links}</header>\n{body}")


def no_suite_page(table: str) -> str:
    """What stands for the suite, in suites/, of a table that has results and no suite any more."""
    body = "expectations/ has no suite of this table any more; its results are of one that it had."
    return _framed(f"<body><p>{body}</p></body>", f"Expectations of {table}", _TO_INDEX)


def suite_page(suite: str) -> str:
    """Where the page of a suite is, as a URL."""
    return f"suites/{quote(suite)}.html"


def index_page(suites: Sequence[Suite], results: Sequence[Shown]) -> str:
    """The first page: each table with its newest result, then all results of each.

    The results of a table come newest first.
    """
    of_tables: dict[Table, list[Shown]] = {suite.table: [] for suite in suites}
    for shown in results:
        of_tables.setdefault(shown.kept.table, []).append(shown)
    failing = sum(bool(of) and not of[0].result["success"] for of in of_tables.values())
    never = sum(not of for of in of_tables.values())
    said = [f"{len(of_tables)} tables", f"{failing} whose newest result failed"]
    if never:
        said.append(f"{never} not checked yet")
    head = "<th>table</th><th>newest result</th><th>run</th><th>partitions</th>"
    counts = '<th class="number">passed</th><th class="number">failed</th><th>what failed</th>'
    since = "<code>mesh docs</code> adds what came since."
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    body = [
        f"<header><h1>Data Docs</h1>{', '.join(said)}. As of {now}; {since}</header>",
        f'<table class="all"><thead><tr>{head}{counts}</tr></thead><tbody>',
        *_newest(of_tables),
        "</tbody></table>",
        "<h2>All results</h2>",
    ]
    for table, of in sorted(of_tables.items()):
        rows = "".join(f"<tr>{_cells(shown)}</tr>" for shown in of)
        if rows:
            body.append(
                f"<details><summary>{html.escape(str(table))}: {len(of)}</summary>"
                f"<table>{rows}</table></details>"
            )
    return _page("Data Docs", "\n".join(body))


def _newest(of_tables: Mapping[Table, Sequence[Shown]]) -> Iterator[str]:
    for table, of in sorted(of_tables.items()):
        name = f'<a href="{suite_page(str(table))}">{html.escape(str(table))}</a>'
        cells = _cells(of[0]) if of else '<td colspan="6">not checked yet</td>'
        yield f"<tr><td>{name}</td>{cells}</tr>"


def _cells(shown: Shown) -> str:
    item, result = shown.kept, shown.result
    state = "passed" if result["success"] else "failed"
    names = [
        single["expectation_config"]["meta"].get("check", single["expectation_config"]["type"])
        for single in result["results"]
        if not single["success"]
    ]
    statistics = result["statistics"]
    return (
        f'<td><a class="{state}" href="{quote(item.page)}">{item.time:%Y-%m-%d %H:%M:%S} UTC '
        f"{state}</a></td><td><code>{html.escape(item.run_id)}</code></td>"
        f"<td>{html.escape(shown.partitions)}</td>"
        f'<td class="number">{statistics["successful_expectations"]}</td>'
        f'<td class="number">{statistics["unsuccessful_expectations"]}</td>'
        f"<td>{html.escape(', '.join(dict.fromkeys(names)))}</td>"
    )
