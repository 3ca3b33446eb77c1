"""A feed as a domain declares it: files dropped into the lake's landing zone, one a day."""

from __future__ import annotations

import re
from datetime import date
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from dagster_project.declarations import Declared, parse, validate
from dagster_project.failures import DeclarationError
from dagster_project.ingestion.declaration import declaration_path
from dagster_project.ingestion.records import column_names

FEED_TYPE = "dagster_project.components.LandingFeed"
#: Columns of a feed's table that the platform fills.
_OWN = ("_object", "_loaded_at")
_TYPES = ("bigint", "double precision", "numeric", "boolean", "text", "date", "timestamptz")


class FeedColumn(Declared):
    """A column of a feed's files."""

    type: str
    description: str = Field(min_length=1, description="What it holds, with its unit.")

    @field_validator("type")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in _TYPES:
            raise ValueError(f"{kind} is not of {', '.join(_TYPES)}")
        return kind


class FeedDeclaration(Declared):
    """A feed of daily files, as declared in a domain's `ingest/defs.yaml`.

    A file is CSV, CSV packed with gzip, or Parquet; which of them, its content says, not its name.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")
    source: str = Field(min_length=1, description="The source system, in words.")
    description: str = Field(min_length=1, description="What a row is, in business terms.")
    pattern: str = Field(
        description="A regular expression for the names of the files that count, with a group "
        "`day` (YYYY-MM-DD)."
    )
    partition_column: str = Field(description="The column that holds a row's partition, a date.")
    first_day: date
    last_day: date = Field(description="The last day there is data for.")
    encoding: str = Field(
        default="utf-8",
        description="How CSV files are encoded: the name of one of Python's codecs. A byte order "
        "mark at the start of a file goes before it.",
    )
    delimiter: str = Field(default=",", description="What stands between the values of a CSV row.")
    quotes: bool = Field(
        default=True,
        description="Whether a CSV value may stand in quotes, as RFC 4180 has it. If not, a quote "
        "is a character like any other.",
    )
    final_newline: Literal["required", "optional"] = Field(
        default="required",
        description="Whether a CSV file must end with a newline. Without one, nobody can tell "
        "whether its last row is whole.",
    )
    may_be_empty: bool = Field(
        default=False, description="Whether a file without any row is a day without data."
    )
    null_values: list[str] = Field(
        default_factory=lambda: [""],
        description="What stands for a missing value in CSV, unless it is quoted.",
    )
    primary_key: list[str] = Field(
        default_factory=list,
        description="The columns that tell a row from every other of its file; none: rows are not "
        "compared.",
    )
    columns: dict[str, FeedColumn] = Field(
        min_length=1, description="The columns of the files, which may come in any order."
    )

    @field_validator("pattern")
    @classmethod
    def _has_day(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if "day" not in groups:
            raise ValueError("must have a group (?P<day>...)")
        return pattern

    @field_validator("encoding")
    @classmethod
    def _decodes(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"Python knows no text encoding {encoding}; utf-8, utf-16, latin-1 and cp1252 are "
                "some that it knows"
            ) from None
        return encoding

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str) -> str:
        printable = delimiter.isascii() and (delimiter.isprintable() or delimiter == "\t")
        if len(delimiter) != 1 or not printable or delimiter == '"':
            raise ValueError("must be one ASCII character, and no quote or newline")
        return delimiter

    @model_validator(mode="after")
    def _columns_can_be(self) -> Self:
        if self.partition_column in self.columns:
            raise ValueError(
                f"columns: {self.partition_column} is the partition_column, which the platform "
                "fills: a column of the files has another name"
            )
        for name in [*self.columns, self.partition_column]:
            if name in _OWN or name.startswith("_mesh_"):
                raise ValueError(f"{name} cannot be a column: the platform has names of this kind")
            if not name or "\x00" in name or column_names({"properties": {name: {}}})[name] != name:
                raise ValueError(f"{name!r} cannot be a column: PostgreSQL has no such name")
        return self

    @model_validator(mode="after")
    def _key_is_of_columns(self) -> Self:
        unknown = [name for name in self.primary_key if name not in self.columns]
        if unknown:
            raise ValueError(f"primary_key: no column is declared as {', '.join(unknown)}")
        if len(set(self.primary_key)) < len(self.primary_key):
            raise ValueError("primary_key: names a column twice")
        return self


def read_feeds(domain: str) -> list[FeedDeclaration]:
    """The feeds that a domain declares; none if it has no `ingest/defs.yaml`."""
    path = declaration_path(domain)
    if not path.exists():
        return []
    return [
        validate(path, FeedDeclaration, document.get("attributes"), node, at=("attributes",))
        for document, node in parse(path)
        if isinstance(document, dict) and document.get("type") == FEED_TYPE
    ]


def read_feed(domain: str, name: str) -> FeedDeclaration:
    """A feed of a domain by its name. Raises DeclarationError if there is none."""
    for feed in read_feeds(domain):
        if feed.name == name:
            return feed
    raise DeclarationError(f"{declaration_path(domain)} declares no feed {name}")
