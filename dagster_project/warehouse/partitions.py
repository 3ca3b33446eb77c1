"""Taking partitions out of a table: as if they had never been loaded."""

from __future__ import annotations

from collections.abc import Sequence

from dagster_project.identity import Table, quoted
from dagster_project.warehouse.arrow import connect_arrow
from dagster_project.warehouse.ledger import revise
from dagster_project.warehouse.tables import lock, prepare_schemas


def forget(url: str, table: Table, column: str, partitions: Sequence[str]) -> int:
    """Remove partitions of a table, with what the ledger says of them; the rows removed.

    One transaction, under the lock that a load holds.
    """
    with connect_arrow(url, f"removing partitions of {table}") as session:
        prepare_schemas(session, table)
        lock(session, str(table))
        if session.run("SELECT to_regclass($1) IS NULL", (table.relation,))[0][0]:
            return 0
        removed = 0
        for partition in partitions:
            (rows,) = session.run(
                f"WITH gone AS (DELETE FROM {table.relation} "
                f"WHERE {quoted(column)} = $1::text::date RETURNING 1) SELECT count(*) FROM gone",
                (partition,),
            )[0]
            revise(session, table, {partition: (-int(rows), "forgotten")})
            for ledgered in ("mesh.partitions", "mesh.verdicts"):
                session.run(
                    f"DELETE FROM {ledgered} WHERE table_schema = $1 AND table_name = $2 "
                    "AND partition = $3",
                    (table.schema, table.name, partition),
                )
            removed += int(rows)
        session.commit()
        return removed
