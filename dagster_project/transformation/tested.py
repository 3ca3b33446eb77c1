"""Which model each of dbt's tests is a check of: a test of none would be run by nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster_project.failures import DeclarationError
from dagster_project.identity import DBT_PROJECT
from dagster_project.settings import DBT_PROJECT_DIR
from dagster_project.transformation.versions import models, node_table

#: Where a test of several models says of which it is a check; dagster-dbt reads it there too.
_REF = "{{ config(meta={'dagster': {'ref': {'name': '<model>'}}}) }}"


def refuse_tests_of_no_model(manifest: Mapping[str, Any], domain: str) -> None:
    """Raise DeclarationError if a test of the domain's tables is a check of no model.

    A test that reads no table at all is everybody's.
    """
    nodes = {**manifest["nodes"], **manifest["sources"]}
    ours = models(manifest)
    for test in manifest["nodes"].values():
        if test["resource_type"] != "test" or test["package_name"] != DBT_PROJECT:
            continue
        parents = [parent for parent in test["depends_on"]["nodes"] if parent in nodes]
        if parents and domain not in {node_table(nodes[parent]).domain for parent in parents}:
            continue
        named = ((test["config"].get("meta") or {}).get("dagster") or {}).get("ref") or {}
        if named:
            of = f"model.{DBT_PROJECT}.{named.get('name')}"
        else:
            of = test.get("attached_node") or (parents[0] if len(parents) == 1 else "")
        if of in ours and of in parents:
            continue
        where = f"{DBT_PROJECT_DIR.name}/{test['original_file_path']}: the test {test['name']}"
        if of in manifest["sources"]:
            raise DeclarationError(
                f"{where} is of a source, {node_table(nodes[of])}. Raw tables are checked before "
                "any model reads them, by expectations: `mesh expect` proposes some. Write it "
                "there, or test a model"
            )
        if named:
            raise DeclarationError(
                f"{where} says that it is a check of {named.get('name')}, which it does not read"
            )
        read = ", ".join(sorted(parent.rpartition(".")[2] for parent in parents)) or "no model"
        raise DeclarationError(
            f"{where} reads {read}: say of which model it is a check, in its file by {_REF}"
        )
