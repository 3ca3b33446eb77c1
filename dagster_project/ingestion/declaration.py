"""What a domain declares of an Airbyte connection: connector, configuration, streams, schedule."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, model_validator

from dagster_project.declarations import Declared, parse, validate
from dagster_project.domain import domain_folder
from dagster_project.failures import DeclarationError, SettingsError
from dagster_project.identity import Stream, fitting
from dagster_project.ingestion.records import AIRBYTE_COLUMNS, column_names, columns_of
from dagster_project.settings import PREFIX, Environment, Settings

CONNECTION_TYPE = "dagster_project.components.AirbyteConnection"
#: Where the reference source systems answer: found by the platform itself if it is not set.
REFERENCE_URL = "MESH_REFERENCE_URL"
_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = r"^[a-z][a-z0-9_]{0,47}$"
#: What a table of a stream can be called: it is also a folder of the lake and an asset.
_TABLE = r"^[a-z0-9][a-z0-9_]{0,62}$"
#: Columns that the platform adds, if only while it loads a table; and PostgreSQL's limit without.
_PLATFORMS = len(AIRBYTE_COLUMNS) + 6
COLUMNS = 1600 - _PLATFORMS
#: Bytes that PostgreSQL's row can have, and those of them that the platform's columns take.
ROW_BYTES, _OWN_BYTES = 8160, 64
#: Bytes that a value takes within its row at least, if it is not zero or empty; a number is taken
#: for one with a fraction. It keeps long texts elsewhere.
_LEAST_BYTES = {
    "bigint": 8,
    "timestamptz": 8,
    "date": 4,
    "boolean": 1,
    "jsonb": 5,
    "numeric": 7,
    "text": 2,
}


def _row_bytes(json_schema: Mapping[str, Any]) -> int:
    """Bytes of the shortest row of a stream's table in which no value is null."""
    columns = columns_of(json_schema).values()
    header = 23 + (len(columns) + _PLATFORMS + 7) // 8
    return header + _OWN_BYTES + sum(_LEAST_BYTES[kind.postgres] for kind in columns)


def table_name(stream: str) -> str:
    """The table's name that follows from a stream's: in lower case, of letters, digits and `_`."""
    plain = unicodedata.normalize("NFKD", stream.casefold()).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9_]+", "_", plain.lower()).strip("_")
    # A name of no Latin letter has nothing left.
    return fitting(name or f"stream_{hashlib.sha256(stream.encode()).hexdigest()[:8]}")


class SyncMode(StrEnum):
    """How a connector reads a stream (the Airbyte protocol's sync_mode)."""

    FULL_REFRESH = "full_refresh"
    INCREMENTAL = "incremental"


class DestinationSyncMode(StrEnum):
    """What happens to what was there (the Airbyte protocol's destination_sync_mode)."""

    OVERWRITE = "overwrite"
    APPEND = "append"
    APPEND_DEDUP = "append_dedup"


class Connector(Declared):
    """The program that reads the source system, in a Python environment of its own."""

    environment: str = Field(
        description="Its environment: the name of a lock file in requirements/connectors/."
    )
    executable: str | None = Field(
        None, description="The program in that environment; the environment's name if unset."
    )
    version: str = Field(description="The connector's version, as locked.")
    manifest: str | None = Field(
        None, description="A low-code manifest beside the declaration, for the declarative source."
    )
    checkpoints: bool | None = Field(
        None,
        description="Whether a sync that is stopped may resume from a state that the connector "
        "sent in the middle of a stream. By default only low-code connectors are trusted to.",
    )

    @property
    def resumes(self) -> bool:
        """Whether its states in the middle of a stream are committed."""
        return self.manifest is not None if self.checkpoints is None else self.checkpoints


class StreamDeclaration(Declared):
    """One stream of the configured catalog."""

    name: str = Field(min_length=1, pattern=r"^[^\x00]+$", description="As the source has it.")
    table: str = Field(
        default_factory=lambda declared: table_name(declared["name"]),
        pattern=_TABLE,
        validate_default=True,
        description="The stream's table, folder of the lake and asset; from its name if unset.",
    )
    description: str = Field(min_length=1, description="What a record is, in business terms.")
    sync_mode: SyncMode
    destination_sync_mode: DestinationSyncMode
    primary_key: list[str] = Field(default_factory=list)
    cursor_field: str | None = None
    json_schema: Mapping[str, Any]

    @model_validator(mode="after")
    def _columns_can_be(self) -> Self:
        columns = self.json_schema.get("properties") or {}
        if not columns:
            raise ValueError("json_schema must have properties: they are the table's columns")
        if len(columns) > COLUMNS:
            raise ValueError(
                f"json_schema has {len(columns)} properties; a table of PostgreSQL can have "
                f"{COLUMNS} beside the platform's: leave out those that nobody needs"
            )
        for name in columns:
            if not name or "\x00" in name:
                raise ValueError(f"{name!r} cannot be a column: PostgreSQL has no such name")
            if name.startswith(("_airbyte_", "_mesh_")):
                raise ValueError(f"{name} cannot be a column: the platform has names of this kind")
        size = _row_bytes(self.json_schema)
        if size > ROW_BYTES:
            raise ValueError(
                f"json_schema has {len(columns)} properties, of which a whole row takes {size:,} "
                f"bytes or more; a row of PostgreSQL can have {ROW_BYTES:,}: leave out those that "
                "nobody needs"
            )
        column_names(self.json_schema)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.table.endswith("__rejects"):
            raise ValueError(
                f"{self.table} is called as the rejects of a table are: give another name as table"
            )
        for name in [*self.primary_key, *([self.cursor_field] if self.cursor_field else [])]:
            if name not in self.json_schema["properties"]:
                raise ValueError(f"{name} is not a property of json_schema")
        if self.destination_sync_mode is DestinationSyncMode.APPEND_DEDUP and not self.primary_key:
            raise ValueError("append_dedup needs a primary_key")
        if self.sync_mode is SyncMode.INCREMENTAL:
            if self.destination_sync_mode is DestinationSyncMode.OVERWRITE:
                raise ValueError(
                    "incremental with overwrite would lose what came before: "
                    "use append or append_dedup"
                )
            if not self.cursor_field:
                raise ValueError("incremental needs a cursor_field")
        return self

    def column_descriptions(self) -> dict[str, str]:
        """What each column holds, in words; empty where the schema does not say."""
        properties = self.json_schema["properties"]
        return {name: schema.get("description") or "" for name, schema in properties.items()}

    def configured(self) -> dict[str, Any]:
        """The stream as an entry of the protocol's ConfiguredAirbyteCatalog."""
        return {
            "stream": {
                "name": self.name,
                "json_schema": self.json_schema,
                "supported_sync_modes": ["full_refresh", "incremental"],
                "source_defined_primary_key": [[name] for name in self.primary_key],
                "default_cursor_field": [self.cursor_field] if self.cursor_field else [],
            },
            "sync_mode": self.sync_mode,
            "destination_sync_mode": self.destination_sync_mode,
            "primary_key": [[name] for name in self.primary_key],
            "cursor_field": [self.cursor_field] if self.cursor_field else [],
        }


class Schedule(Declared):
    """When a connection is synced, and where."""

    cron: str
    timezone: str = "UTC"
    environments: list[Environment] = Field(
        default_factory=lambda: [Environment.STAGING, Environment.PRODUCTION]
    )


class Connection(Declared):
    """An Airbyte connection, as declared in a domain's `ingest/defs.yaml`."""

    name: str = Field(pattern=_NAME)
    source: str = Field(min_length=1, description="The source system, in words.")
    connector: Connector
    config: Mapping[str, Any] = Field(
        default_factory=dict,
        description="The connector's configuration. ${NAME} is the environment variable NAME at "
        "run time, which is where secrets come from.",
    )
    streams: list[StreamDeclaration] = Field(min_length=1)
    schedule: Schedule | None = None
    pool: str | None = Field(
        None,
        pattern=_NAME,
        description="Whose slot a sync takes; connections to the same source system can share one. "
        "Its own if unset: one sync at a time.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [stream.name for stream in self.streams]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"streams declared twice: {', '.join(sorted(twice))}")
        sources: dict[str, str] = {}
        for stream in self.streams:
            other = sources.setdefault(stream.table, stream.name)
            if other != stream.name:
                raise ValueError(
                    f"the streams {other} and {stream.name} would both be the table "
                    f"{stream.table}: give one of them another name as table"
                )
        return self

    def catalog(self) -> dict[str, Any]:
        """The protocol's ConfiguredAirbyteCatalog."""
        return {"streams": [stream.configured() for stream in self.streams]}

    def stream(self, table: str) -> StreamDeclaration:
        return next(stream for stream in self.streams if stream.table == table)

    def needs(self) -> set[str]:
        """The variables that the configuration names."""
        return {name for text in _texts(self.config) for name in _PLACEHOLDER.findall(text)}


def identity(domain: str, connection: Connection, stream: StreamDeclaration) -> Stream:
    """The stream's one name."""
    return Stream(domain, connection.name, stream.table)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []


def resolve_config(
    domain: str, connection: Connection, settings: Settings, extra: Mapping[str, str]
) -> Any:
    """The connector's configuration with every ${NAME} replaced.

    A value that is one placeholder of a MESH_ setting keeps that setting's type. `extra` holds
    values that the platform itself found (the address of the reference sources). Raises
    SettingsError naming every variable that is missing, never a value.
    """
    missing: list[str] = []

    def lookup(name: str) -> Any:
        if name in extra:
            return extra[name]
        if name.startswith(PREFIX):
            field = name.removeprefix(PREFIX).lower()
            if field in Settings.model_fields:
                value = getattr(settings, field)
                if isinstance(value, SecretStr):
                    raise DeclarationError(
                        f"{domain}/{connection.name}: {name} is a secret of the platform, which no "
                        "connector is given: name a variable of the connection's own"
                    )
                if value is not None:
                    return value if isinstance(value, int) else str(value)
        elif name in os.environ:
            return os.environ[name]
        missing.append(name)
        return ""

    def resolve(value: Any) -> Any:
        if isinstance(value, str):
            whole = _PLACEHOLDER.fullmatch(value)
            if whole:
                return lookup(whole[1])
            return _PLACEHOLDER.sub(lambda match: str(lookup(match[1])), value)
        if isinstance(value, Mapping):
            return {key: resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [resolve(item) for item in value]
        return value

    resolved = resolve(connection.config)
    if missing:
        raise SettingsError(
            f"the connection {domain}/{connection.name} needs the environment variable"
            f"{'s' if len(missing) > 1 else ''} {', '.join(sorted(set(missing)))}: set it and run "
            "again (a secret is never read from a file)"
        )
    return resolved


def declaration_path(domain: str) -> Path:
    """Where a domain declares what enters it."""
    return domain_folder(domain) / "ingest" / "defs.yaml"


def read_connections(domain: str) -> list[Connection]:
    """The connections that a domain declares; none if it has no `ingest/defs.yaml`."""
    path = declaration_path(domain)
    return list(_read(path, path.stat().st_mtime_ns)) if path.exists() else []


@lru_cache
def _read(path: Path, _modified: int) -> tuple[Connection, ...]:
    return tuple(
        validate(path, Connection, document.get("attributes"), node, at=("attributes",))
        for document, node in parse(path)
        if isinstance(document, dict) and document.get("type") == CONNECTION_TYPE
    )
