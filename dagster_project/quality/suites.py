"""Suites of expectations, as they lie in `expectations/`, read without Great Expectations."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dagster_project.failures import DeclarationError
from dagster_project.identity import Table
from dagster_project.settings import EXPECTATIONS


class Severity(StrEnum):
    """What a failed expectation does: block what is downstream, or only be reported."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class ExpectationMeta(BaseModel):
    """What the suite says beyond Great Expectations' own fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    check: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$", description="The asset check's name.")


class Expectation(BaseModel):
    """One expectation, which is one asset check."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    kwargs: Mapping[str, Any]
    severity: Severity
    description: str = Field(min_length=1)
    meta: ExpectationMeta
    id: str | None = None
    notes: str | list[str] | None = None

    @property
    def check(self) -> str:
        return self.meta.check


class Suite(BaseModel):
    """The expectations of one table."""

    model_config = ConfigDict(extra="allow", frozen=True, ignored_types=(cached_property,))

    name: str
    expectations: list[Expectation] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [expectation.check for expectation in self.expectations]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"checks of the same name: {', '.join(twice)}")
        Table.parse(self.name)
        return self

    @property
    def table(self) -> Table:
        return Table.parse(self.name)


def read_suite(path: Path) -> Suite:
    """A suite's file. Raises DeclarationError with the file and what is wrong in it."""
    try:
        suite = Suite.model_validate(orjson.loads(path.read_bytes()))
    except orjson.JSONDecodeError as error:
        raise DeclarationError(f"{path}: not valid JSON: {error}") from None
    except ValidationError as error:
        faults = [
            f"{path}: {'.'.join(map(str, fault['loc'])) or 'the suite'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        ]
        raise DeclarationError("\n".join(faults)) from None
    if f"{suite.name}.json" != path.name:
        raise DeclarationError(f"{path}: is of {suite.name}: name the file {suite.name}.json")
    if suite.table.domain != path.parent.name:
        raise DeclarationError(
            f"{path}: {suite.table} is of the domain {suite.table.domain}, not of "
            f"{path.parent.name}: a domain checks its own tables"
        )
    return suite


def read_suites(domain: str) -> list[Suite]:
    """The suites of a domain, by table."""
    return [read_suite(path) for path in sorted((EXPECTATIONS / domain).glob("*.json"))]
