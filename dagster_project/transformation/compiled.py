"""The models' SQL as dbt compiles it: for those who read it, not for those who run it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock

from dagster_project.failures import DeclarationError
from dagster_project.settings import Settings, get_settings
from dagster_project.transformation.project import ensure_manifest, project_digest, run_dbt
from dagster_project.transformation.versions import models


def read_compiled(settings: Settings | None = None) -> Mapping[str, str]:
    """The SQL of each model, by unique id, compiled anew only if a file of the project changed.

    Needs no database as long as no model asks it something while it is compiled. Raises
    DeclarationError with dbt's own message if the project does not compile.
    """
    manifest = ensure_manifest(settings)
    target = (settings or get_settings()).dbt_target
    kept = target / "compiled.json"
    digest = project_digest()
    if (found := _found(kept)).get("digest") == digest:
        return _sql(found)
    with FileLock(target / "compile.lock"):
        if (found := _found(kept)).get("digest") != digest:
            found = {"digest": digest, "sql": _compile(target / "compiling", manifest)}
            beside = kept.with_suffix(".new")
            beside.write_bytes(orjson.dumps(found))
            beside.replace(kept)
    return _sql(found)


def _found(kept: Path) -> dict[str, Any]:
    return orjson.loads(kept.read_bytes()) if kept.exists() else {}


def _sql(found: Mapping[str, Any]) -> Mapping[str, str]:
    sql: Mapping[str, str] = found["sql"]
    return sql


def _compile(folder: Path, manifest: Path) -> dict[str, str]:
    """In a folder of its own: dbt writes another manifest than the one that everybody reads."""
    parsed = manifest.with_name("partial_parse.msgpack")
    try:
        done = run_dbt(
            folder,
            *("compile", "--no-populate-cache", "--no-introspect"),
            *("--select", "resource_type:model"),
            *(("--partial-parse-file-path", str(parsed.absolute())) if parsed.exists() else ()),
        )
        if done.returncode != 0:
            raise DeclarationError(f"the dbt project does not compile:\n{done.stdout}{done.stderr}")
        compiled = orjson.loads((folder / "manifest.json").read_bytes())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {unique_id: node["compiled_code"] for unique_id, node in models(compiled).items()}
