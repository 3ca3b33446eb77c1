"""Following a domain's runs by their events: the event log is the one source of what a run did."""

from __future__ import annotations

import re
import time
from typing import Any

import dagster as dg
from dagster import DagsterEventType, EventLogEntry
from dagster._core.events import DagsterEvent

from dagster_project.cli.progress import DomainProgress, RunStarted
from dagster_project.identity import RAW_SUFFIX

_ENDED = (
    DagsterEventType.RUN_SUCCESS,
    DagsterEventType.RUN_FAILURE,
    DagsterEventType.RUN_CANCELED,
)
#: What a connector logs of its own code; the UI has it, a person at a terminal needs the rest.
_TRACEBACK = re.compile(r"\n *Traceback \(most recent call last\):(?:\n(?:  File | {4}).*)*")


def _numbers(metadata: Any) -> dict[str, Any]:
    return {key: getattr(value, "value", value) for key, value in metadata.items()}


class Follower:
    """Reads the new events of the run that a domain is at and notes them in its progress."""

    def __init__(self, instance: dg.DagsterInstance, progress: DomainProgress) -> None:
        self._instance = instance
        self._progress = progress
        self._run: RunStarted | None = None
        self._cursor: str | None = None

    def follow(self, run: RunStarted) -> None:
        """Go on with the next run; the one before has ended."""
        self.read()
        self._run, self._cursor = run, None
        self._progress.part = run.part

    def read(self) -> None:
        """Take in what happened since the last call."""
        if self._run is None:
            return
        while True:
            page = self._instance.get_records_for_run(
                self._run.run_id, cursor=self._cursor, limit=1000
            )
            self._cursor = page.cursor
            for record in page.records:
                self._take(record.event_log_entry, self._run)
            if not page.has_more:
                return

    def _take(self, entry: EventLogEntry, run: RunStarted) -> None:
        progress = self._progress
        event = entry.dagster_event
        if event is None:
            if "rows so far" in entry.user_message:
                progress.news = entry.user_message
            return
        kind = event.event_type
        if kind is DagsterEventType.RUN_START:
            if progress.state == "starting":
                progress.state, progress.started = "running", entry.timestamp
            found = self._instance.get_run_by_id(run.run_id)
            progress.planned += len((found and found.step_keys_to_execute) or ())
        elif kind in _ENDED:
            progress.steps.clear()
            if kind is DagsterEventType.RUN_CANCELED:
                progress.state, progress.ended = "canceled", entry.timestamp
            elif kind is DagsterEventType.RUN_SUCCESS and run.last:
                # Else only the domain's process knows what follows, and tells by its end.
                progress.state, progress.ended = "succeeded", entry.timestamp
        elif kind is DagsterEventType.STEP_START and event.step_key:
            progress.steps[event.step_key] = time.time()
        elif kind in (
            DagsterEventType.STEP_SUCCESS,
            DagsterEventType.STEP_FAILURE,
            DagsterEventType.STEP_SKIPPED,
        ):
            progress.steps.pop(event.step_key or "", None)
            progress.done += 1
            progress.news = ""
        if kind is DagsterEventType.STEP_FAILURE:
            self._take_failure(event)
        elif kind is DagsterEventType.ASSET_MATERIALIZATION:
            self._take_materialization(event, run.run_id)
        elif kind is DagsterEventType.ASSET_CHECK_EVALUATION:
            self._take_check(event)

    def _take_failure(self, event: DagsterEvent) -> None:
        failure = event.step_failure_data
        error = failure.error
        while error and error.cause:
            error = error.cause
        said = failure.user_failure_data and failure.user_failure_data.description
        message = (said or (error.message if error else "failed")).strip()
        for prefix in ("dagster_project.failures.", "dagster._core.errors."):
            message = message.removeprefix(prefix)
        self._progress.errors.append(f"{event.step_key}: {_TRACEBACK.sub('', message)}")

    def _take_materialization(self, event: DagsterEvent, run_id: str) -> None:
        materialization = event.step_materialization_data.materialization
        path = materialization.asset_key.path
        name = "/".join(path)
        found = _numbers(materialization.metadata)
        if path[0] == "lake":
            self._progress.streams[name] = int(found.get("dagster/row_count", 0))
        elif path[0].endswith(RAW_SUFFIX):
            at, new, changed = (run_id, name), found.get("new", 0), found.get("changed", 0)
            self._progress.received[at] = int(found.get("received", 0))
            self._progress.loaded[at] = int(new) + int(changed)
        elif found.get("up to date"):
            self._progress.up_to_date.add(name)
        else:
            self._progress.built.add(name)

    def _take_check(self, event: DagsterEvent) -> None:
        check = event.asset_check_evaluation_data
        name = f"{check.asset_key.to_user_string()} {check.check_name}"
        if check.passed:
            self._progress.passed += 1
        elif check.severity is dg.AssetCheckSeverity.WARN:
            self._progress.warned.append(name)
        else:
            self._progress.failed.append(name)
            self._progress.errors.append(
                f"the check {check.check_name} of "
                f"{check.asset_key.to_user_string()} failed: {check.description or _why(check)}"
            )


def _why(check: Any) -> str:
    found = _numbers(check.metadata)
    said = [f"{key} {found[key]}" for key in ("observed value", "unexpected rows") if key in found]
    return ", ".join(said) or "see the UI"
