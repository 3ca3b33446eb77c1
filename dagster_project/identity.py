"""The one name of a table.

Every table, stream and object prefix of the platform is named here and nowhere else: its Dagster
asset key, its relation in PostgreSQL, its dbt node and its place in the lake follow from one value.
Nothing in this module imports a framework: an asset key is a tuple of strings.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: The dbt project's name, as in dbt_project/dbt_project.yml.
DBT_PROJECT = "mesh"

#: What PostgreSQL keeps of an identifier.
NAME_BYTES = 63
RAW_SUFFIX = "_raw"
STAGING_SUFFIX = "_staging"


def quoted(identifier: str) -> str:
    """The identifier quoted for SQL, whatever it holds."""
    if "\x00" in identifier:
        raise ValueError("an SQL identifier cannot hold a NUL character")
    return '"' + identifier.replace('"', '""') + '"'


def fitting(name: str, suffix: str = "") -> str:
    """The name with the suffix, shortened to what PostgreSQL keeps of an identifier."""
    whole = name + suffix
    if len(whole.encode()) <= NAME_BYTES:
        return whole
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    room = NAME_BYTES - len(f"_{digest}{suffix}")
    return f"{name.encode()[:room].decode(errors='ignore')}_{digest}{suffix}"


@dataclass(frozen=True, order=True, slots=True)
class Table:
    """A table or view of the warehouse."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Table:
        """`schema.table` as a Table. Raises ValueError if the text is not of that form."""
        schema, dot, name = text.partition(".")
        if not (dot and schema and name) or "." in name:
            raise ValueError(f"{text!r} is not of the form schema.table")
        return cls(schema, name)

    @property
    def domain(self) -> str:
        """The domain that owns the schema: `fleet`, `fleet_raw` and `fleet_staging` are fleet's."""
        for suffix in (RAW_SUFFIX, STAGING_SUFFIX):
            if self.schema.endswith(suffix):
                return self.schema.removesuffix(suffix)
        return self.schema

    @property
    def asset_key(self) -> tuple[str, str]:
        return (self.schema, self.name)

    @property
    def is_raw(self) -> bool:
        """Whether it holds what a source gave."""
        return self.schema.endswith(RAW_SUFFIX)

    @property
    def relation(self) -> str:
        """The quoted relation, safe to put into SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def rejects(self) -> Table:
        """Where rows that could not be loaded are kept, with the reason."""
        return Table(self.schema, fitting(self.name, "__rejects"))

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def raw_table(domain: str, stream: str) -> Table:
    """Where a domain's stream or feed is loaded."""
    return Table(f"{domain}{RAW_SUFFIX}", stream)


@dataclass(frozen=True, order=True, slots=True)
class Stream:
    """A stream of an Airbyte connection, from its source system to its prefix in the lake."""

    domain: str
    connection: str
    name: str

    @property
    def source_key(self) -> tuple[str, ...]:
        """The asset key of the stream in its source system."""
        return ("source", self.domain, self.connection, self.name)

    @property
    def asset_key(self) -> tuple[str, ...]:
        """The asset key of the stream's objects in the lake."""
        return ("lake", self.domain, self.connection, self.name)

    @property
    def prefix(self) -> str:
        return f"{self.domain}/{self.connection}/{self.name}"

    @property
    def table(self) -> Table:
        return raw_table(self.domain, self.name)


@dataclass(frozen=True, order=True, slots=True)
class Feed:
    """Files that a system outside drops into the lake's landing zone."""

    domain: str
    name: str

    @property
    def asset_key(self) -> tuple[str, ...]:
        return ("landing", self.domain, self.name)

    @property
    def prefix(self) -> str:
        return f"landing/{self.domain}/{self.name}"

    @property
    def table(self) -> Table:
        return raw_table(self.domain, self.name)
