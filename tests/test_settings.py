"""Settings: a mistake in the environment is named, with what is allowed, and never its value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dagster_project.failures import SettingsError
from dagster_project.settings import PROJECT, Environment, Settings, read_settings, warehouse_url

WORD = "s3cr3t-word"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's."""
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)


def refusal(monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    return str(caught.value)


def test_without_any_setting_everything_lies_in_the_checkout() -> None:
    settings = read_settings()
    assert settings.env is Environment.LOCAL
    assert settings.home == PROJECT / ".mesh"
    assert settings.lake == (PROJECT / ".mesh" / "lake").as_uri()
    assert settings.warehouse_url is None


def test_everything_local_follows_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    settings = read_settings()
    places = (settings.dagster_home, settings.dbt_target, settings.connectors)
    assert {place.parent for place in places} == {tmp_path}
    assert settings.lake == (tmp_path / "lake").as_uri()


def test_an_unknown_setting_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, MESH_WAREHOUSE_ULR=WORD)
    assert message == "MESH_WAREHOUSE_ULR is not a setting: did you mean MESH_WAREHOUSE_URL?"


def test_an_unknown_setting_like_no_other_is_refused_with_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = refusal(monkeypatch, MESH_QQQQQQQQQQQQ=WORD)
    assert "MESH_QQQQQQQQQQQQ is not a setting" in message
    assert "MESH_LAKE_URL" in message
    assert WORD not in message


@pytest.mark.parametrize("value", ["prod", "LOCAL", "test", " local"])
def test_an_environment_outside_the_list_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    message = refusal(monkeypatch, MESH_ENV=value)
    assert message.startswith("MESH_ENV: ")
    assert "'local', 'staging' or 'production'" in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MESH_WAREHOUSE_URL", f"mysql://u:{WORD}@h/d", "postgresql://user:password@host"),
        ("MESH_DAGSTER_URL", f"u:{WORD}@h/d", "postgresql://user:password@host"),
        ("MESH_WAREHOUSE_URL", f"postgresql://u:{WORD}/x@h/d", "percent-encoded"),
        ("MESH_WAREHOUSE_URL", f"postgresql://u:{WORD}@x@h/d", "percent-encoded"),
        ("MESH_LAKE_URL", WORD, "must be a URL such as file:///"),
        ("MESH_LAKE_URL", f"s3://key:{WORD}@bucket/lake", "must not hold credentials"),
        ("MESH_DATAHUB_GMS_URL", f"gms:{WORD}", "must be of the form http://host:port"),
        ("MESH_DATAHUB_GMS_URL", f"http://u:{WORD}@gms:8080", "must be of the form http://"),
        ("MESH_FAKER_USERS", WORD, "valid integer"),
        ("MESH_FAKER_USERS", "0", "greater than or equal to 1"),
        ("MESH_SYNC_TIMEOUT", "-1", "greater than or equal to 1"),
    ],
)
def test_a_malformed_value_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    message = refusal(monkeypatch, **{name: value})
    assert message.startswith(f"{name}: ")
    assert said in message
    assert WORD not in message


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, MESH_HOEM="x", MESH_ENV="x", MESH_FAKER_USERS="x")
    assert [line.split()[0].rstrip(":") for line in message.splitlines()] == [
        "MESH_HOEM",
        "MESH_ENV",
        "MESH_FAKER_USERS",
    ]


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_HOME", "")
    monkeypatch.setenv("MESH_WAREHOUSE_URL", "")
    settings = read_settings()
    # Not the current folder, which `make clean` would remove.
    assert settings.home == PROJECT / ".mesh"
    assert settings.warehouse_url is None


def test_passwords_do_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_WAREHOUSE_URL", f"postgresql://u:{WORD}@h/d")
    monkeypatch.setenv("MESH_DATAHUB_TOKEN", WORD)
    settings = read_settings()
    assert WORD not in repr(settings) + str(settings) + settings.model_dump_json()
    assert warehouse_url(settings) == f"postgresql://u:{WORD}@h/d"


def test_datahub_is_files_until_its_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_DATAHUB_GMS_URL", "")
    monkeypatch.setenv("MESH_DATAHUB_TOKEN", "")
    settings = read_settings()
    assert settings.datahub_gms_url is settings.datahub_token is None
    monkeypatch.setenv("MESH_DATAHUB_GMS_URL", "https://datahub.example/api/gms/")
    monkeypatch.setenv("MESH_DATAHUB_TOKEN", WORD)
    settings = read_settings()
    assert settings.datahub_gms_url == "https://datahub.example/api/gms"
    assert settings.datahub_token is not None
    assert settings.datahub_token.get_secret_value() == WORD


def test_a_process_without_a_warehouse_is_told_where_one_comes_from() -> None:
    with pytest.raises(SettingsError, match="MESH_WAREHOUSE_URL is not set"):
        warehouse_url(Settings())


def test_reading_the_settings_creates_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    read_settings()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["?token=x", "#top", "/?", "/gms?#"])
def test_a_server_s_address_is_one_that_a_path_can_follow(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("MESH_DATAHUB_GMS_URL", f"https://datahub.example{end}")
    with pytest.raises(SettingsError, match=r"must be of the form http://host:port or https://"):
        read_settings()
