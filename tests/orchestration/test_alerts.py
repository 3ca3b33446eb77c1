"""What is told of a domain: what is the matter, once, and that it is over."""

from __future__ import annotations

import json
from collections.abc import Iterator

import dagster as dg
import pytest

from dagster_project.failures import MeshError
from dagster_project.orchestration import alerts
from dagster_project.orchestration.alerts import Message, alert_sensor
from dagster_project.orchestration.problem import Kind, Problem, by_key, dump, parse, standing
from dagster_project.settings import get_settings
from tests.orchestration.domain_runs import DEFINITIONS, run
from tests.orchestration.webhook import Webhook


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook() as webhook:
        monkeypatch.setenv("MESH_ALERTS_WEBHOOK", webhook.url)
        monkeypatch.setenv("MESH_UI_URL", "http://ui.example")
        get_settings.cache_clear()
        yield webhook


def look(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str | None, str]:
    """A tick of the sensor: the cursor after it, and what it says."""
    sensor = alert_sensor("fleet", [])
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, repository_def=DEFINITIONS.get_repository_def()
    ) as context:
        skipped = sensor(context)
        return context.cursor, skipped.skip_message


def test_what_is_new_and_what_is_over_is_told_once(
    instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    cursor, _ = look(instance, None)
    assert webhook.messages == []
    failed = run(instance, "both", "seats", "there", "counted")
    cursor, said = look(instance, cursor)
    assert said == "2 problems, 2 new, 0 over"
    (message,) = webhook.messages
    assert message["text"] == "fleet (team:fleet-data): 2 new"
    shown = json.dumps(message["blocks"])
    assert f"<http://ui.example/runs/{failed}|" in shown
    assert "critical check failed" in shown
    assert {p.kind for p in standing(get_settings().home)["fleet"]} == {Kind.RUN, Kind.CRITICAL}

    cursor, said = look(instance, cursor)
    assert said == "2 problems, 0 new, 0 over"
    assert len(webhook.messages) == 1

    run(instance, "both", "counted")
    cursor, said = look(instance, cursor)
    assert said == "1 problems, 1 new, 2 over"
    shown = json.dumps(webhook.messages[1]["blocks"])
    assert "recovered" in shown
    assert "&lt;none&gt; &amp; nothing" in shown
    run(instance)
    look(instance, cursor)
    assert webhook.messages[2]["text"] == "fleet (team:fleet-data): 1 recovered"
    assert standing(get_settings().home) == {"fleet": []}
    log = (get_settings().home / "alerts" / "messages.log").read_text()
    assert log.count("team:fleet-data") == 3


def test_a_message_that_nobody_took_is_sent_again(
    instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    run(instance, "both", "seats")
    webhook.status = 500
    with pytest.raises(MeshError, match="answered 500") as told:
        look(instance, None)
    assert "secret" not in str(told.value)
    # Whoever asks sees it nevertheless.
    assert len(standing(get_settings().home)["fleet"]) == 1
    webhook.status = 200
    look(instance, None)
    assert len(webhook.messages) == 1
    webhook.end()
    run(instance)
    cursor = dump([Problem(Kind.LATE, "table", "what", "/", 0)])
    with pytest.raises(MeshError, match="does not answer") as told:
        look(instance, cursor)
    assert "secret" not in str(told.value)


def test_many_at_once_are_one_message_of_bounded_length(instance: dg.DagsterInstance) -> None:
    many = by_key(
        Problem(Kind.WARNING, f"table check_{n:03}", "x" * 900, "/", 0) for n in range(500)
    )
    message = Message("fleet", "http://ui.example", many, {})
    assert message.title() == "fleet (team:fleet-data): 500 new"
    assert f"… and {500 - alerts.SHOWN} more" in message.plain()
    for block in message.slack()["blocks"]:
        assert len(block["text"]["text"]) <= 3000
    assert parse(dump(many.values())) == many
