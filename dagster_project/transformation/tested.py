"""What makes a test of dbt's a check: a model that it is of, and a name that stays.

A test of no model would be run by nobody. One that has the values it compares with in its name is
another check, with another history, whenever they change; and whoever may not see them reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dagster_project.failures import DeclarationError
from dagster_project.identity import DBT_PROJECT
from dagster_project.settings import DBT_PROJECT_DIR
from dagster_project.transformation.versions import models, node_table

#: Where a test of several models says of which it is a check; dagster-dbt reads it there too.
_REF = "{{ config(meta={'dagster': {'ref': {'name': '<model>'}}}) }}"

#: Arguments of dbt's generic tests that say which columns and tables are meant.
_NAMES = {"model", "column_name", "columns", "field", "to"}
_TABLE = re.compile(r"\b(ref|source)\(")


def tested_model(manifest: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """The unique id of the model that a test is a check of, as dagster-dbt has it; or empty."""
    if named := _named(test):
        return f"model.{DBT_PROJECT}.{named.get('name')}"
    known = manifest["nodes"].keys() | manifest["sources"].keys()
    parents = [parent for parent in test["depends_on"]["nodes"] if parent in known]
    return test.get("attached_node") or (parents[0] if len(parents) == 1 else "")


def _named(test: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a test says itself of the model that it is of."""
    return ((test["config"].get("meta") or {}).get("dagster") or {}).get("ref") or {}


def refuse_tests(manifest: Mapping[str, Any], domain: str) -> None:
    """Raise DeclarationError if a test of the domain's tables is a check of no model, or has values
    in its name.

    A test that reads no table at all is everybody's.
    """
    nodes = {**manifest["nodes"], **manifest["sources"]}
    for test in manifest["nodes"].values():
        if test["resource_type"] != "test" or test["package_name"] != DBT_PROJECT:
            continue
        parents = [parent for parent in test["depends_on"]["nodes"] if parent in nodes]
        if parents and domain not in {node_table(nodes[parent]).domain for parent in parents}:
            continue
        _refuse_of_no_model(manifest, test, parents)
        _refuse_named_by_values(test)


def _refuse_of_no_model(
    manifest: Mapping[str, Any], test: Mapping[str, Any], parents: list[str]
) -> None:
    named, of = _named(test), tested_model(manifest, test)
    if of in models(manifest) and of in parents:
        return
    if of in manifest["sources"]:
        raise DeclarationError(
            f"{_where(test)} is of a source, {node_table(manifest['sources'][of])}. Raw tables are "
            "checked before any model reads them, by expectations: `mesh expect` proposes some. "
            "Write it there, or test a model"
        )
    if named:
        raise DeclarationError(
            f"{_where(test)} says that it is a check of {named.get('name')}, which it does not read"
        )
    read = ", ".join(sorted(parent.rpartition(".")[2] for parent in parents)) or "no model"
    raise DeclarationError(
        f"{_where(test)} reads {read}: say of which model it is a check, in its file by {_REF}"
    )


def _refuse_named_by_values(test: Mapping[str, Any]) -> None:
    kind = test.get("test_metadata") or {"kwargs": {}}
    arguments = {name: value for name, value in kind["kwargs"].items() if name != "model"}
    if all(name in _NAMES or _TABLE.search(str(value)) for name, value in arguments.items()):
        return
    # So dbt calls a test that was given no name, after its kind and the model.
    parts = [part for name in sorted(arguments) for part in _parts(arguments[name])]
    if test["name"].endswith("_" + "__".join(re.sub("[^0-9a-zA-Z_]+", "_", p) for p in parts)):
        column = arguments.get("column_name")
        of = [str(test["attached_node"]).rpartition(".")[2], *([column] if column else [])]
        raise DeclarationError(
            f"{_file(test)}: the {kind['name']} test of {'.'.join(of)} has no name of its own. dbt "
            "would name it by the values that it compares with, so that it would be another check "
            f"once they change. Write `name: {'_'.join([kind['name'], *of])}` above its arguments"
        )


def _parts(argument: Any) -> list[str]:
    if isinstance(argument, Mapping):
        argument = list(argument.values())
    return [str(part) for part in argument] if isinstance(argument, list) else [str(argument)]


def _file(test: Mapping[str, Any]) -> str:
    return f"{DBT_PROJECT_DIR.name}/{test['original_file_path']}"


def _where(test: Mapping[str, Any]) -> str:
    return f"{_file(test)}: the test {test['name']}"
