"""The column lineage of the dbt project as it stands, kept beside its manifest.

Reading the SQL of all models takes seconds, so it is done once a version of the project, by whoever
tells the catalog of it; others only look whether it has been.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from dagster_project.catalog.column_lineage import ModelColumns, column_lineage
from dagster_project.identity import Table
from dagster_project.settings import Settings
from dagster_project.transformation.project import project_digest
from dagster_project.transformation.versions import models, node_table

_FILE = "column_lineage.json"


def read_lineage(
    settings: Settings,
    manifest: Mapping[str, Any],
    compiled: Mapping[str, str],
    say: Callable[[str], None],
) -> Mapping[str, ModelColumns]:
    """Of each model by unique id, what its columns are computed from; read anew if need be.

    `say` hears of models whose SQL is not understood, each time.
    """
    path, digest = settings.dbt_target / _FILE, project_digest()
    found = _found(path)
    if found.get("digest") != digest:
        said: list[str] = []
        lineage = column_lineage(manifest, compiled, said.append)
        tables = {unique_id: str(node_table(node)) for unique_id, node in models(manifest).items()}
        found = {
            "digest": digest,
            "said": said,
            "columns": {
                unique_id: {
                    column: sorted([str(table), theirs] for table, theirs in origins)
                    for column, origins in columns.items()
                }
                for unique_id, columns in lineage.items()
            },
            "tables": tables,
        }
        # Who tells of it and who prints it may both read it anew.
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(orjson.dumps(found))
        beside.replace(path)
    for each in found["said"]:
        say(each)
    return {unique_id: _parsed(columns) for unique_id, columns in found["columns"].items()}


def kept_lineage(settings: Settings) -> Mapping[Table, ModelColumns]:
    """The same by table, if it has been read for the project as it stands; else nothing.

    No run fails for what is kept, whatever has become of it.
    """
    path = settings.dbt_target / _FILE
    try:
        digest, tables = _kept(path, path.stat().st_mtime_ns)
    except OSError:
        return {}
    return tables if digest == project_digest() else {}


def _found(path: Path) -> dict[str, Any]:
    """What the file holds; nothing if it is not there, or not as this code writes it."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    is_ours = isinstance(found, dict) and found.keys() == {"digest", "said", "columns", "tables"}
    return found if is_ours else {}


@lru_cache(maxsize=1)
def _kept(path: Path, _modified: int) -> tuple[str, Mapping[Table, ModelColumns]]:
    if not (found := _found(path)):
        return "", {}
    tables = {
        Table.parse(found["tables"][unique_id]): _parsed(columns)
        for unique_id, columns in found["columns"].items()
    }
    return found["digest"], tables


def _parsed(columns: Mapping[str, list[list[str]]]) -> ModelColumns:
    return {
        column: frozenset((Table.parse(table), theirs) for table, theirs in origins)
        for column, origins in columns.items()
    }
