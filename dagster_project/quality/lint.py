"""Finding out by day what an expectation would fail of at night.

Every expectation is built and evaluated as in a run, on an empty table that has the columns of the
real one: PostgreSQL itself says whether a query, a pattern or the type of a value is wrong.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dagster_project.declarations import Location
from dagster_project.identity import RAW_SUFFIX, Table, quoted
from dagster_project.quality.arguments import SOURCE, judge
from dagster_project.quality.reading import error_of
from dagster_project.quality.suites import Expectation, SuiteFile, in_order
from dagster_project.warehouse.connection import connect

#: The types of a table's columns by name; None where nobody declares them.
Columns = Mapping[str, str] | None
#: Arguments that name a column, or several.
_COLUMN = ("column", "column_A", "column_B")
_COLUMNS = ("column_list", "column_set")
#: Arguments that name a column's type, or several.
_TYPES = ("type_", "type_list")
#: Python's errors about figures that an empty table does not have.
_OF_NO_ROWS = re.compile(
    r"^(ZeroDivisionError|TypeError|IndexError|KeyError|decimal\.\w+)\b", re.MULTILINE
)
#: PostgreSQL's message, without what SQLAlchemy puts around it.
_POSTGRES = re.compile(r"\(psycopg2\.errors\.\w+\) (.*?)(?:\nLINE \d|\n\[SQL|$)", re.DOTALL)
_HINT = re.compile(r"\nHINT:  (.*)")
_NOT_ON_POSTGRES = "No provider found"
#: Whether a row meets these depends on others.
_OF_SEVERAL_ROWS = {
    "column_values.unique",
    "compound_columns.unique",
    "column_values.increasing",
    "column_values.decreasing",
    "column_values.not_outliers",
    "column_values.z_score.under_threshold",
}


@dataclass(frozen=True)
class _Sound:
    """An expectation that can be evaluated as far as it tells by itself."""

    place: int
    stock: Any


def lint(url: str, files: Sequence[SuiteFile], tables: Mapping[Table, Columns]) -> list[str]:
    """What is wrong in these suites, `file:line: where: what`, by file and line.

    `tables` are all that there are. In the warehouse at `url`, which has to be empty, they are
    made without rows, and taken away again. Raises WarehouseError.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    typed = {table: columns for table, columns in tables.items() if columns}
    sound = [(file, list(_sound(file, tables))) for file in files]
    with connect(url, "making empty tables to evaluate expectations on") as connection:
        for schema in sorted({table.schema for table in typed}):
            connection.execute(f"CREATE SCHEMA {quoted(schema)}".encode())
        for table, columns in typed.items():
            made = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
            connection.execute(f"CREATE TABLE {table.relation} ({made})".encode())
    try:
        for file, found in sound:
            for one in found:
                _judge_patterns(url, file, one)
                if _table(file) not in typed:
                    _judge_types(url, file, one)
        _evaluate(url, typed.keys(), sound)
    finally:
        with connect(url, "removing the empty tables") as connection:
            for schema in sorted({table.schema for table in typed}):
                connection.execute(f"DROP SCHEMA {quoted(schema)} CASCADE".encode())
    return [fault for file in files for fault in in_order(file.faults)]


def _table(file: SuiteFile) -> Table | None:
    try:
        return Table.parse(file.document["name"])
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _sound(file: SuiteFile, tables: Mapping[Table, Columns]) -> Iterator[_Sound]:
    """The expectations to evaluate; what is wrong with the others is noted."""
    table = _table(file)
    if table is None:
        return
    columns = tables.get(table)
    if table not in tables:
        file.refuse(("name",), _no_table(table, tables))
    drift = file.suite.meta.drift if file.suite else None
    for name in drift.exclude if drift else ():
        _judge_column(file, ("meta", "drift", "exclude"), name, columns)
    expectations = file.document.get("expectations")
    for place, document in enumerate(expectations if isinstance(expectations, list) else ()):
        try:
            expectation = Expectation.model_validate(document)
        except ValidationError:
            # Told by the file itself.
            continue
        before = len(file.faults)
        stock = _built(file, place, expectation)
        if stock is not None:
            _judge_columns(file, place, expectation.kwargs, columns)
            other = _other_table(stock, table)
            if other and other not in tables:
                at: Location = ("expectations", place, "kwargs", "other_table_name")
                file.refuse(at, _no_table(other, tables))
            for where, message in judge(stock, columns):
                file.refuse(("expectations", place, "kwargs", *where), message)
            if expectation.meta.quarantine:
                _judge_quarantine(file, place, stock, table)
        if len(file.faults) == before:
            yield _Sound(place, stock)


def _no_table(table: Table, tables: Collection[Table]) -> str:
    near = difflib.get_close_matches(str(table), [str(known) for known in tables], n=3)
    return (
        f"there is no such table as {table}"
        + (f", did you mean {' or '.join(near)}?" if near else ".")
        + " A table is a stream or feed that a domain declares, a dbt model or an asset"
    )


def _other_table(stock: Any, table: Table) -> Table | None:
    """The table that this one is compared with, which lies in the same schema."""
    name = getattr(stock, "other_table_name", None)
    return Table(table.schema, name) if isinstance(name, str) else None


def _built(file: SuiteFile, place: int, expectation: Expectation) -> Any:
    """The expectation as Great Expectations has it; None, and noted, if it does not."""
    from great_expectations.compatibility import pydantic
    from great_expectations.exceptions import ExpectationNotFoundError, GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.registry import (
        list_registered_expectation_implementations,
    )

    at: Location = ("expectations", place)
    configuration = expectation.model_dump(mode="json", exclude_none=True)
    try:
        return ExpectationConfiguration(**configuration).to_domain_obj()
    except ExpectationNotFoundError:
        known = list_registered_expectation_implementations()
        near = difflib.get_close_matches(expectation.type, known, n=2, cutoff=0.5)
        file.refuse(
            (*at, "type"),
            f"Great Expectations has no expectation {expectation.type}"
            + (f", did you mean {' or '.join(near)}?" if near else ""),
        )
    except pydantic.ValidationError as error:
        for (name, *_), message in _arguments(error, expectation.type).items():
            file.refuse((*at, "kwargs", *([name] if name != "__root__" else [])), message)
    except (GreatExpectationsError, ValueError, TypeError) as error:
        file.refuse((*at, "kwargs"), str(error))
    return None


def _arguments(error: Any, kind: str) -> dict[tuple[str, ...], str]:
    """What is wrong with each argument; one that can be of several types has a fault a type."""
    from great_expectations.expectations.registry import get_expectation_impl

    found: dict[tuple[str, ...], str] = {}
    for fault in error.errors():
        where, message = (str(fault["loc"][0]),), fault["msg"]
        if fault["type"] == "value_error.extra":
            allowed = _own_arguments(get_expectation_impl(kind))
            near = difflib.get_close_matches(where[0], allowed, n=1)
            message = "unknown argument" + (f", did you mean {near[0]}?" if near else "")
            message += f" Allowed here: {', '.join(allowed)}"
        elif fault["type"] == "value_error.missing":
            message = f"the argument {where[0]} is required, but not there"
        if message not in found.get(where, ""):
            found[where] = f"{found[where]}, or: {message}" if where in found else message
    if len(found) > 1:
        # It follows from the others.
        found.pop(("__root__",), None)
    return found


def _own_arguments(implementation: Any) -> list[str]:
    """The arguments of an expectation, without what every one has in the suite itself."""
    others = {"id", "meta", "notes", "result_format", "description", "severity"}
    others |= {"catch_exceptions", "rendered_content", "batch_id", "windows"}
    return [name for name in implementation.__fields__ if name not in others]


def _judge_columns(
    file: SuiteFile, place: int, arguments: Mapping[str, Any], columns: Columns
) -> None:
    at: Location = ("expectations", place, "kwargs")
    for argument in _COLUMN:
        if isinstance(name := arguments.get(argument), str):
            _judge_column(file, (*at, argument), name, columns)
    for argument in _COLUMNS:
        for index, name in enumerate(arguments.get(argument) or ()):
            if isinstance(name, str):
                _judge_column(file, (*at, argument, index), name, columns)


def _judge_column(file: SuiteFile, at: Location, name: str, columns: Columns) -> None:
    if columns is None or name in columns:
        return
    near = difflib.get_close_matches(name, columns, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(columns)}"
    file.refuse(at, f"{_table(file)} has no column {name}: {hint}")


def _judge_quarantine(file: SuiteFile, place: int, stock: Any, table: Table) -> None:
    from dagster_project.quality.asked import is_about_rows

    at: Location = ("expectations", place, "meta", "quarantine")
    if not table.schema.endswith(RAW_SUFFIX):
        file.refuse(
            at, f"only rows of a raw table can be put aside: {table} is built, take it away here"
        )
    elif not is_about_rows(stock) or stock.map_metric in _OF_SEVERAL_ROWS:
        file.refuse(
            at,
            f"{stock.expectation_type} is not about single rows, so that none can be put aside: "
            "take it away here",
        )


def _evaluate(
    url: str, tables: Collection[Table], suites: Collection[tuple[SuiteFile, list[_Sound]]]
) -> None:
    """Note what cannot be evaluated, of what is about these tables alone."""
    import great_expectations as gx
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
    )
    from great_expectations.exceptions import GreatExpectationsError

    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars={"globally": False},
            analytics_enabled=False,
        ),
    )
    source = context.data_sources.add_postgres(
        SOURCE, connection_string=url.replace("postgresql://", "postgresql+psycopg2://", 1)
    )

    def errors(batch: Any, expectations: Sequence[Any]) -> list[str]:
        suite = ExpectationSuite(name="suite", expectations=list(expectations))
        try:
            results = batch.validate(suite, result_format="BOOLEAN_ONLY").results
        except (GreatExpectationsError, ValueError, TypeError) as error:
            return [str(error)]
        return [message for result in results if (message := _error(result.exception_info))]

    for number, (file, found) in enumerate(suites):
        table = _table(file)
        if not found or table is None or table not in tables:
            continue
        sound = [one for one in found if (_other_table(one.stock, table) or table) in tables]
        asset = source.add_table_asset(str(number), table_name=table.name, schema_name=table.schema)
        batch = asset.add_batch_definition_whole_table("all").get_batch()
        if errors(batch, [one.stock for one in sound]):
            # One that cannot be evaluated takes others with it.
            for one in sound:
                for message in errors(batch, [one.stock]):
                    file.refuse(_to_blame(one), f"could not be evaluated: {message}")
        for one in sound:
            if argument := _type_argument(one):
                # Which types the columns have does not depend on rows.
                result = batch.validate(one.stock, result_format="BASIC")
                if not result.success and not error_of(result.exception_info):
                    held = result.result["observed_value"]
                    file.refuse(
                        ("expectations", one.place, "kwargs", argument),
                        f"{one.stock.column} of {table} is of the type {held}: write that",
                    )


def _type_argument(one: _Sound) -> str:
    return next((name for name in _TYPES if hasattr(one.stock, name)), "")


def _judge_types(url: str, file: SuiteFile, one: _Sound) -> None:
    """Whether there are the types that are named, where nobody declares the column's own."""
    import psycopg

    if not (argument := _type_argument(one)):
        return
    named = getattr(one.stock, argument)
    with psycopg.connect(url) as connection:
        for name in named if isinstance(named, list) else [named]:
            if connection.execute("SELECT to_regtype(%s) IS NULL", [name]).fetchone() == (True,):
                file.refuse(
                    ("expectations", one.place, "kwargs", argument),
                    f"{name} is no type of PostgreSQL: write one as text, bigint or numeric",
                )


def _error(info: Mapping[str, Any] | None) -> str:
    """Why an expectation could not be evaluated, unless it is for want of rows."""
    message = error_of(info)
    if _NOT_ON_POSTGRES in message:
        return "Great Expectations has no such expectation for tables of PostgreSQL"
    if said := sorted(match[1].strip() for match in _POSTGRES.finditer(message)):
        # It can be of several statements, which come in any order.
        hint = _HINT.search(message)
        return said[0] + (f" ({hint[1]})" if hint else "")
    shapes = [info] if info and "raised_exception" in info else list((info or {}).values())
    if any(_OF_NO_ROWS.search(shape.get("exception_traceback") or "") for shape in shapes):
        return ""
    return message


def _to_blame(one: _Sound) -> Location:
    at: Location = ("expectations", one.place, "kwargs")
    return (*at, "unexpected_rows_query") if hasattr(one.stock, "unexpected_rows_query") else at


def _judge_patterns(url: str, file: SuiteFile, one: _Sound) -> None:
    """Without rows PostgreSQL does not look at a pattern."""
    import psycopg

    for argument, value in one.stock.configuration.kwargs.items():
        if "regex" not in argument:
            continue
        for pattern in value if isinstance(value, list) else [value]:
            if not isinstance(pattern, str):
                continue
            with psycopg.connect(url) as connection:
                try:
                    connection.execute("SELECT '' ~ %s", [pattern])
                except psycopg.Error as error:
                    at: Location = ("expectations", one.place, "kwargs", argument)
                    said = str(error).partition("\n")[0]
                    file.refuse(at, f"{pattern} is no pattern of PostgreSQL: {said}")
