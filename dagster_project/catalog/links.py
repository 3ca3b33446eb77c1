"""Where Dagster's UI, which answers at `ui`, shows what the catalog tells of; and the other way."""

from __future__ import annotations

from urllib.parse import quote


def asset_link(ui: str, asset_key: tuple[str, ...]) -> str:
    """An asset's page."""
    return f"{ui}/assets/{'/'.join(quote(part, safe='') for part in asset_key)}"


def check_link(ui: str, asset_key: tuple[str, ...], check: str) -> str:
    """A check's page."""
    return f"{asset_link(ui, asset_key)}?view=checks&checkDetail={quote(check, safe='')}"


def run_link(ui: str, run_id: str) -> str:
    """A run's page."""
    return f"{ui}/runs/{run_id}"


def dataset_link(datahub: str, urn: str) -> str:
    """A dataset's page in DataHub, which answers at `datahub`."""
    return f"{datahub}/dataset/{quote(urn, safe='')}"
