"""A sync as dagster-airbyte's factory runs it: its materialisations and its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster_airbyte import build_airbyte_assets_definitions

from dagster_project.components.airbyte_connection import StreamTranslator
from dagster_project.ingestion import declaration, engine
from dagster_project.ingestion.workspace import EmbeddedWorkspace
from tests.ingestion.scripted import Shop, stream

BODY = """
record("Order Items", id=1, extra=5)
record("Order Items", id="x")
status("Order Items")
"""


@pytest.fixture
def declared(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_settings: None
) -> None:
    """The domain `shop`, in which the connection `main` has one stream."""
    attributes = {
        "name": "main",
        "source": "a test",
        "connector": {"environment": "source-test", "version": "1.0"},
        "streams": [
            stream("Order Items", id="integer", name="string") | {"destination_sync_mode": "append"}
        ],
    }
    path = tmp_path / "defs.yaml"
    path.write_text(yaml.safe_dump({"type": declaration.CONNECTION_TYPE, "attributes": attributes}))
    monkeypatch.setattr(declaration, "declaration_path", lambda domain: path)
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    command = shop.script(BODY)
    monkeypatch.setattr(engine, "connector_command", lambda *_: command)


@pytest.mark.usefixtures("declared")
def test_a_materialisation_tells_what_came_and_how(capfd: pytest.CaptureFixture[str]) -> None:
    assets = build_airbyte_assets_definitions(
        workspace=EmbeddedWorkspace(workspace_id="shop"),
        dagster_airbyte_translator=StreamTranslator(),
    )
    result = dg.materialize(assets, resources={"airbyte": EmbeddedWorkspace()})
    (event,) = result.get_asset_materialization_events()
    found = event.materialization
    assert found.asset_key.path == ["lake", "shop", "main", "order_items"]
    values: dict[str, Any] = {name: value.value for name, value in found.metadata.items()}
    assert (values["dagster/row_count"], values["objects"], values["commit"]) == (2, 1, 1)
    assert values["bytes"] > 0
    assert values["sent bytes"] > 100
    assert values["seconds"] >= 0
    assert values["rows per second"] >= 0
    assert values["undeclared fields"] == "extra"
    assert values["absent columns"] == "name"
    assert (values["refused rows"], values["refused values"]) == (1, "id: 1")
    assert "2 rows, 0.0 MB in " in capfd.readouterr().err


@pytest.mark.usefixtures("declared")
def test_whose_run_was_done_with_its_sync_has_another(shop: Shop) -> None:
    """Nothing was killed here: each run appends, also one after a load that failed."""

    def run(instance: dg.DagsterInstance, loads: bool) -> None:
        @dg.asset(deps=[["lake", "shop", "main", "order_items"]], key=["shop_raw", "order_items"])
        def load() -> None:
            if not loads:
                raise ValueError("the disk is full")

        syncs = build_airbyte_assets_definitions(
            workspace=EmbeddedWorkspace(workspace_id="shop"),
            dagster_airbyte_translator=StreamTranslator(),
        )
        workspace = {"airbyte": EmbeddedWorkspace()}
        assets = [*syncs, load]
        dg.materialize(assets, resources=workspace, instance=instance, raise_on_error=False)

    with dg.DagsterInstance.ephemeral() as instance:
        for loads in (False, False, True, True):
            run(instance, loads)
        assert shop.log.numbers() == [1, 2, 3, 4]
    with dg.DagsterInstance.ephemeral() as another:
        run(another, loads=True)
    assert shop.log.numbers() == [1, 2, 3, 4, 5]
