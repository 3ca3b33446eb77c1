"""What models read: whether it is sound, and what is left out where it is not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_project.components.soundness import unsound, wait_for_checks
from dagster_project.identity import Table
from dagster_project.quality.blocking import Block, blocks, reasons
from dagster_project.quality.standing import versions_held
from dagster_project.transformation.groups import holds_rows, left_out, read_tables
from dagster_project.transformation.versions import node_table


def refused_models(
    url: str,
    manifest: Mapping[str, Any],
    unique_ids: Iterable[str],
    days: Collection[str] | None = None,
) -> dict[str, list[Block]]:
    """Models that must not be built, with the critical checks of what they need that say so.

    A run's own checks stop its steps by themselves. This is about what other runs left: a check
    that stands failed, of another domain's data product or of a table that is not loaded in this
    run, and a table that changed since it was checked.
    """
    ordered = list(unique_ids)
    read = set().union(*(read_tables(manifest, unique_id) for unique_id in ordered))
    own = {node_table(manifest["nodes"][unique_id]) for unique_id in ordered}
    because = unsound(url, manifest, read - own, days)
    out = left_out(manifest, ordered, {table for table, why in because.items() if why})
    return {
        unique_id: list(dict.fromkeys(b for table in tables for b in because[table]))
        for unique_id, tables in out.items()
    }


class Inputs:
    """What a step's models read, to be found again as it was when it was judged."""

    def __init__(
        self,
        url: str,
        manifest: Mapping[str, Any],
        unique_ids: Collection[str],
        days: Collection[str] | None = None,
    ) -> None:
        self._own = {
            node_table(manifest["nodes"][unique_id]): unique_id for unique_id in unique_ids
        }
        self._url, self._manifest, self._days = url, manifest, days
        self._read = {u: read_tables(manifest, u) for u in unique_ids}
        self._before = versions_held(url, *set().union(*self._read.values()) - self._own.keys())
        #: Models that were built of what changed meanwhile and is not known to be sound.
        self.disturbed: dict[str, list[Block]] = {}

    def is_disturbed(self, unique_id: str) -> bool:
        """Whether something that a model has been built of changed, and is not sound as it is now.

        A model was judged by what its inputs held before dbt read them. Nobody else waits for a
        build to end, so that a load can come between.
        """
        if not holds_rows(self._manifest, unique_id):
            return False
        read = self._read[unique_id]
        made = [self._own[table] for table in read & self._own.keys()]
        because = [block for model in made for block in self.disturbed.get(model, ())]
        now = versions_held(self._url, *read - self._own.keys())
        changed = [t for t, held in now.items() if self._meant(held) != self._meant_before(t)]
        because += blocks(self._url, changed, self._days) if changed else []
        if because:
            self.disturbed[unique_id] = because
        return bool(because)

    def _meant_before(self, table: Table) -> dict[str, str]:
        return self._meant(self._before[table])

    def _meant(self, held: Mapping[str, str]) -> dict[str, str]:
        return {k: v for k, v in held.items() if not k or self._days is None or k in self._days}


def say_left_out(
    context: dg.AssetExecutionContext,
    manifest: Mapping[str, Any],
    refused: Mapping[str, Sequence[Block]],
    inputs: Inputs,
) -> None:
    """Fail the step for what it left out; where another run may be about to check, try again."""
    blocked = {**refused, **inputs.disturbed}
    if not blocked:
        return
    because = {block for of_model in blocked.values() for block in of_model}
    why = reasons(because)
    names = ", ".join(manifest["nodes"][unique_id]["name"] for unique_id in blocked)
    failed = any(block.failed for block in because)
    mend = "Mend the data, then run" if failed else "Run"
    failure = dg.Failure(
        f"left out: {names}. Critical checks of what they read do not say that it is sound: "
        f"{why}. {mend} these checks, and then these models",
        metadata={"left out": names, "because": why},
        allow_retries=False,
    )
    if not failed:
        wait_for_checks(context, failure)
    raise failure
