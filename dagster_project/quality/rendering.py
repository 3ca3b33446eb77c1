"""Pages of suites and results as Great Expectations' Data Docs have them.

It puts values into the markup as they are, and has no place for an expectation's name, for rows and
for some values: what it is given is escaped, and these are part of an expectation's text.
"""

from __future__ import annotations

import html
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dagster_project.quality.outcome import MASK
from dagster_project.quality.pages import Shown, result_frame, suite_frame
from dagster_project.quality.suites import Suite

#: Pages between two words on how far it is.
_BATCH = 40


def render(
    new: Path, suites: Sequence[Suite], results: Sequence[Shown], say: Callable[[int, int], None]
) -> list[str]:
    """Have Great Expectations make the pages; what it could not show."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.core import ExpectationSuite, RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    context = gx.get_context(mode="ephemeral")
    for name in list(context.list_data_docs_sites()):
        context.delete_data_docs_site(name)
    made = new / "made"
    context.add_data_docs_site(
        "results",
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(made),
            },
            "site_section_builders": {"profiling": "None"},
        },
    )
    total = len(suites) + len(results)
    for suite in suites:
        context.suites.add(
            ExpectationSuite(
                name=suite.name,
                expectations=[
                    {
                        **expectation.model_dump(mode="json", exclude_none=True),
                        "description": _titled(expectation.model_dump(mode="json")),
                    }
                    for expectation in suite.expectations
                ],
            )
        )
    (new / "suites").mkdir()
    say(0, total)
    faults: list[str] = []
    with _complaints() as complaints:
        context.build_data_docs(["results"], build_index=False)
        for suite in suites:
            text = _made(made / "expectations", ExpectationSuiteIdentifier(suite.name), faults)
            (new / "suites" / f"{suite.name}.html").write_text(suite_frame(text, suite.name))
        store = context.validation_results_store
        # In batches, as each looks through all that is in the store.
        for begin in range(0, len(results), _BATCH):
            say(len(suites) + begin, total)
            batch: dict[Any, Shown] = {}
            for shown in results[begin : begin + _BATCH]:
                item = shown.kept
                run = RunIdentifier(run_name=item.run_id, run_time=item.time)
                suite_key = ExpectationSuiteIdentifier(str(item.table))
                key = ValidationResultIdentifier(suite_key, run, "result")
                store.set(key, store.deserialize(_for_page(shown, run.to_json_dict())))
                batch[key] = shown
            context.build_data_docs(
                ["results"], resource_identifiers=list(batch), build_index=False
            )
            for key, shown in batch.items():
                text = _made(made / "validations", key, faults)
                (new / shown.kept.page).write_text(result_frame(text, shown))
                store.remove_key(key)
    say(total, total)
    shutil.rmtree(made, ignore_errors=True)
    return faults + list(dict.fromkeys(complaints))


def _made(folder: Path, key: Any, faults: list[str]) -> str:
    """The page that Great Expectations made; one without content if it could not."""
    page = folder.joinpath(*key.to_tuple())
    try:
        return page.with_name(f"{page.name}.html").read_text()
    except FileNotFoundError:
        faults.append(f"Great Expectations could not make the page {'/'.join(key.to_tuple())}")
        return "<body><p>Great Expectations could not make this page.</p></body>"


def _titled(expectation: Mapping[str, Any]) -> str:
    """An expectation's text, as markup, after its name."""
    name = expectation["meta"].get("check") or expectation["type"]
    severity = expectation.get("severity") or ""
    text = _markup(expectation.get("description") or expectation["type"])
    return f'<b class="check">{_markup(name)}</b> <i class="severity">{severity}</i> {text}'


def _sample(result: Mapping[str, Any]) -> str:
    """Unexpected rows, or distinct values, as markup: Great Expectations shows neither."""
    rows = list(result.get("unexpected_rows") or ())
    if "unexpected_percent" not in result:
        for kind in ("unexpected", "missing"):
            values = result.get(f"partial_{kind}_list") or ()
            rows += [{kind: value} for value in ([values] if values == MASK else values)]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{_markup(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{_markup(row.get(name))}</td>" for name in names) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _markup(value: Any) -> str:
    """The text of a value for a description, where a dollar sign would begin a parameter."""
    return "" if value is None else html.escape(str(value)).replace("$", "&#36;")


def _for_page(shown: Shown, run: Mapping[str, Any]) -> dict[str, Any]:
    """The result as Great Expectations' pages can show it: as markup, without what stops them."""
    results = []
    for single in shown.result["results"]:
        config = single["expectation_config"]
        found = _escaped(single["result"] or {})
        for name in ("partial_unexpected_list", "partial_unexpected_counts", "unexpected_list"):
            if found.get(name) == MASK:
                found[name] = [MASK] if name == "partial_unexpected_list" else []
        if "unexpected_percent" not in found:
            # It shows these of expectations about the rows of a column, and fails at others.
            for name in ("unexpected_count", "partial_unexpected_list"):
                found.pop(name, None)
        results.append(
            {
                **single,
                "expectation_config": {
                    **config,
                    "description": _titled(config) + _sample(single["result"] or {}),
                },
                "result": found,
                "exception_info": _escaped(single.get("exception_info") or {}),
            }
        )
    table = shown.kept.table
    batch = {"data_asset_name": str(table)}
    if shown.partitions:
        batch["partitions"] = shown.partitions
    return {
        **shown.result,
        "suite_name": str(table),
        "results": results,
        "meta": {
            "run_id": run,
            "batch_spec": batch,
            "great_expectations_version": version("great_expectations"),
        },
    }


def _escaped(value: Any) -> Any:
    """Every text in it as markup."""
    if isinstance(value, str):
        return html.escape(value, quote=False)
    if isinstance(value, Mapping):
        return {name: _escaped(item) for name, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


class _Collected(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        # The first lines are the same for whatever it was, the rest is the traceback.
        found = re.search(r'(\w+: ".*?")\.  Traceback', record.getMessage(), re.S)
        what = found[1] if found else record.getMessage().splitlines()[0]
        self.lines.append(f"a part of a page could not be shown: {what}")


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What Great Expectations logs as an error meanwhile, in place of its way to the terminal."""
    lines: list[str] = []
    logger = logging.getLogger("great_expectations")
    handler, propagate = _Collected(lines), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
