"""The dbt project: its parsed manifest, and what dbt needs of its environment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
from filelock import FileLock

from dagster_project.failures import DeclarationError
from dagster_project.settings import DBT_PROJECT_DIR, Settings, get_settings

_PARSED = ("*.sql", "*.yml", "*.yaml", "*.csv", "*.md")
_NOT_SOURCE = {"target", "logs", "dbt_packages"}
PASSWORD = "DBT_ENV_SECRET_MESH_PASSWORD"  # noqa: S105 - dbt scrubs variables of this prefix


def dbt_executable() -> Path:
    """The dbt of this Python environment."""
    return Path(sys.executable).parent / "dbt"


def dbt_environment(warehouse_url: str | None) -> dict[str, str]:
    """The environment variables that dbt_project/profiles.yml reads, and dbt's own settings."""
    environment = {
        # Where dbt finds what it parsed, and leaves what each invocation made.
        "DBT_TARGET_PATH": str(get_settings().dbt_work.absolute()),
        "DBT_LOG_PATH": str(get_settings().dbt_work.absolute()),
        "DBT_PROFILES_DIR": str(DBT_PROJECT_DIR),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
        "DBT_USE_COLORS": "false",
        # A test runs with the models that it needs, not with every model that it mentions: one
        # domain's build does not run another's tests.
        "DBT_INDIRECT_SELECTION": "buildable",
    }
    if warehouse_url:
        parts = urlsplit(warehouse_url)
        environment |= {
            "DBT_MESH_HOST": parts.hostname or "localhost",
            "DBT_MESH_PORT": str(parts.port or 5432),
            "DBT_MESH_USER": unquote(parts.username or ""),
            "DBT_MESH_DATABASE": unquote(parts.path.lstrip("/")),
            "DBT_MESH_SSLMODE": parse_qs(parts.query).get("sslmode", ["prefer"])[-1],
            PASSWORD: unquote(parts.password or ""),
        }
    return environment


def project_digest() -> str:
    """Of everything that dbt parses."""
    digest = hashlib.sha256(sys.version.encode())
    files = sorted(
        path
        for pattern in _PARSED
        for path in DBT_PROJECT_DIR.rglob(pattern)
        if not _NOT_SOURCE & set(path.relative_to(DBT_PROJECT_DIR).parts)
    )
    for path in files:
        digest.update(str(path.relative_to(DBT_PROJECT_DIR)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ensure_manifest(settings: Settings | None = None) -> Path:
    """The manifest of the dbt project as it stands, parsed anew only if a file of it changed.

    Needs no database. Code locations that load side by side parse once between them. What lies in
    MESH_DBT_TARGET_DIR was parsed where the image was built: nothing is written there. Raises
    DeclarationError with dbt's own message if the project does not parse, or if what lies there was
    parsed from other files.
    """
    settings = settings or get_settings()
    if settings.dbt_target_dir is None:
        return parse_manifest(settings)
    if is_parsed(settings):
        return settings.dbt_target / "manifest.json"
    there = (settings.dbt_target / "manifest.json").exists()
    raise DeclarationError(
        f"MESH_DBT_TARGET_DIR: {settings.dbt_target} "
        f"{'was parsed from other files, or by another Python,' if there else 'holds nothing'} "
        f"{'than these' if there else 'that was parsed'}: run `mesh deploy prepare` there, as the "
        "image's build does, or leave the setting out to have the project parsed under MESH_HOME"
    )


def parse_manifest(settings: Settings) -> Path:
    """As `ensure_manifest`, and parses into MESH_DBT_TARGET_DIR, too."""
    target = settings.dbt_target
    manifest, stamp = target / "manifest.json", target / "parsed"
    digest = project_digest()
    if _is_parsed(manifest, stamp, digest):
        return manifest
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / "parse.lock"):
            if not _is_parsed(manifest, stamp, digest):
                stamp.unlink(missing_ok=True)
                _parse(target)
                stamp.write_text(digest)
    except OSError as error:
        raise DeclarationError(
            f"{target}, where the parsed dbt project is to lie, cannot be written: "
            f"{error.strerror}. Free some disk space, or name a folder that you may write"
        ) from None
    return manifest


def is_parsed(settings: Settings) -> bool:
    """Whether the dbt project is parsed as it stands; nothing is done about it."""
    target = settings.dbt_target
    return _is_parsed(target / "manifest.json", target / "parsed", project_digest())


def forget_parsed(settings: Settings) -> None:
    """Have it all parsed anew, as for a warehouse whose database is called otherwise."""
    for kept in ("parsed", "compiled.json"):
        (settings.dbt_target / kept).unlink(missing_ok=True)


def databases(manifest: Mapping[str, Any]) -> set[str]:
    """The databases that the models are of: fixed when the project is parsed."""
    return {node["database"] for node in manifest["nodes"].values()}


def _is_parsed(manifest: Path, stamp: Path, digest: str) -> bool:
    return manifest.exists() and stamp.exists() and stamp.read_text() == digest


def _parse(target: Path) -> None:
    done = run_dbt(target, "parse")
    if done.returncode != 0:
        raise DeclarationError(f"the dbt project does not parse:\n{done.stdout}{done.stderr}")


def run_dbt(target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dbt on the project to its end; what it parsed, writes and logs is in `target`."""
    known = get_settings().warehouse_url
    return subprocess.run(
        [str(dbt_executable()), "--no-use-colors", "--quiet", *arguments],
        env=os.environ
        # What dbt parsed for one connection it does not use for another.
        | dbt_environment(known.get_secret_value() if known else None)
        | {
            "DBT_TARGET_PATH": str(target),
            "DBT_LOG_PATH": str(target),
            "DBT_PROJECT_DIR": str(DBT_PROJECT_DIR),
        },
        cwd=DBT_PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
    )


@lru_cache(maxsize=1)
def _read(path: Path, _modified: int) -> Mapping[str, Any]:
    manifest: Mapping[str, Any] = orjson.loads(path.read_bytes())
    return manifest


def read_manifest(settings: Settings | None = None) -> Mapping[str, Any]:
    """The manifest's content, parsed anew if need be."""
    path = ensure_manifest(settings)
    return _read(path, path.stat().st_mtime_ns)
