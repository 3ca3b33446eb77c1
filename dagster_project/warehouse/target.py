"""What a load fills: a table, its columns, and what happens to what was there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dagster_project.identity import Table

#: Columns that differ although the record is the same one.
VOLATILE = ("_airbyte_raw_id", "_airbyte_extracted_at", "_airbyte_meta", "_airbyte_generation_id")


class Mode(StrEnum):
    """What a load does with what was there."""

    OVERWRITE = "overwrite"
    APPEND = "append"
    APPEND_DEDUP = "append_dedup"
    #: The rows of each partition that comes replace those that were there.
    REPLACE_PARTITIONS = "replace_partitions"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the target, with its PostgreSQL type."""

    name: str
    type: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """The table that is loaded, and how."""

    table: Table
    columns: tuple[Column, ...]
    mode: Mode
    #: No two rows have the same; for REPLACE_PARTITIONS no two of one partition.
    primary_key: tuple[str, ...] = ()
    cursor: str | None = None
    #: For REPLACE_PARTITIONS: the column that holds the partition, of type date.
    partition: str | None = None

    @property
    def own_columns(self) -> tuple[Column, ...]:
        """Columns that the loader fills itself."""
        if self.mode is not Mode.REPLACE_PARTITIONS:
            return ()
        assert self.partition
        return (
            Column("_object", "text", "The object of the lake that the row was loaded from."),
            Column("_loaded_at", "timestamptz", "When the object was loaded."),
            Column(self.partition, "date", "The partition: the day of the object."),
        )
