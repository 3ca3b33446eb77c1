"""What a stream's records were like against its declaration: what is reported, and what stops."""

from __future__ import annotations

from dagster_project.ingestion.declaration import StreamDeclaration, SyncMode
from dagster_project.ingestion.exact import keepable
from dagster_project.ingestion.records import Observed, columns_of, json_type
from dagster_project.lake.commits import Drift

#: Undeclared fields that are named, and characters of each name.
NAMED, NAME_LENGTH = 50, 100
#: Refused values from which on a column that had no other is taken for retyped at the source; and
#: records of an incremental sync from which on a column that none of them had is taken for gone.
RETYPED = 100


def drift_of(stream: StreamDeclaration, observed: Observed) -> Drift:
    """What is reported of a stream."""
    undeclared = sorted(observed.undeclared)
    full = stream.sync_mode is SyncMode.FULL_REFRESH
    return Drift(
        undeclared=[keepable(name[:NAME_LENGTH]) for name in undeclared[:NAMED]],
        undeclared_more=max(0, len(undeclared) - NAMED),
        absent=_absent(stream, observed) if full else [],
        refused=observed.refused,
        refused_values=dict(observed.refused_values),
    )


def _absent(stream: StreamDeclaration, observed: Observed) -> list[str]:
    """The declared columns that no record had, in the order of the declaration."""
    if not observed.records:
        return []
    return [name for name in columns_of(stream.json_schema) if name not in observed.present]


def harms(stream: StreamDeclaration, observed: Observed) -> list[str]:
    """Why the stream's records must not be used; empty if they may."""
    cursor = [stream.cursor_field] if stream.cursor_field else []
    needed = {*stream.json_schema.get("required", []), *stream.primary_key, *cursor}
    few = stream.sync_mode is SyncMode.INCREMENTAL and observed.records < RETYPED
    found = [
        f"stream {stream.name}: none of its {observed.records:,} records has {name}, which "
        f"{_role(stream, name)}. If the source no longer has it, mend the declaration"
        for name in _absent(stream, observed)
        if name in needed and not few
    ]
    kinds = columns_of(stream.json_schema)
    for name, count in observed.refused_values.items():
        if count >= RETYPED and name not in observed.fitted:
            declared = json_type(stream.json_schema["properties"][name])
            found.append(
                f"stream {stream.name}: {name} is declared as {declared} ({kinds[name].postgres}), "
                f"but each of its {count:,} values is something else, such as "
                f"{observed.examples[name]}. If the source has changed its type, declare it so"
            )
    return found


def _role(stream: StreamDeclaration, name: str) -> str:
    if name in stream.primary_key:
        return "is of its primary key"
    return "is its cursor" if name == stream.cursor_field else "its json_schema requires"


def in_words(drift: Drift) -> dict[str, str]:
    """What was other than declared, for people; empty if nothing was."""
    said = {}
    if drift.undeclared:
        more = f" and {drift.undeclared_more:,} more" if drift.undeclared_more else ""
        said["undeclared fields"] = ", ".join(drift.undeclared) + more
    if drift.absent:
        said["absent columns"] = ", ".join(drift.absent)
    if drift.refused_values:
        values = (f"{name}: {count:,}" for name, count in drift.refused_values.items())
        said["refused values"] = ", ".join(values)
    return said
