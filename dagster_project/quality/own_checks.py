"""The checks that the platform itself makes of tables, beside those of suites and of dbt."""

from __future__ import annotations

from dagster_project.identity import Table

#: Of every table that is loaded.
DECLARATION = "matches_declaration"
DECLARATION_ASKS = "What came has the declared columns, and every value is of its column's type."
#: Of every raw table with a suite.
REJECTS = "rejects"
#: Of every table whose suite does not leave it out.
DRIFT = "drift"
DRIFT_ASKS = (
    "Rows, missing and distinct values, quantiles and frequencies are as usual: compared with the "
    "days, or versions, before. It needs some of them to judge."
)
#: Of every table that a domain promises; Dagster's own, and so is the name.
COLUMNS = "column_schema_change"


def rejects_asks(table: Table) -> str:
    """What the check of a table's rejects asks."""
    return (
        f"No row lies in {table.rejects}: none that could not be loaded, and none that an "
        "expectation refused and put aside."
    )
