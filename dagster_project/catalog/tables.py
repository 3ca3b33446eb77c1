"""The tables of the catalog's books, in the schema `mesh` of the database with the event log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagster_project.warehouse.migrations import Migrations

if TYPE_CHECKING:
    import psycopg

_FIRST = (
    # `event_id` is the storage id of the last event told; `declared` a digest of the declarations
    # that were told last, and `declarations` what of them has to be taken back once it is gone.
    """CREATE TABLE IF NOT EXISTS mesh.catalog_destinations (
        destination text PRIMARY KEY, event_id bigint NOT NULL DEFAULT 0,
        declared text NOT NULL DEFAULT '', declarations bytea,
        told_at timestamptz, failing_since timestamptz, failure text)""",
    """CREATE TABLE IF NOT EXISTS mesh.catalog_dead_letters (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        destination text NOT NULL, event_id bigint, entity text NOT NULL, aspect text NOT NULL,
        reason text NOT NULL, record jsonb, refused_at timestamptz NOT NULL DEFAULT now(),
        digest text NOT NULL, UNIQUE (destination, digest))""",
    # `assets` is what was known of the domains' assets last. `superseded` are the digests of the
    # declarations that were told before, `declared_by` is who told those that are told now, and
    # `declared_seen_at` when somebody who has these was last there.
    """ALTER TABLE mesh.catalog_destinations
        ADD COLUMN IF NOT EXISTS assets bytea,
        ADD COLUMN IF NOT EXISTS superseded text[] NOT NULL DEFAULT '{}',
        ADD COLUMN IF NOT EXISTS declared_by text NOT NULL DEFAULT '',
        ADD COLUMN IF NOT EXISTS declared_seen_at timestamptz""",
    # `event_mark` is a digest of that last event, and `reached` the highest that was ever told.
    """ALTER TABLE mesh.catalog_destinations
        ADD COLUMN IF NOT EXISTS event_mark text,
        ADD COLUMN IF NOT EXISTS reached bigint NOT NULL DEFAULT 0""",
)
BOOKS = Migrations("catalog books", "Dagster's database", (_FIRST,))
_ARE_THERE = "SELECT to_regclass('mesh.catalog_dead_letters') IS NOT NULL"


def are_there(connection: psycopg.Connection[Any]) -> bool:
    """Whether anybody has delivered anything."""
    row = connection.execute(_ARE_THERE).fetchone()
    return bool(row and row[0])
