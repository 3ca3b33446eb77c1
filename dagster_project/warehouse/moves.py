"""From the temporary table into the target: a statement or two for each mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dagster_project.failures import RefusedFilesError
from dagster_project.identity import quoted
from dagster_project.warehouse.arrow import ArrowSession
from dagster_project.warehouse.ledger import Load, PartitionState, TableState, digest
from dagster_project.warehouse.staging import (
    PIECE,
    PIECES,
    STAGE,
    Piece,
    Plan,
    Staged,
    is_cast,
)
from dagster_project.warehouse.target import VOLATILE, Column, Mode, Target

PLACE = "_mesh_place"


def nothing(state: TableState) -> Load:
    """The load that found nothing to do."""
    return Load(0, 0, 0, 0, 0, 0, 0, rows=state.rows, version=state.version)


def version_after(target: Target, plan: Plan, state: TableState) -> str:
    """The table's version if what the plan brings changes it.

    The same for the same content: of an overwritten table whatever it held before, of the others
    together with what it held before.
    """
    before = "" if target.mode is Mode.OVERWRITE else state.version
    shape = ", ".join(f"{column.name} {column.type}" for column in target.columns)
    return digest(before, shape, plan.content)


def move(
    session: ArrowSession,
    target: Target,
    plan: Plan,
    state: TableState,
    staged: Staged,
    rejected: int,
) -> Load:
    """Have the target hold what was staged and not rejected, as its mode says."""
    match target.mode:
        case Mode.OVERWRITE:
            return _overwrite(session, target, plan, state)
        case Mode.APPEND:
            return _append(session, target, plan, state)
        case Mode.APPEND_DEDUP:
            return _merge(session, target, plan, state, staged.received - rejected)
        case Mode.REPLACE_PARTITIONS:
            return _replace_partitions(session, target, plan, state, staged)


def add(
    session: ArrowSession, target: Target, plan: Plan, state: TableState, staged: int
) -> tuple[Load, dict[str, int]]:
    """Have the target hold what was staged and not rejected beside what it holds.

    Of rows with the same key the newer stays; in a partition, which is not known to be newer or
    older, the one that is there. Also gives the rows that are new, by partition.
    """
    if target.partition:
        return _add_to_partitions(session, target, plan, state, staged)
    if target.primary_key:
        return _merge(session, target, plan, state, staged), {}
    new = _insert_all(session, target, plan)
    return replace(nothing(state), new=new, rows=state.rows + new), {}


def _add_to_partitions(
    session: ArrowSession, target: Target, plan: Plan, state: TableState, staged: int
) -> tuple[Load, dict[str, int]]:
    assert target.partition
    keys = {c.name: _value(plan, c) for c in target.columns if c.name in target.primary_key}
    distinct, there, order = "", "", ""
    if keys:
        place = ", ".join(["p.partition", *keys.values()])
        distinct, order = f"DISTINCT ON ({place}) ", f" ORDER BY {place}, s.{PIECE} DESC"
        same = "".join(f" AND t.{quoted(name)} = {value}" for name, value in keys.items())
        there = (
            f" WHERE NOT EXISTS (SELECT 1 FROM {target.table.relation} t "
            f"WHERE t.{quoted(target.partition)} = p.partition::date{same})"
        )
    own = _names(c.name for c in target.own_columns)
    day = f"to_char({quoted(target.partition)}, 'YYYY-MM-DD')"
    rows = session.run(
        f"WITH done AS (INSERT INTO {target.table.relation} ({own}, {_columns(target)}) "
        f"SELECT {distinct}p.key, now(), p.partition::date, {_typed(target, plan)} "
        f"FROM {STAGE} s JOIN {PIECES} p ON p.piece = s.{PIECE}{there}{order} "
        f"RETURNING {day} AS day) SELECT day, count(*) FROM done GROUP BY day"
    )
    added = {day: int(number) for day, number in rows}
    new = sum(added.values())
    done = replace(nothing(state), new=new, duplicates=staged - new, rows=state.rows + new)
    return done, added


def _names(columns: Iterable[str], prefix: str = "") -> str:
    return ", ".join(prefix + quoted(name) for name in columns)


def _columns(target: Target) -> str:
    return _names(column.name for column in target.columns)


def _value(plan: Plan, column: Column) -> str:
    """A staged column as its target's type."""
    staged = f"s.{quoted(column.name)}"
    if is_cast(plan, column.type, column.name):
        staged += f"::{column.type}"
    default = plan.defaults.get(column.name)
    return f"coalesce({staged}, {default})" if default else staged


def _typed(target: Target, plan: Plan) -> str:
    """The staged columns, each as its target's type."""
    return ", ".join(f"{_value(plan, c)} AS {quoted(c.name)}" for c in target.columns)


def _insert_all(session: ArrowSession, target: Target, plan: Plan) -> int:
    return session.change(
        f"INSERT INTO {target.table.relation} ({_columns(target)}) "
        f"SELECT {_typed(target, plan)} FROM {STAGE} s"
    )


def clear(session: ArrowSession, target: Target) -> int:
    """Remove all rows; how many. Not TRUNCATE, which would show readers an empty table."""
    return session.change(f"DELETE FROM {target.table.relation}")


def _overwrite(session: ArrowSession, target: Target, plan: Plan, state: TableState) -> Load:
    removed = clear(session, target)
    duplicates = _drop_older(session, target, plan) if target.primary_key else 0
    new = _insert_all(session, target, plan)
    version = version_after(target, plan, state)
    return replace(
        nothing(state),
        new=new,
        duplicates=duplicates,
        removed=removed,
        rows=new,
        version=version,
    )


def _append(session: ArrowSession, target: Target, plan: Plan, state: TableState) -> Load:
    # What was overwritten till now is read from its beginning again.
    removed = clear(session, target) if state.mode == Mode.OVERWRITE else 0
    new = _insert_all(session, target, plan)
    version = version_after(target, plan, state) if new or removed else state.version
    rows = state.rows - removed + new
    return replace(nothing(state), new=new, removed=removed, rows=rows, version=version)


def _merge(
    session: ArrowSession, target: Target, plan: Plan, state: TableState, staged: int
) -> Load:
    """By primary key; updated only if newer by cursor, then by extraction time, and different."""
    some = f"SELECT 1 FROM {target.table.relation} LIMIT 1"
    if session.count(f"SELECT count(*) FROM ({some}) AS first"):
        _drop_older(session, target, plan)
        changed, new = _update(session, target, plan), _insert_new(session, target, plan)
    else:
        changed, new = 0, _insert_newest(session, target, plan)
    return replace(
        nothing(state),
        new=new,
        changed=changed,
        duplicates=staged - new - changed,
        rows=state.rows + new,
        version=version_after(target, plan, state) if new or changed else state.version,
    )


def _ages(target: Target) -> list[Column]:
    """By what a row is newer than another with its key, in this order."""
    columns = {column.name: column for column in target.columns}
    return [columns[n] for n in (target.cursor, "_airbyte_extracted_at") if n in columns]


def _insert_newest(session: ArrowSession, target: Target, plan: Plan) -> int:
    """Of each key the newest row, into an empty table."""
    key = _names(target.primary_key)
    newest = "".join(f"{quoted(age.name)} DESC NULLS LAST, " for age in _ages(target))
    return session.change(
        f"INSERT INTO {target.table.relation} ({_columns(target)}) "
        f"SELECT DISTINCT ON ({key}) {_columns(target)} FROM ("
        f"SELECT {_typed(target, plan)}, s.ctid AS {PLACE} FROM {STAGE} s) AS came "
        # Of rows that are equally new, the one that came last.
        f"ORDER BY {key}, {newest}{PLACE} DESC"
    )


def _drop_older(session: ArrowSession, target: Target, plan: Plan) -> int:
    """Leave the newest staged row of each key, in each partition; how many went."""
    # So that the planner knows whether few rows meet a large table.
    session.run(f"ANALYZE {STAGE} ({_names(target.primary_key)})")
    of_key = [_value(plan, c) for c in target.columns if c.name in target.primary_key]
    if target.partition:
        of_key.append(PIECE)
    key = ", ".join(of_key)
    again = f"SELECT 1 FROM {STAGE} s GROUP BY {key} HAVING count(*) > 1 LIMIT 1"
    if not session.count(f"SELECT count(*) FROM ({again}) AS first"):
        return 0
    ages = (f"{_value(plan, age)} DESC NULLS LAST, " for age in _ages(target))
    return session.change(
        f"DELETE FROM {STAGE} s USING (SELECT s.ctid AS {PLACE}, row_number() OVER ("
        f"PARTITION BY {key} ORDER BY {''.join(ages)}s.ctid DESC) AS place FROM {STAGE} s) "
        f"AS ranked WHERE s.ctid = ranked.{PLACE} AND ranked.place > 1"
    )


def _same_key(target: Target) -> str:
    pairs = (f"t.{quoted(name)} = came.{quoted(name)}" for name in target.primary_key)
    return " AND ".join(pairs)


def _update(session: ArrowSession, target: Target, plan: Plan) -> int:
    others = [c.name for c in target.columns if c.name not in target.primary_key]
    stable = [name for name in others if name not in VOLATILE]
    if not stable:
        return 0
    values = ", ".join(f"{quoted(name)} = came.{quoted(name)}" for name in others)
    # Rows met in the order of the key, not of a hash: where many change, the index grows at one
    # place after the other, which takes half the time.
    session.run("SET LOCAL enable_hashjoin TO off")
    changed = session.change(
        f"UPDATE {target.table.relation} AS t SET {values} "
        f"FROM (SELECT {_typed(target, plan)} FROM {STAGE} s) AS came "
        f"WHERE {_same_key(target)} AND {_is_newer([age.name for age in _ages(target)])} "
        f"AND ({_names(stable, 'came.')}) IS DISTINCT FROM ({_names(stable, 't.')})"
    )
    session.run("SET LOCAL enable_hashjoin TO default")
    return changed


def _insert_new(session: ArrowSession, target: Target, plan: Plan) -> int:
    return session.change(
        f"INSERT INTO {target.table.relation} ({_columns(target)}) "
        f"SELECT {_columns(target)} FROM (SELECT {_typed(target, plan)} FROM {STAGE} s) AS came "
        f"WHERE NOT EXISTS (SELECT 1 FROM {target.table.relation} AS t WHERE {_same_key(target)}) "
        f"ORDER BY {_names(target.primary_key)}"
    )


def _is_newer(age: Sequence[str]) -> str:
    """Whether `came` is at least as new as `t`, column by column; null is older than all."""
    if not age:
        return "true"
    first, rest = quoted(age[0]), _is_newer(age[1:])
    return (
        f"(came.{first} > t.{first} "
        f"OR (t.{first} IS NULL AND came.{first} IS NOT NULL) "
        f"OR (came.{first} IS NOT DISTINCT FROM t.{first} AND {rest}))"
    )


def _all_refused(
    session: ArrowSession, target: Target, refused: Sequence[tuple[Piece, int]]
) -> RefusedFilesError:
    """Of pieces with the number of their rows, of which none can be loaded."""
    piece, rows = refused[0]
    reasons = session.run(
        f"SELECT reason FROM {target.table.rejects.relation} WHERE object = $1 "
        "GROUP BY reason ORDER BY count(*) DESC LIMIT 3",
        (piece.key,),
    )
    return RefusedFilesError(
        f"{piece.key}: none of its {rows:,} rows can be loaded "
        f"({' / '.join(reason for (reason,) in reasons)}), so it is another kind of file than is "
        "declared. Nothing of this load was kept; mend the file or the declaration",
        {each.partition: each.key for each, _ in refused},
    )


def _replace_partitions(
    session: ArrowSession, target: Target, plan: Plan, state: TableState, staged: Staged
) -> Load:
    """Raises RefusedFilesError if no row of a piece that has some can be loaded."""
    assert target.partition
    own = _names(c.name for c in target.own_columns)
    removed = session.change(
        f"DELETE FROM {target.table.relation} WHERE {quoted(target.partition)} IN "
        f"(SELECT partition::date FROM {PIECES})"
    )
    duplicates = _drop_older(session, target, plan) if target.primary_key else 0
    counts = {
        int(piece): int(rows)
        for piece, rows in session.run(
            f"WITH done AS (INSERT INTO {target.table.relation} ({own}, {_columns(target)}) "
            f"SELECT p.key, now(), p.partition::date, {_typed(target, plan)} "
            f"FROM {STAGE} s JOIN {PIECES} p ON p.piece = s.{PIECE} RETURNING _object) "
            f"SELECT p.piece, count(done._object) FROM {PIECES} p "
            "LEFT JOIN done ON done._object = p.key GROUP BY p.piece"
        )
    }
    came = enumerate(zip(plan.pieces, staged.by_piece, strict=True))
    if refused := [(piece, rows) for i, (piece, rows) in came if rows and not counts[i]]:
        raise _all_refused(session, target, refused)
    partitions = tuple(
        PartitionState(piece.partition, piece.digest, counts[i], piece.key, piece.object_version)
        for i, piece in enumerate(plan.pieces)
    )
    new = sum(counts.values())
    return replace(
        nothing(state),
        new=new,
        duplicates=duplicates,
        removed=removed,
        rows=state.rows + new - removed,
        version=digest(state.version, *(f"{p.partition}={p.version}" for p in partitions)),
        partitions=partitions,
    )
