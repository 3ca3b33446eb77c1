"""Suites of expectations, as they lie in `expectations/`, read without Great Expectations."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, ValidationError

from dagster_project.declarations import Declared, Location, explain, line_of
from dagster_project.failures import DeclarationError
from dagster_project.identity import Table
from dagster_project.quality.own_checks import COLUMNS, DECLARATION, DRIFT, REJECTS
from dagster_project.settings import EXPECTATIONS
from dagster_project.warehouse.ledger import digest

_CHECK = re.compile(r"[a-z][a-z0-9_]{0,62}")
#: What JSON writes in another way than YAML does; without it only the places are of interest.
_NOT_YAML = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)|[^\n -~]")
_Composer = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Severity(StrEnum):
    """What a failed expectation does: block what is downstream, or only be reported."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


def _stated(mend: str) -> BeforeValidator:
    """Refuses what is left out, or empty, with what to write."""

    def check(value: Any) -> Any:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"required, but not there: {mend}")
        return value

    return BeforeValidator(check)


def _must() -> Any:
    return Field(None, validate_default=True)


#: Checks that the platform itself makes of a table.
_RESERVED = (DRIFT, DECLARATION, REJECTS, COLUMNS)


def _check_name(text: str) -> str:
    if text in _RESERVED:
        raise ValueError(f"{text!r} is a check of the platform's own: choose another name")
    if not _CHECK.fullmatch(text):
        raise ValueError(
            f"{text!r} cannot be a check's name: begin with a letter, use lower-case letters, "
            "digits and _, and no more than 63 of them"
        )
    return text


def _table_name(text: str) -> str:
    Table.parse(text)
    return text


def _drift(value: Any) -> Any:
    if value is None or value is True:
        raise ValueError('must be false, or {"exclude": [columns]}; leave it out for all columns')
    return None if value is False else value


class ExpectationMeta(Declared):
    """What the suite says of a check beyond Great Expectations' own fields."""

    check: Annotated[
        str,
        AfterValidator(_check_name),
        _stated("the asset check's name, such as seat_count_in_range"),
    ] = _must()
    quarantine: StrictBool = Field(
        default=False,
        description="Whether the rows of a raw table that it refuses are moved to the rejects.",
    )


class Expectation(Declared):
    """One expectation, which is one asset check."""

    type: Annotated[str, _stated("the name of one of Great Expectations' own")] = _must()
    kwargs: Mapping[str, Any]
    severity: Annotated[
        Severity,
        _stated(
            "say what a failure does: critical stops what is downstream, warning reports, "
            "info is for the record"
        ),
    ] = _must()
    description: Annotated[str, _stated("say in a sentence what it guards")] = _must()
    meta: Annotated[ExpectationMeta, _stated('name the asset check: "meta": {"check": "..."}')] = (
        _must()
    )
    # What Great Expectations itself writes.
    id: str | None = None
    notes: str | list[str] | None = None
    rendered_content: Any = Field(None, exclude=True)
    expectation_context: Any = Field(None, exclude=True)

    @property
    def check(self) -> str:
        return self.meta.check

    @property
    def asked(self) -> str:
        """A digest of what it asks of the data, whatever it is called."""
        return digest(self.type, json.dumps(self.kwargs, sort_keys=True))


class Drift(Declared):
    """How the profiles of a table are compared with those before."""

    exclude: list[str] = Field(
        default_factory=list, description="Columns in which a change means nothing."
    )


class SuiteMeta(Declared):
    """What a suite says of its table."""

    #: None if the table's profiles are not compared.
    drift: Annotated[Drift | None, BeforeValidator(_drift)] = Drift()
    # What Great Expectations itself writes.
    great_expectations_version: str | None = None


class Suite(Declared):
    """The expectations of one table."""

    name: Annotated[str, AfterValidator(_table_name), _stated("the table, as schema.table")] = (
        _must()
    )
    expectations: list[Expectation] = Field(min_length=1)
    meta: SuiteMeta = SuiteMeta()
    # What Great Expectations itself writes.
    id: str | None = None
    notes: str | list[str] | None = None
    suite_parameters: Mapping[str, Any] | None = Field(None, exclude=True)

    @property
    def table(self) -> Table:
        return Table.parse(self.name)


@dataclass
class SuiteFile:
    """A suite's file: what is in it, and what is wrong with it."""

    path: Path
    #: None if it cannot be read.
    document: Any = None
    #: None if there is a fault.
    suite: Suite | None = None
    #: `file:line: where: what is wrong`, a line each.
    faults: list[str] = field(default_factory=list)

    @cached_property
    def nodes(self) -> yaml.Node | None:
        """The file's values with their lines; None if nobody knows."""
        text = _NOT_YAML.sub(" ", self.path.read_text(encoding="utf-8"))
        try:
            node: yaml.Node | None = yaml.compose(text, Loader=_Composer)
        except yaml.YAMLError:
            return None
        return node

    def refuse(self, location: Location, message: str) -> None:
        """Note a fault of the value at this place."""
        where = ".".join(map(str, location)) or "the suite"
        self.faults.append(f"{self.path}:{line_of(self.nodes, location)}: {where}: {message}")


def open_suite(path: Path) -> SuiteFile:
    """A suite's file, with all that is wrong in it as far as the file itself tells."""
    file = SuiteFile(path)
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(found)
        return found

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is no number of JSON")

    try:
        file.document = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=constant
        )
    except json.JSONDecodeError as error:
        file.faults.append(f"{path}:{error.lineno}: not valid JSON: {error.msg}")
        return file
    except UnicodeDecodeError as error:
        file.faults.append(f"{path}:1: not UTF-8 text: {error}")
        return file
    except ValueError as error:
        file.faults.append(f"{path}:1: not valid JSON: {error}")
        return file
    try:
        suite = Suite.model_validate(file.document)
    except ValidationError as error:
        suite = None
        file.faults += explain(error, path, file.nodes, Suite).splitlines()
    for line, key in _repeated(file.nodes) if twice else ():
        file.faults.append(f"{path}:{line}: {key}: is there twice, only one of them would count")
    if isinstance(file.document, dict):
        _judge_name(file, file.document.get("name"))
        _judge_checks(file, file.document.get("expectations"))
    file.suite = None if file.faults else suite
    return file


def _repeated(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Keys that a mapping has already, with their lines."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _judge_name(file: SuiteFile, name: Any) -> None:
    """A suite is of the table and the domain that its file is of."""
    try:
        table = Table.parse(name) if isinstance(name, str) else None
    except ValueError:
        return
    if table is None:
        return
    if f"{name}.json" != file.path.name:
        file.refuse(("name",), f"the file is of another table: name it {name}.json")
    if table.domain != file.path.parent.name:
        file.refuse(
            ("name",),
            f"{name} is of the domain {table.domain}, not of {file.path.parent.name}: a domain "
            "checks its own tables",
        )


def _judge_checks(file: SuiteFile, expectations: Any) -> None:
    """Each check of a table has a name of its own."""
    first: dict[str, int] = {}
    for place, expectation in enumerate(expectations if isinstance(expectations, list) else ()):
        meta = expectation.get("meta") if isinstance(expectation, Mapping) else None
        name = meta.get("check") if isinstance(meta, Mapping) else None
        if not isinstance(name, str):
            continue
        if name in first:
            line = line_of(file.nodes, ("expectations", first[name], "meta", "check"))
            file.refuse(
                ("expectations", place, "meta", "check"),
                f"the check of line {line} is called {name} too: give each a name of its own",
            )
        first.setdefault(name, place)


def in_order(faults: Collection[str]) -> list[str]:
    """Faults `file:line: …` by file and line."""

    def place(fault: str) -> tuple[str, int]:
        path, line = re.split(r":(?=\d+: )", fault, maxsplit=1)
        return path, int(line.partition(":")[0])

    return sorted(dict.fromkeys(faults), key=place)


def _suites(paths: Collection[Path]) -> list[Suite]:
    files = [open_suite(path) for path in sorted(paths)]
    faults = [fault for file in files for fault in in_order(file.faults)]
    if faults:
        raise DeclarationError("\n".join(faults))
    return [file.suite for file in files if file.suite]


def read_suite(path: Path) -> Suite:
    """A suite's file. Raises DeclarationError with all that is wrong in it, by file and line."""
    (suite,) = _suites([path])
    return suite


def critical_checks(table: Table) -> dict[str, str]:
    """The checks of a table that stop what is downstream, each with a digest of what it asks.

    None for a table without a suite.
    """
    path = EXPECTATIONS / table.domain / f"{table}.json"
    if not path.exists():
        return {}
    expectations = read_suite(path).expectations
    return {e.check: e.asked for e in expectations if e.severity is Severity.CRITICAL}


def suite_paths(domain: str) -> list[Path]:
    """The files of a domain's suites."""
    return sorted((EXPECTATIONS / domain).glob("*.json"))


def read_suites(domain: str) -> list[Suite]:
    """The suites of a domain, by table. Raises DeclarationError with all faults of all files."""
    return _suites(suite_paths(domain))
