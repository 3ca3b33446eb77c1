"""Telling people what is the matter: one message for all that is new, one more when it is over.

A sensor a domain looks at the problems that stand and compares them with those it told of. It
notes them only once they were told, so that a message is told twice rather than not at all.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from dagster_project.domain import read_domain
from dagster_project.failures import MeshError
from dagster_project.ingestion.feed import FeedDeclaration, read_feeds
from dagster_project.lake.store import Lake
from dagster_project.orchestration.diagnosis import (
    LONGEST,
    broken_triggers,
    failed_checks,
    failed_runs,
    late_tables,
    stuck_deliveries,
)
from dagster_project.orchestration.problem import Kind, Problem, by_key, dump, folder, keep, parse
from dagster_project.orchestration.undone import units_of
from dagster_project.settings import Settings, get_settings, warehouse_url

#: Seconds between two looks.
LOOK = 15
#: Problems that a message names at most, of each sort.
SHOWN = 15
#: Seconds that a webhook has to answer.
TIMEOUT = 10


def alert_sensor(domain: str, promised: Sequence[dg.AssetKey]) -> dg.SensorDefinition:
    """Tells of what is the matter with a domain, `promised` being its data products' tables."""

    @dg.sensor(
        name=f"{domain}_alerts",
        minimum_interval_seconds=LOOK,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells the domain's owner of failed runs and checks, of late data products, "
        "broken triggers and stuck deliveries, and when they are over.",
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        settings = get_settings()
        known = parse(context.cursor)
        found = by_key(_look(context, domain, promised, list(known.values())))
        keep(settings.home, domain, found.values())
        news = Message(domain, settings.ui, found, known)
        if news:
            news.tell(settings, context.log.warning)
        context.update_cursor(dump(found.values()))
        return dg.SkipReason(f"{len(found)} problems, {len(news.new)} new, {len(news.over)} over")

    return alerts


def _look(
    context: dg.SensorEvaluationContext,
    domain: str,
    promised: Sequence[dg.AssetKey],
    known: Collection[Problem],
) -> Iterator[Problem]:
    instance, repository = context.instance, context.repository_def
    assert repository
    told = [run_id for problem in known for run_id in problem.runs]
    graph = repository.asset_graph
    yield from failed_runs(instance, domain, told, units_of(graph))
    yield from failed_checks(instance, graph.asset_check_keys)
    yield from late_tables(instance, promised, read_domain(domain).freshness)
    triggers = {each.name for each in repository.sensor_defs}
    triggers |= {each.name for each in repository.schedule_defs}
    yield from broken_triggers(instance, domain, triggers)
    yield from stuck_files(domain, read_feeds(domain), known)


def stuck_files(
    domain: str, feeds: Sequence[FeedDeclaration], known: Collection[Problem]
) -> Iterator[Problem]:
    """Files that wait; while nobody can look, those that did, and that nobody can.

    So that a lake or a warehouse that is away does not keep the rest from being told.
    """
    try:
        if feeds:
            lake = Lake(get_settings().lake)
            yield from list(stuck_deliveries(domain, feeds, lake, warehouse_url()))
    except MeshError as error:
        name, kind = f"{domain} landing zone", Kind.TRIGGER
        since = next((p.since for p in known if (p.kind, p.name) == (kind, name)), time.time())
        path = f"/locations/__repository__@{domain}/sensors/{domain}_alerts"
        yield Problem(kind, name, f"nobody can look at it: {error}"[:LONGEST], path, since)
        yield from (problem for problem in known if problem.kind is Kind.STUCK)


class Message:
    """What is new and what is over, as a message to the owner of the domain."""

    def __init__(
        self,
        domain: str,
        ui: str,
        found: Mapping[str, Problem],
        known: Mapping[str, Problem],
        owner: str = "",
    ) -> None:
        """Of a domain, or of what else has an `owner`."""
        self.new = [problem for key, problem in found.items() if key not in known]
        self.over = [problem for key, problem in known.items() if key not in found]
        self._domain, self._ui = domain, ui
        self._owner = owner or read_domain(domain).owner

    def __bool__(self) -> bool:
        return bool(self.new or self.over)

    def title(self) -> str:
        counts = [
            f"{len(problems)} {word}"
            for problems, word in ((self.new, "new"), (self.over, "recovered"))
            if problems
        ]
        return f"{self._domain} ({self._owner}): {', '.join(counts)}"

    def tell(self, settings: Settings, log: Callable[[str], None]) -> None:
        """To the webhook, if there is one, to the log, and to the file of all messages.

        Raises MeshError if the webhook does not take it; then it is not told elsewhere either.
        """
        if settings.alerts_webhook is not None:
            _post(settings.alerts_webhook.get_secret_value(), self.slack())
        text = self.plain()
        log(text)
        with (folder(settings.home) / "messages.log").open("a") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")

    def plain(self) -> str:
        """As text, a line a problem."""
        new = [f"  {p.kind.value}: {p.name}: {p.what} {self._ui}{p.path}" for p in self.new]
        over = [f"  recovered: {p.key}, after {_lasted(p)}" for p in self.over]
        return "\n".join([self.title(), *_some(new), *_some(over)])

    def slack(self) -> dict[str, object]:
        """As Slack's webhooks, and those that speak like them, take it."""
        new = [
            f":red_circle: *{p.kind.value}* <{self._ui}{p.path}|{_escaped(p.name)}>: "
            f"{_escaped(p.what[:300])}"
            for p in self.new
        ]
        over = [
            f":large_green_circle: *recovered* after {_lasted(p)}: {_escaped(p.key)}"
            for p in self.over
        ]
        sections = [
            {"type": "section", "text": {"type": "mrkdwn", "text": "\n".join(lines)[:3000]}}
            for lines in (_some(new), _some(over))
            if lines
        ]
        header = {"type": "section", "text": {"type": "mrkdwn", "text": f"*{self.title()}*"}}
        return {"text": self.title(), "blocks": [header, *sections]}


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"  … and {more} more"] if more > 0 else [])]


def _lasted(problem: Problem) -> str:
    minutes = max(time.time() - problem.since, 0) / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _post(url: str, message: Mapping[str, object]) -> None:
    request = urllib.request.Request(  # noqa: S310 - the settings take http and https only
        url, json.dumps(message).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        raise MeshError(
            f"the webhook of MESH_ALERTS_WEBHOOK answered {error.code} {error.reason}: is it still "
            "there? The message is sent again at the next look"
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise MeshError(
            f"the webhook of MESH_ALERTS_WEBHOOK does not answer ({reason}). The message is sent "
            "again at the next look"
        ) from None
