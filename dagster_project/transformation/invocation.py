"""dbt's builds, each in a process forked from one that has imported dbt and read the project.

dbt allows one invocation a process at a time. A process of its own is also what can be interrupted:
dbt then cancels its queries. Started as a program it would import itself and read the project again
for every build, which takes longer than most builds do.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_project.failures import TransformationError, TransientTransformationError
from dagster_project.parent import end_with_parent
from dagster_project.settings import DBT_PROJECT_DIR, get_settings
from dagster_project.transformation.artifacts import RUN_RESULTS
from dagster_project.transformation.project import dbt_environment

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

#: What a build imports. None of these opens a connection or starts a thread when it is imported.
PRELOADED = ("dbt.adapters.postgres", "dbt.cli.main", "dbt.task.build", "psycopg2.extras")
#: Its events of models and tests that ended.
RESULTS = frozenset({"LogModelResult", "LogSeedResult", "LogSnapshotResult", "LogTestResult"})
#: What it says when the warehouse is away, or when two came into each other's way.
_LOST = re.compile(
    r"connection (refused|reset|failed|already closed)|server closed the connection|deadlock "
    r"detected|terminating connection|too many clients|remaining connection slots|could not "
    r"(connect|serialize)|connection to server at .* failed|the database system is",
    re.I,
)
#: Seconds in which it has to cancel its queries.
GRACE = 25


def preload() -> None:
    """Import dbt and read the project, so that forks of this process have both."""
    for module in PRELOADED:
        import_module(module)
    _project()


def build(
    url: str, names: Sequence[str], target: Path, days: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Build these models, and run these tests; the events of each that ended.

    The events are those of dbt's JSON log, secrets scrubbed. `days` are ISO dates, for incremental
    models; all if none is given. What dbt compiled, and its log, lie in the folder `target`. An
    interrupted caller interrupts dbt. Raises TransformationError with dbt's own words.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(  # type: ignore[attr-defined]
        target=_build,
        args=((ours, theirs), url, names, target, days),
        name="dbt build",
        daemon=True,  # a caller that ends interrupts it, and does not wait for what it builds
    )
    process.start()
    theirs.close()
    errors = []
    try:
        for event in _heard(ours):
            if event["info"]["level"] == "error":
                errors.append(event["info"]["msg"])
            if event["info"]["name"] in RESULTS:
                yield event
        process.join()
    finally:
        ours.close()
        _end(process)
    if process.exitcode:
        lost = any(_LOST.search(error) for error in errors)
        kind = TransientTransformationError if lost else TransformationError
        raise kind(_what_failed(errors, process.exitcode, target))


def _heard(pipe: Connection) -> Iterator[dict[str, Any]]:
    """What is sent until the other end closes."""
    while True:
        try:
            text = pipe.recv()
        except EOFError:
            return
        yield json.loads(text)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End what still runs: asked first, then made to."""
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(timeout=GRACE)
    if process.is_alive():
        process.kill()
        process.join()


def _what_failed(errors: list[str], code: int, target: Path) -> str:
    lines = [line.strip() for line in "\n".join(errors).splitlines() if line.strip()]
    if not lines:
        lines = [f"its process ended with exit code {code}; its log: {target / 'dbt.log'}"]
    return "dbt could not build every model:\n  " + "\n  ".join(lines[:40])


def _build(
    pipe: tuple[Connection, Connection],
    url: str,
    names: Sequence[str],
    target: Path,
    days: Sequence[str],
) -> None:
    """In dbt's own process: what it prints goes where the caller's output goes."""
    others, mine = pipe
    others.close()  # so that writing fails when the caller is gone
    end_with_parent()
    # dbt cancels its queries on KeyboardInterrupt; what it inherited is the caller's handling.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    os.environ.update(
        dbt_environment(url)
        | {
            "DBT_TARGET_PATH": str(target),
            "DBT_LOG_PATH": str(target),
            "DBT_PROJECT_DIR": str(DBT_PROJECT_DIR),
            "DBT_MESH_DAYS": ",".join(days),
        }
    )
    os.chdir(DBT_PROJECT_DIR)
    from dbt.artifacts.schemas.run import RunExecutionResult
    from dbt.cli.main import dbtRunner
    from dbt_common.events.functions import env_scrubber, msg_to_json

    def hear(event: Any) -> None:
        if event.info.level != "error" and event.info.name not in RESULTS:
            return
        try:
            mine.send(env_scrubber(msg_to_json(event)))
        except BrokenPipeError:  # nobody will note what is built
            os.kill(os.getpid(), signal.SIGINT)

    manifest = _project()
    if manifest and _database(manifest) != os.environ["DBT_MESH_DATABASE"]:
        manifest = None  # dbt reads the project anew
    done = dbtRunner(manifest=manifest, callbacks=[hear]).invoke(
        # It looks for the relations of the models that it builds, not of all, and does not write
        # the manifest anew.
        [
            *("--cache-selected-only", "--no-write-json", "build"),
            *("--indirect-selection", "empty", "--select", " ".join(names)),
        ]
    )
    if isinstance(done.result, RunExecutionResult):
        done.result.write(str(target / RUN_RESULTS))
    sys.exit(0 if done.success else 1)


def _project() -> Manifest | None:
    """The project as `ensure_manifest` parsed it, which dbt takes in place of parsing it again."""
    path = get_settings().dbt_target.absolute() / "partial_parse.msgpack"
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=1)
def _read(path: Path, _modified: int) -> Manifest:
    from dbt.contracts.graph.manifest import Manifest
    from dbt.parser.manifest import extended_mashumuro_decoder

    manifest = Manifest.from_msgpack(path.read_bytes(), decoder=extended_mashumuro_decoder)
    manifest.build_parent_and_child_maps()
    return manifest


def _database(manifest: Manifest) -> str | None:
    """The database that the models' relations are in, which is fixed when they are parsed."""
    return next((node.database for node in manifest.nodes.values()), None)
