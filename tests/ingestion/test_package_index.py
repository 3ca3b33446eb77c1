"""What uv is told of the index that pip was configured with, and the advice after a failure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dagster_project.ingestion.package_index import advice, last_lines, pip_settings, uv_environment

LISTING = """\
global.index-url='https://mirror.example/simple'
:env:.timeout='60'
install.index-url='https://install.example/simple'
global.cert='/etc/ca.pem'
"""


def test_the_section_of_the_command_wins_over_the_global_one() -> None:
    assert pip_settings(LISTING) == {
        "index-url": "https://install.example/simple",
        "cert": "/etc/ca.pem",
        "timeout": "60",
    }


@pytest.mark.parametrize(
    ("environ", "index"),
    [
        ({}, None),
        ({"PIP_INDEX_URL": "https://a.example/simple"}, "https://a.example/simple"),
        (
            {"PIP_INDEX_URL": "https://a.example", "UV_DEFAULT_INDEX": "https://b.example"},
            "https://b.example",
        ),
        ({"PIP_INDEX_URL": "https://a.example", "UV_INDEX_URL": "https://b.example"}, None),
    ],
)
def test_uv_gets_the_index_that_pip_has_unless_it_has_its_own(
    environ: dict[str, str], index: str | None
) -> None:
    environ = {**environ, "PIP_CONFIG_FILE": "/dev/null", "VIRTUAL_ENV": "/elsewhere"}
    found = uv_environment(Path(sys.executable), environ)
    assert found.get("UV_DEFAULT_INDEX") == index
    assert "VIRTUAL_ENV" not in found


def test_the_index_of_pips_configuration_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    found = uv_environment(Path(sys.executable), {"PIP_CONFIG_FILE": str(file)})
    assert found["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"


def test_credentials_of_an_address_are_not_shown() -> None:
    assert last_lines("fetching https://me:secret@mirror.example/simple\n\n") == (
        "  fetching https://****@mirror.example/simple"
    )


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "No disk space is left"),
        ("cause: Hash mismatch for `six==1.17.0`", "file other than the one that was locked"),
        ("error sending request for url", "package index was not reached"),
        ("ERROR: No matching distribution found for uv==1", "package index was not reached"),
        ("because ensurepip is not available", "apt install python3-venv"),
        ("has no wheels with a matching platform tag", "has no wheel for this system"),
        ("something else", "Mend what the lines above say"),
    ],
)
def test_advice_fits_what_the_installer_said(output: str, says: str) -> None:
    assert says in advice(output)
