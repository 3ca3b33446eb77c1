"""Which models are built together: those that descend from the same tables.

A table that fails a critical check stops the steps that need it. One step for all of a domain's
models would stop those too that need nothing of that table; so a step builds the models that
descend from the same raw tables, and Dagster leaves out just the steps that descend from the bad
one, says so, and ends the run failed. (To hand dbt the failed tables as exclusions the step would
have to run in spite of the failed check, which Dagster does not allow.)

For the same reason a model with critical checks of its own ends a step: what is made of it comes
after them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from dagster_project.identity import Table
from dagster_project.transformation.versions import models, node_table

#: What reads these reads what they read.
_NO_TABLES = {"view", "ephemeral"}


def model_groups(
    manifest: Mapping[str, Any],
    ours: Collection[str],
    apart: Collection[str],
    checked: Collection[str] = (),
) -> dict[frozenset[Table], list[str]]:
    """A domain's models, without those `apart`, by the tables of the domain that they descend from.

    These tables are the raw ones, the models apart, and those `checked` before others use them.
    Models that are tested together are together, or one after the other.
    """
    inside = set(ours) - set(apart)
    domains = {node_table(manifest["nodes"][unique_id]).domain for unique_id in ours}

    @cache
    def roots(unique_id: str) -> frozenset[Table]:
        found: set[Table] = set()
        for parent in manifest["parent_map"].get(unique_id, []):
            if parent in ours:
                found |= roots(parent)
            if parent in apart or parent in checked:
                found.add(node_table(manifest["nodes"][parent]))
            elif parent in manifest["sources"]:
                table = node_table(manifest["sources"][parent])
                found |= {table} if table.domain in domains else set()
        return frozenset(found)

    keys = {unique_id: roots(unique_id) for unique_id in inside}
    for tested in _tested_together(manifest, inside):
        together = frozenset().union(*(keys[unique_id] for unique_id in tested))
        if together not in (keys[unique_id] for unique_id in tested):
            parts = {keys[unique_id] for unique_id in tested}
            keys = {u: together if key in parts else key for u, key in keys.items()}
    groups = _grouped(keys)
    # Views hold no rows: they go with the one group that reads them, and save a step.
    for key, unique_ids in groups.items():
        children = {
            child for u in unique_ids for child in manifest["child_map"][u] if child in ours
        }
        readers = {keys.get(child) for child in children} - {key}
        views = {manifest["nodes"][u]["config"]["materialized"] for u in unique_ids} <= _NO_TABLES
        guarded = set(unique_ids) & set(checked)
        if (
            views
            and not guarded
            and len(readers) == 1
            and (reader := next(iter(readers))) is not None
        ):
            keys |= dict.fromkeys(unique_ids, reader)
    return _grouped(keys)


def _grouped(keys: Mapping[str, frozenset[Table]]) -> dict[frozenset[Table], list[str]]:
    groups: dict[frozenset[Table], list[str]] = {}
    for unique_id in sorted(keys):
        groups.setdefault(keys[unique_id], []).append(unique_id)
    return groups


def _tested_together(manifest: Mapping[str, Any], inside: set[str]) -> Iterable[list[str]]:
    for node in manifest["nodes"].values():
        tested = [parent for parent in node["depends_on"]["nodes"] if parent in inside]
        if node["resource_type"] == "test" and len(tested) > 1:
            yield tested


def holds_rows(manifest: Mapping[str, Any], unique_id: str) -> bool:
    """Whether a model is a table; else what reads it reads what it reads."""
    return manifest["nodes"][unique_id]["config"]["materialized"] not in _NO_TABLES


def read_tables(manifest: Mapping[str, Any], unique_id: str) -> set[Table]:
    """The tables whose rows a model reads, those behind views too."""
    found: set[Table] = set()
    for parent in manifest["nodes"][unique_id]["depends_on"]["nodes"]:
        node = manifest["nodes"].get(parent) or manifest["sources"].get(parent)
        if node is None:
            continue
        found.add(node_table(node))
        if node["resource_type"] == "model" and not holds_rows(manifest, parent):
            found |= read_tables(manifest, parent)
    return found


def left_out(
    manifest: Mapping[str, Any], ordered: Iterable[str], blocked: Collection[Table]
) -> dict[str, list[Table]]:
    """Of models in order, parents first: those not to build, with the blocked tables they need.

    A view is built: it holds nothing, and what reads it reads what it reads.
    """
    out: dict[str, list[Table]] = {}
    needed: dict[Table, list[Table]] = {}
    for unique_id in ordered:
        if not holds_rows(manifest, unique_id):
            continue
        read = read_tables(manifest, unique_id)
        needs = read.intersection(blocked).union(*(needed.get(table, ()) for table in read))
        if needs:
            out[unique_id] = needed[node_table(manifest["nodes"][unique_id])] = sorted(needs)
    return out


def products_of(manifest: Mapping[str, Any], table: Table) -> set[Table]:
    """The table, and the models of its domain that it was made of, whose faults it may have.

    Not the raw tables: of a bad one nothing is made, and what was made before holds.
    """
    found, waiting = {table}, [table]
    nodes = {node_table(node): node for node in models(manifest).values()}
    while waiting:
        node = nodes.get(waiting.pop())
        for parent in node["depends_on"]["nodes"] if node else ():
            made = manifest["nodes"].get(parent)
            other = node_table(made) if made else None
            if other and other.domain == table.domain and other not in found:
                found.add(other)
                waiting.append(other)
    return found
