"""A domain: who owns it, why it is there, which data products it offers. Read from domain.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from dagster_project.declarations import Declared, line_of, parse, read
from dagster_project.failures import DeclarationError
from dagster_project.identity import Table, slug
from dagster_project.settings import DEFS

_DURATION = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_OWNER = re.compile(r"team:[A-Za-z0-9_.-]+|[^@\s]+@[^@\s]+\.[^@\s]+")
_TABLE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")


def _duration(text: str) -> str:
    if not _DURATION.fullmatch(text):
        raise ValueError("must be a number with s, m, h or d after it, such as 30s, 90m, 36h or 7d")
    return text


def _owner(text: str) -> str:
    if not _OWNER.fullmatch(text):
        raise ValueError("must be an e-mail address, or team:<name>")
    return text


def _table(text: str) -> str:
    if not _TABLE.fullmatch(text):
        raise ValueError("must be the name of a table, or schema.table")
    return text


def _product_name(text: str) -> str:
    if not slug(text):
        raise ValueError("must have a letter or a digit in it")
    return text


def _products(products: list[DataProduct]) -> list[DataProduct]:
    """Products are told apart by what is left of their names in identifiers."""
    names: dict[str, str] = {}
    for product in products:
        if other := names.get(slug(product.name)):
            raise ValueError(f"{other!r} and {product.name!r} are too much alike: one has to go")
        names[slug(product.name)] = product.name
    return products


Duration = Annotated[str, AfterValidator(_duration)]
Owner = Annotated[str, AfterValidator(_owner)]
TableName = Annotated[str, AfterValidator(_table)]


def duration(text: str) -> timedelta:
    """`36h` as a timedelta."""
    match = _DURATION.fullmatch(_duration(text))
    assert match
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


class DataProduct(Declared):
    """A set of tables that the domain promises to others."""

    name: Annotated[str, AfterValidator(_product_name)] = Field(description="What people call it.")
    description: str = Field(min_length=1, description="What it is good for, in business terms.")
    tables: list[TableName] = Field(min_length=1, description="Its marts.")

    def promised(self, domain: str) -> list[Table]:
        """Its tables; those named without a schema are in the domain's own."""
        return [Table.parse(name) if "." in name else Table(domain, name) for name in self.tables]


class Domain(Declared):
    """What a domain says of itself in `dagster_project/defs/<domain>/domain.yaml`."""

    owner: Owner = Field(
        description="Who answers for the domain: an e-mail address or team:<name>."
    )
    purpose: str = Field(min_length=1, description="Why the domain is there, in a sentence or two.")
    data_products: Annotated[list[DataProduct], AfterValidator(_products)] = Field(
        description="What it offers to others."
    )
    freshness: Duration = Field(description="How old its data products may become, such as 36h.")
    personal_data: Mapping[TableName, list[str]] = Field(
        default_factory=dict,
        description="Columns that hold personal data, by schema.table: masked wherever shown.",
    )
    depends_on: list[str] = Field(
        default_factory=list, description="Domains whose data products this one uses."
    )


def domain_names() -> tuple[str, ...]:
    """The domains, by name: each is a folder of dagster_project/defs with a domain.yaml."""
    return tuple(sorted(path.parent.name for path in DEFS.glob("*/domain.yaml")))


def domain_folder(name: str) -> Path:
    """The folder a domain owns. Raises DeclarationError if there is no such domain."""
    if name not in domain_names():
        raise DeclarationError(f"no domain {name!r}: known are {', '.join(domain_names())}")
    return DEFS / name


@lru_cache
def read_domain(name: str) -> Domain:
    """What the domain says of itself. Raises DeclarationError with file and line."""
    path = domain_folder(name) / "domain.yaml"
    domain = read(path, Domain)
    unknown = set(domain.depends_on) - set(domain_names()) | ({name} & set(domain.depends_on))
    if unknown:
        others = [other for other in domain_names() if other != name]
        line = line_of(parse(path)[0][1], ("depends_on",))
        raise DeclarationError(
            f"{path}:{line}: depends_on: {', '.join(sorted(unknown))}: must be of "
            f"{', '.join(others)}"
        )
    return domain
