"""DataHub's library is imported by those functions that need it, and calls nobody."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

from dagster_project import catalog
from dagster_project.settings import PROJECT

HEAVY = {"avro", "dagster", "datahub", "great_expectations", "pandas", "sqlglot"}
IMPORT = """
import importlib, json, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps([modules, os.environ["DATAHUB_TELEMETRY_ENABLED"]]))
"""


def test_importing_the_catalog_imports_nothing_heavy_and_turns_telemetry_off() -> None:
    modules = [
        module.name for module in pkgutil.iter_modules(catalog.__path__, f"{catalog.__name__}.")
    ]
    assert len(modules) > 5
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *modules, "dagster_project.cli.app"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    imported, telemetry = json.loads(done.stdout)
    assert not HEAVY & set(imported)
    assert telemetry == "false"
