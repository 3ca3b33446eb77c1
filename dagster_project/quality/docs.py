"""Data Docs: the static site of all suites and all kept results, built by Great Expectations.

Great Expectations makes a page of each suite and of each result. Its pages load styles and scripts
from the network and put values into the markup as they are. Here they get their style from the
site itself, need no script, may run none, and values are escaped.

The site is a folder that is put in place as a whole; pages that the one before already has are
taken over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import orjson

from dagster_project.failures import BusyError, LakeError, MeshError
from dagster_project.lake.store import Lake
from dagster_project.quality.masking import masked_result
from dagster_project.quality.pages import Shown, index_page, no_suite_page
from dagster_project.quality.rendering import render
from dagster_project.quality.results import Kept, kept, read
from dagster_project.quality.suites import Suite
from dagster_project.warehouse.lease import held

#: The site within its folder: a link to the build that is whole.
SITE = "site"
#: What tells whether the pages of the site before are still as they would be built.
_STATE = "state.json"
#: Seconds to wait for somebody else's build.
_PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Site:
    """A site that was built."""

    folder: Path
    suites: int
    results: int
    #: Results that were rendered now; the others' pages are those of the site before.
    rendered: int
    #: What could not be shown, and why.
    faults: Sequence[str]


def build(
    folder: Path,
    lake: Lake,
    suites: Sequence[Suite],
    personal: Mapping[str, Collection[str]],
    say: Callable[[int, int], None] = lambda done, of: None,
) -> Site:
    """Build the site into `folder`/site, from these suites and all results in the lake.

    `personal` are the columns of personal data by schema.table: masked here too, for what was kept
    before they were declared. `say` is told how many of the pages are made. Raises MeshError if
    there is nothing to show, BusyError if somebody else's build does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / "lock", exclusive=True, timeout=_PATIENCE) as mine:
        if not mine:
            raise BusyError(f"another `mesh docs` is building {folder}: wait until it has ended")
        _remove_unfinished(folder)
        tables = kept(lake)
        if not tables:
            raise MeshError(
                f"the lake at {lake.url} holds no result of a validation yet: `mesh run` checks "
                "the tables, and so do the checks that are started in the UI"
            )
        before = folder / SITE
        state = _state(personal)
        usable = _read_state(before) == state
        new = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
        # As readable as any folder that is made.
        new.chmod(0o755)
        items = [item for of_table in tables.values() for item in of_table]
        shown: list[Shown] = []
        fresh: list[Shown] = []
        faults: list[str] = []
        for item in items:
            there = _taken_over(before, new, item) if usable else None
            if there is None:
                try:
                    there = _written(new, lake, item, personal.get(str(item.table), ()))
                except LakeError as error:
                    faults.append(str(error))
                    continue
                fresh.append(there)
            shown.append(there)
        faults += render(new, suites, fresh, say)
        for table in {str(table) for table in tables} - {suite.name for suite in suites}:
            (new / "suites" / f"{table}.html").write_text(no_suite_page(table))
        (new / "index.html").write_text(index_page(suites, shown))
        (new / _STATE).write_text(state)
        _put_in_place(new, before)
    return Site(before, len(suites), len(shown), len(fresh), faults)


def _state(personal: Mapping[str, Collection[str]]) -> str:
    """Changes when a page of the same result would be another one."""
    sources = [Path(__file__), *map(Path(__file__).with_name, ("pages.py", "rendering.py"))]
    told = [
        version("great_expectations"),
        *(source.read_text() for source in sources),
        json.dumps({table: sorted(columns) for table, columns in sorted(personal.items())}),
    ]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()


def _read_state(site: Path) -> str:
    try:
        return (site / _STATE).read_text()
    except OSError:
        return ""


def _remove_unfinished(folder: Path) -> None:
    """Builds of killed processes, and those that were replaced."""
    current = (folder / SITE).resolve()
    for path in folder.resolve().glob("build-*"):
        if path != current:
            shutil.rmtree(path, ignore_errors=True)


def _put_in_place(new: Path, site: Path) -> None:
    """Have the link name the new build: whoever reads finds one or the other, never a half."""
    old = site.resolve() if site.is_symlink() else None
    link = site.with_name(f"{site.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    link.replace(site)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _document(folder: Path, item: Kept) -> Path:
    return (folder / item.page).with_suffix(".json")


def _taken_over(before: Path, new: Path, item: Kept) -> Shown | None:
    """The result with its page from the site before; None if that has not both."""
    old = _document(before, item)
    try:
        document = orjson.loads(old.read_bytes())
        if document["time"] != item.time.isoformat():
            return None
        for source in (old, before / item.page):
            target = new / source.relative_to(before)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    except (OSError, orjson.JSONDecodeError):
        return None
    return Shown(item, document["partitions"], document["result"])


def _written(new: Path, lake: Lake, item: Kept, personal: Collection[str]) -> Shown:
    """The result from the lake, written to be read beside its page."""
    document = read(lake, item)
    result = masked_result(document.result, personal)
    path = _document(new, item)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    told = {
        "table": str(item.table),
        "run_id": item.run_id,
        "time": item.time.isoformat(),
        "partitions": document.partitions,
        "result": result,
    }
    path.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    return Shown(item, document.partitions, result)
