"""Which columns a dbt model's columns are computed from, by its SQL.

The SQL is read by DataHub's own parser, which knows the columns of all tables from the manifest:
`select *` and unqualified names are resolved. DataHub's dbt source reads it with the same one, and
says the same of lineage. The source itself is not used: importing it needs boto3, and of the rest
that it says (owners, tags, tests, columns that are never null) most would have to be taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from dagster_project.identity import Table
from dagster_project.transformation.versions import models, node_table

#: By column of a model, the columns of tables that it is computed from.
ModelColumns = Mapping[str, frozenset[tuple[Table, str]]]


def column_lineage(
    manifest: Mapping[str, Any],
    compiled: Mapping[str, str],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, ModelColumns]:
    """Of each model by unique id, every column, with those of the tables that its SQL names.

    A column that is computed from none, such as a count of rows, has none. A model whose SQL is not
    understood is left out, and said.
    """
    from datahub.emitter.mce_builder import make_dataset_urn
    from datahub.sql_parsing.schema_resolver import SchemaResolver
    from datahub.sql_parsing.sqlglot_lineage import sqlglot_lineage

    class Tables(SchemaResolver):
        """By schema and name: the project may have been parsed for a database of another name."""

        def resolve_table(self, table: Any) -> Any:
            return super().resolve_table(table.model_copy(update={"database": None}))

    tables: dict[str, Table] = {}
    found: dict[str, ModelColumns] = {}
    with closing(Tables(platform="postgres")) as known:
        for node in (*models(manifest).values(), *manifest["sources"].values()):
            table = node_table(node)
            urn = make_dataset_urn("postgres", str(table))
            tables[urn] = table
            columns = node["columns"].values()
            known.add_raw_schema_info(urn, {c["name"]: c["data_type"] or "" for c in columns})
        for unique_id, sql in compiled.items():
            result = sqlglot_lineage(sql, schema_resolver=known, override_dialect="postgres")
            if error := result.debug_info.error:
                # The lines after the first show the SQL, in a terminal's colours.
                why = str(error).partition("\n")[0]
                say(f"no column lineage of {unique_id}, whose SQL is not understood: {why}")
                continue
            found[unique_id] = {
                column.downstream.column: frozenset(
                    (tables[upstream.table], upstream.column)
                    for upstream in column.upstreams
                    if upstream.table in tables
                )
                for column in result.column_lineage or ()
            }
    return found
