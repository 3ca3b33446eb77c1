"""The embedded engine: a connector as a subprocess, its records into the lake, one commit.

What an Airbyte server does for a connection, on one machine. Objects are written while records
come; they become data when the commit is written, last, and only if every stream was whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from dagster_project.domain import domain_folder
from dagster_project.failures import DeclarationError, SourceError
from dagster_project.ingestion.declaration import (
    Connection,
    DestinationSyncMode,
    StreamDeclaration,
    SyncMode,
)
from dagster_project.ingestion.environments import ensure_environment
from dagster_project.ingestion.masking import masking, secrets_of
from dagster_project.ingestion.protocol import Conversation, StreamProgress
from dagster_project.ingestion.records import RecordBatches
from dagster_project.lake.commits import Commit, CommitLog, LakeObject, StreamCommit
from dagster_project.lake.store import Lake

#: Rows a Parquet object may hold; also what is held in memory of one stream.
ROWS_AN_OBJECT = 50_000
#: Seconds that a connector gets between SIGTERM and SIGKILL.
GRACE = 10.0

Progress = Callable[[str, int], None]


@dataclass(slots=True)
class _Writer:
    """Buffers one stream's records and writes them as Parquet objects."""

    lake: Lake
    prefix: str
    batches: RecordBatches
    records: list[Mapping[str, Any]] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    objects: list[LakeObject] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, data: Mapping[str, Any], emitted_at: int) -> None:
        self.records.append(data)
        self.emitted.append(emitted_at)
        if len(self.records) >= ROWS_AN_OBJECT:
            self.flush()

    def flush(self) -> None:
        if not self.records:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        batch = self.batches.build(self.records, self.emitted)
        self.digest.update(orjson.dumps(self.records))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_batches([batch]), sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        key = f"{self.prefix}/{len(self.objects):05d}.parquet"
        self.lake.create(key, content)
        self.objects.append(LakeObject(key=key, rows=batch.num_rows, size=len(content)))
        self.records, self.emitted = [], []


def connector_command(domain: str, connection: Connection, home: Path) -> list[str]:
    """The program and its first arguments. Makes the connector's environment if need be."""
    connector = connection.connector
    environment = ensure_environment(connector.environment, home)
    program = environment / "bin" / (connector.executable or connector.environment)
    if not program.exists():
        raise DeclarationError(
            f"{domain}/{connection.name}: the environment {connector.environment} has no program "
            f"{program.name}: name it in connector.executable"
        )
    return [str(program)]


def _manifest(domain: str, connection: Connection) -> list[str]:
    if not connection.connector.manifest:
        return []
    path = domain_folder(domain) / "ingest" / connection.connector.manifest
    if not path.exists():
        raise DeclarationError(f"{domain}/{connection.name}: the manifest {path} does not exist")
    return ["--manifest-path", str(path)]


def _environment() -> dict[str, str]:
    """What a connector sees of our environment: nothing that could be a secret of the platform."""
    keep = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    known = {name: os.environ[name] for name in keep if name in os.environ}
    return known | {"DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


@contextmanager
def _running(
    command: list[str], timeout: float, who: str, masked: Callable[[str], str]
) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """The connector in a process group of its own, ended as a group whatever happens."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    )
    errors: list[str] = []
    timed_out = threading.Event()

    def drain(stream: IO[bytes]) -> None:
        for line in stream:
            errors.append(masked(line.decode(errors="replace").rstrip())[:500])
            del errors[:-20]

    def give_up() -> None:
        timed_out.set()
        _end(process)

    assert process.stderr
    drainer = threading.Thread(target=drain, args=(process.stderr,), daemon=True)
    drainer.start()
    limit = threading.Timer(timeout, give_up)
    limit.daemon = True
    limit.start()
    try:
        yield process, errors
        process.wait()
        drainer.join(timeout=GRACE)
    finally:
        limit.cancel()
        _end(process)
        if process.stdout:
            process.stdout.close()
    if timed_out.is_set():
        raise SourceError(
            f"{who}: the connector still ran after {timeout:.0f} s and was stopped. Raise "
            "MESH_SYNC_TIMEOUT if that is how long it takes"
        )


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: asked first, then made to."""
    if not _signal_group(process, signal.SIGTERM):
        return
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE)
    _signal_group(process, signal.SIGKILL)
    process.wait()


@contextmanager
def _inputs(config: Any, catalog: Any, state: list[Any]) -> Iterator[list[str]]:
    """The connector's input files, in a folder that only this user can read."""
    with tempfile.TemporaryDirectory(prefix="mesh-sync-") as folder:
        arguments = []
        for name, value in (("config", config), ("catalog", catalog), ("state", state)):
            if name == "state" and not state:
                continue
            path = Path(folder) / f"{name}.json"
            path.touch(mode=0o600)
            path.write_bytes(orjson.dumps(value))
            arguments += [f"--{name}", str(path)]
        yield arguments


def sync(
    domain: str,
    connection: Connection,
    *,
    config: Any,
    lake: Lake,
    home: Path,
    timeout: float,
    progress: Progress = lambda stream, rows: None,
) -> Commit:
    """Run one sync of a connection and commit what it brought to the lake.

    `config` is the connector's configuration with its secrets; `progress` is told the stream and
    its rows so far, about once a second. Raises SourceError if the connector failed or what it sent
    is not whole; then nothing is committed, and the next sync starts from the last commit.
    """
    who = f"{domain}/{connection.name}"
    log = CommitLog(lake, domain, connection.name)
    last = log.last()
    number = last.number + 1 if last else 1
    state = dict(last.state) if last else {}
    started = datetime.now(UTC)
    sync_id = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    writers = {
        stream.name: _Writer(
            lake,
            f"{domain}/{connection.name}/{stream.name}/{sync_id}",
            RecordBatches(stream.json_schema, generation=number),
        )
        for stream in connection.streams
    }
    incremental = [s.name for s in connection.streams if s.sync_mode is SyncMode.INCREMENTAL]
    resume = [state[name] for name in incremental if name in state]
    command = connector_command(domain, connection, home)
    masked = masking(secrets_of(connection))
    heard = Conversation({name: StreamProgress() for name in writers}, masked=masked)

    with _inputs(config, connection.catalog(), resume) as inputs:
        arguments = [*command, "read", *inputs, *_manifest(domain, connection)]
        with _running(arguments, timeout, who, masked) as (process, errors):
            assert process.stdout
            try:
                _listen(process.stdout, heard, writers, progress)
            except SourceError as error:
                raise SourceError(
                    f"{who}: the sync failed and nothing of it is used: {masked(str(error))}"
                ) from None
            if heard.error is not None:
                _end(process)
        exit_code = process.returncode

    faults = heard.faults(exit_code, incremental)
    if faults:
        said = "\n".join(f"  {line}" for line in [*heard.last_logs[-5:], *errors[-5:]])
        raise SourceError(
            f"{who}: the sync failed and nothing of it is used: {'; '.join(faults)}."
            + (f"\nThe connector's last lines:\n{said}" if said else "")
        )
    for writer in writers.values():
        writer.flush()
    commit = Commit(
        number=number,
        sync=sync_id,
        connector=f"{connection.connector.environment} {connection.connector.version}",
        started_at=started.isoformat(),
        ended_at=datetime.now(UTC).isoformat(),
        streams={
            stream.name: StreamCommit(
                objects=writers[stream.name].objects,
                rows=heard.streams[stream.name].records,
                sync_mode=stream.sync_mode,
                destination_sync_mode=stream.destination_sync_mode,
                generation=number,
                version=_version(stream, writers[stream.name], last),
            )
            for stream in connection.streams
        },
        state=state | {name: heard.state[name] for name in incremental},
    )
    log.append(commit)
    return commit


def _version(stream: StreamDeclaration, writer: _Writer, last: Commit | None) -> str:
    """The version of the stream's data in the lake after this sync."""
    before = last.streams.get(stream.name) if last else None
    if stream.destination_sync_mode is DestinationSyncMode.OVERWRITE:
        return str(writer.digest.hexdigest()[:32])
    if before is None:
        return str(writer.digest.hexdigest()[:32])
    if not writer.objects:
        return before.version
    chained = hashlib.sha256(before.version.encode() + writer.digest.digest())
    return chained.hexdigest()[:32]


def _message(line: bytes) -> dict[str, Any] | None:
    """The protocol message that a line is; None if it is something else.

    Raises SourceError for a record that cannot be read: it must not be lost among other output.
    """
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError:
        if not line.lstrip().startswith(b"{") or b'"RECORD"' not in line:
            return None
        try:
            # Python connectors can print NaN and Infinity, which are numbers, though not JSON's.
            message = json.loads(line)
            orjson.dumps(message)
        except (ValueError, TypeError) as error:
            raise SourceError(
                f"the connector sent a record that is not valid JSON ({type(error).__name__})"
            ) from None
    return message if isinstance(message, dict) and "type" in message else None


def _listen(
    lines: IO[bytes],
    heard: Conversation,
    writers: Mapping[str, _Writer],
    progress: Progress,
) -> None:
    told = time.monotonic()
    for line in lines:
        message = _message(line)
        if message is None:
            # Not of the protocol: something the connector's libraries printed.
            heard.note(line.decode(errors="replace").rstrip())
            continue
        try:
            if message["type"] != "RECORD":
                heard.hear(message)
                if heard.error is not None:
                    # Nothing of this sync will be used; many connectors go on for minutes.
                    return
                continue
            record = message["record"]
            name, data, emitted_at = record["stream"], record["data"], int(record["emitted_at"])
            if not isinstance(data, dict):
                raise TypeError("its data is not an object")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(
                f"the connector sent a {message.get('type')} message that is not of the Airbyte "
                f"protocol ({type(error).__name__}: {error})"
            ) from None
        if name not in writers:
            raise SourceError(f"the connector sent a record of {name}, which is not declared")
        writers[name].add(data, emitted_at)
        stream = heard.streams[name]
        stream.records += 1
        if stream.records % 1000 == 0 and time.monotonic() - told >= 1.0:
            told = time.monotonic()
            progress(name, stream.records)
