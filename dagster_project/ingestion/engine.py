"""The embedded engine: a connector as a subprocess, its records into the lake, and commits.

What an Airbyte server does for a connection, on one machine. Objects are written while records
come; they become data when a commit names them, which is written last, and only if every stream
was whole. Killed at any moment and run again, nothing is lost and nothing is there twice.

A full refresh that is appended is there once for each sync, and so would be twice after a sync that
was whole, and whose caller was killed before it was done with it. Only the caller can tell that
from a sync that is wanted once more: it says so of the last commit (`heard`), and is given what
that one brought instead of another sync.
"""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from dagster_project.failures import BusyError, LakeError, SourceError, TransientSourceError
from dagster_project.identity import Stream
from dagster_project.ingestion.declaration import (
    Connection,
    DestinationSyncMode,
    StreamDeclaration,
    SyncMode,
)
from dagster_project.ingestion.drift import drift_of, harms
from dagster_project.ingestion.exact import at_risk
from dagster_project.ingestion.leftovers import Marker, Markers, home_id, turn
from dagster_project.ingestion.lines import LineSplitter, holds_data
from dagster_project.ingestion.masking import masking, secrets_of
from dagster_project.ingestion.objects import DIGEST_BYTES, StreamWriter
from dagster_project.ingestion.process import connector_command, manifest_arguments, running
from dagster_project.ingestion.protocol import (
    Conversation,
    StreamProgress,
    mixed_output,
    read_message,
)
from dagster_project.ingestion.synced import Synced, SyncProgress
from dagster_project.lake.commits import Commit, CommitLog, StreamCommit
from dagster_project.lake.store import Lake

#: Bytes of records that may be in memory of all streams together.
HELD = 64 * 2**20
#: Seconds between two checkpoints of a sync.
CHECKPOINT_SECONDS = 30.0
#: How a connector ended that was killed: by the system, for want of memory, or by a person.
KILLED = 128 + signal.SIGKILL
#: Seconds between two reports of progress.
TOLD_EVERY = 1.0

Progress = Callable[[SyncProgress], None]
Say = Callable[[str], None]


def sync(
    domain: str,
    connection: Connection,
    *,
    config: Any,
    lake: Lake,
    home: Path,
    timeout: float,
    run_id: str = "",
    heard: Callable[[Commit], bool] = lambda commit: True,
    progress: Progress = lambda so_far: None,
    say: Say = lambda text: None,
) -> Synced:
    """Run one sync of a connection and commit what it brought to the lake.

    `config` is the connector's configuration with its secrets; `timeout` is in seconds. `progress`
    is told how far it is, at most once a second; `say` what else a person should know. If another
    sync of the connection runs from this home, it is waited for, and what it brought is given.
    `run_id` is kept in the commits; `heard` says whether the run of a sync's last commit was done
    with it, and is asked only if rows would be there twice otherwise.

    Raises SourceError if the connector failed or what it sent is not whole; then nothing is
    committed but checkpoints, and the next sync starts from the last commit.
    """
    log = CommitLog(lake, domain, connection.name)
    before = log.numbers()
    with turn(home, domain, connection.name, 2 * timeout, say) as (folder, waited):
        markers = Markers(lake, domain, connection.name)
        home_name = home_id(home)
        markers.clear_dead(home_name, say)
        joined = None
        if waited:
            joined = _joined(connection, log.since(before[-1] if before else 0))
        if joined is None and _doubles(connection):
            joined = _unheard(connection, log, heard)
        if joined is not None:
            return joined
        command = connector_command(domain, connection, home)
        run = _Sync(domain, connection, lake, log, timeout, progress, run_id)
        marker = Marker(
            home=home_name,
            started_at=run.started,
            deadline=run.deadline,
            after=run.last.number if run.last else 0,
            prefixes=[writer.prefix for writer in run.writers.values()],
        )
        markers.write(run.id, marker)
        inputs = _inputs(folder, config, connection.catalog(), run.resume())
        try:
            done = run.run([*command, "read", *inputs, *manifest_arguments(domain, connection)])
        except LakeError:
            # Whatever it was, it would fail again now.
            raise
        except BaseException:
            if not run.uncertain:
                with suppress(LakeError):
                    markers.clear(run.id, marker)
            raise
        with suppress(LakeError):
            markers.remove(run.id)
        return done


def _doubles(connection: Connection) -> bool:
    """Whether two syncs of the same bring rows twice."""
    return any(
        stream.sync_mode is SyncMode.FULL_REFRESH
        and stream.destination_sync_mode is DestinationSyncMode.APPEND
        for stream in connection.streams
    )


def _unheard(
    connection: Connection, log: CommitLog, heard: Callable[[Commit], bool]
) -> Synced | None:
    """What the last sync brought, if it was whole and its caller was not done with it."""
    last = log.last()
    if last is None or not last.complete or heard(last):
        return None
    found = [last]
    while found[0].number > 1 and (before := log.read(found[0].number - 1)).sync == last.sync:
        found.insert(0, before)
    return _joined(connection, found)


def _joined(connection: Connection, commits: list[Commit]) -> Synced | None:
    """What the last sync of these commits brought, if it is whole and has every stream.

    One that began with an older declaration lacks those that were declared since.
    """
    if not commits or not commits[-1].complete:
        return None
    its_own = [commit for commit in commits if commit.sync == commits[-1].sync]
    brought = {table for commit in its_own for table in commit.streams}
    if not brought.issuperset(stream.table for stream in connection.streams):
        return None
    return Synced(its_own, joined=True)


def _inputs(folder: Path, config: Any, catalog: Any, state: list[Any]) -> Iterator[str]:
    """The arguments that name the connector's input files, written to a folder for this user."""
    for name, value in (("config", config), ("catalog", catalog), ("state", state)):
        if name == "state" and not state:
            continue
        path = folder / f"{name}.json"
        path.touch(mode=0o600)
        path.write_bytes(orjson.dumps(value))
        yield from (f"--{name}", str(path))


#: What goes wrong while a message is taken apart that is not of the protocol.
_AMISS = (KeyError, TypeError, ValueError, AttributeError)


def _amiss(message: dict[str, Any], error: Exception) -> SourceError:
    return SourceError(
        f"the connector sent a {message.get('type')} message that is not of the Airbyte protocol "
        f"({type(error).__name__}: {error})"
    )


class _Sync:
    """One sync, from its start to its last commit."""

    def __init__(
        self,
        domain: str,
        connection: Connection,
        lake: Lake,
        log: CommitLog,
        timeout: float,
        progress: Progress,
        run_id: str,
    ) -> None:
        self.started = datetime.now(UTC)
        self.deadline = self.started + timedelta(seconds=timeout)
        self.id = f"{self.started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self.last = log.last()
        #: Whether a commit was begun of which it is not known whether it was written.
        self.uncertain = False
        self._who = f"{domain}/{connection.name}"
        self._connection = connection
        self._log = log
        self._timeout = timeout
        self._first = self.last.number + 1 if self.last else 1
        self._commits: list[Commit] = []
        self._state = dict(self.last.state) if self.last else {}
        self._versions = self.last.all_versions() if self.last else {}
        self._masked = masking(secrets_of(connection))
        self._progress = progress
        self._run_id = run_id
        self._clock = self._checked = self._told = time.monotonic()
        #: By the names that the source has for the streams.
        self._streams = {stream.name: stream for stream in connection.streams}
        self.writers = {
            name: StreamWriter(
                lake,
                f"{Stream(domain, connection.name, stream.table).prefix}/{self.id}",
                stream.json_schema,
                generation=self._first,
            )
            for name, stream in self._streams.items()
        }
        self._heard = Conversation(
            {name: StreamProgress() for name in self._streams}, masked=self._masked
        )

    def resume(self) -> list[Any]:
        """The state messages that the connector is to go on from."""
        states = [self._state.get(stream.table) for stream in self._incremental()]
        return [orjson.Fragment(s) if isinstance(s, str) else s for s in states if s is not None]

    def _incremental(self) -> list[StreamDeclaration]:
        return [s for s in self._connection.streams if s.sync_mode is SyncMode.INCREMENTAL]

    def run(self, arguments: list[str]) -> Synced:
        """Run the connector to its end and commit what it sent. Raises SourceError."""
        errors: list[str] = []
        exit_code = 0
        try:
            with running(arguments, self._timeout, self._masked) as connector:
                errors = connector.errors
                self._listen(connector.output())
                if self._heard.error is not None:
                    connector.end()
                exit_code = connector.exit_code
            incremental = self._incremental()
            faults = self._heard.faults(
                exit_code,
                [s.name for s in incremental],
                [
                    s.name
                    for s in incremental
                    if s.destination_sync_mode is DestinationSyncMode.APPEND
                ],
            )
            if faults:
                raise SourceError("; ".join(faults))
            self._commit(list(self._streams), complete=True)
        except SourceError as error:
            transient = self._heard.transient or exit_code == KILLED
            raise self._failure(str(error), errors, transient=transient) from None
        return Synced(self._commits)

    def _failure(self, what: str, errors: list[str], *, transient: bool) -> SourceError:
        used = "nothing of it is used"
        if self._commits:
            rows = sum(commit.rows for commit in self._commits)
            used = f"only its first {rows:,} rows are used, from which the next one goes on"
        lines = [*self._heard.last_logs[-5:], *errors[-5:]]
        said = "\nThe connector's last lines:\n" + "\n".join(f"  {line}" for line in lines)
        kind = TransientSourceError if transient else SourceError
        return kind(
            f"{self._who}: the sync failed and {used}: {what.removesuffix('.')}."
            + (said if lines else "")
        )

    def _listen(self, chunks: Iterator[bytes]) -> None:
        splitter = LineSplitter(messages=True)
        for chunk in chain(chunks, [None]):
            try:
                go_on = self._take(*(splitter.close() if chunk is None else splitter.feed(chunk)))
            except SourceError as error:
                # It may quote what the connector sent.
                raise SourceError(self._masked(str(error))) from None
            if not go_on:
                return

    def _take(self, lines: bytes, shortened: list[bytes]) -> bool:
        """Take some whole lines; whether to go on after them."""
        for line in shortened:
            if holds_data(line):
                raise mixed_output()
            self._heard.note(line.decode(errors="replace"))
        risky = at_risk(lines)
        name = ""
        for line in lines.split(b"\n"):
            message = read_message(line, risky=risky)
            if message is None:
                # Not of the protocol: something the connector's libraries printed.
                if line:
                    self._heard.note(line.decode(errors="replace"))
            elif message["type"] != "RECORD":
                if not self._hear(message):
                    return False
            else:
                try:
                    record = message["record"]
                    name, data = record["stream"], record["data"]
                    emitted_at = int(record["emitted_at"])
                    if type(data) is not dict:
                        raise TypeError("its data is not an object")
                    writer = self.writers.get(name)
                except _AMISS as error:
                    raise _amiss(message, error) from None
                if writer is None:
                    raise SourceError(
                        f"the connector sent a record of {name}, which is not declared"
                    )
                writer.add(data, emitted_at, line)
                self._heard.streams[name].records += 1
        self._relieve()
        if name and time.monotonic() - self._told >= TOLD_EVERY:
            self._tell(name)
        return True

    def _hear(self, message: dict[str, Any]) -> bool:
        """Take a message that is no record; whether to go on after it."""
        try:
            state_of = self._heard.hear(message)
        except _AMISS as error:
            raise _amiss(message, error) from None
        if state_of is not None:
            self._checkpoint(state_of)
        # After an error nothing more will be used; many connectors go on for minutes.
        return self._heard.error is None

    def _relieve(self) -> None:
        """Write what is held of the largest streams, if all together hold too much."""
        while sum(writer.held for writer in self.writers.values()) > HELD:
            max(self.writers.values(), key=lambda writer: writer.held).flush()

    def _tell(self, name: str) -> None:
        self._told = time.monotonic()
        self._progress(
            SyncProgress(
                stream=name,
                rows=self._heard.streams[name].records,
                bytes=self.writers[name].received,
                seconds=self._told - self._clock,
                all_rows=sum(stream.records for stream in self._heard.streams.values()),
                all_bytes=sum(writer.received for writer in self.writers.values()),
            )
        )

    def _checkpoint(self, name: str) -> None:
        """Commit what came of a stream so far, if the sync could go on from here.

        Of a stream that is only appended to, or not incremental, rows would be there twice.
        """
        stream, heard = self._streams[name], self._heard.streams[name]
        if (
            self._connection.connector.resumes
            and stream.sync_mode is SyncMode.INCREMENTAL
            and stream.destination_sync_mode is DestinationSyncMode.APPEND_DEDUP
            and heard.counted == heard.records
            and time.monotonic() - self._checked >= CHECKPOINT_SECONDS
        ):
            self._commit([name], complete=False)
            self._checked = time.monotonic()

    def _commit(self, names: list[str], *, complete: bool) -> None:
        """Make data of what was written of these streams since their last commit."""
        parts = {name: self.writers[name].take() for name in names}
        found = [f for name, p in parts.items() for f in harms(self._streams[name], p.observed)]
        if found:
            raise SourceError("; ".join(found))
        streams = {}
        for name, part in parts.items():
            stream = self._streams[name]
            streams[stream.table] = StreamCommit(
                objects=part.objects,
                rows=part.rows,
                sync_mode=stream.sync_mode,
                destination_sync_mode=stream.destination_sync_mode,
                generation=self._first,
                version=self._version(stream, part.digest),
                sent_bytes=part.sent_bytes,
                drift=drift_of(stream, part.observed),
            )
            if stream.sync_mode is SyncMode.INCREMENTAL:
                self._state[stream.table] = self._heard.streams[name].state
            else:
                # Should it be incremental again, the table no longer holds what it went on from.
                self._state.pop(stream.table, None)
        commit = Commit(
            number=self._first + len(self._commits),
            sync=self.id,
            connector=f"{self._connection.connector.environment} "
            f"{self._connection.connector.version}",
            run=self._run_id,
            started_at=self.started.isoformat(),
            ended_at=datetime.now(UTC).isoformat(),
            streams=streams,
            state=dict(self._state),
            complete=complete,
            versions={name: v for name, v in self._versions.items() if name not in streams},
        )
        if datetime.now(UTC) > self.deadline:
            # From now on the sync may be taken for dead, and its objects be removed.
            raise SourceError(
                f"it had brought everything, but not within {self._timeout:g} s. Raise "
                "MESH_SYNC_TIMEOUT if that is how long it takes"
            )
        self.uncertain = True
        try:
            self._log.append(commit)
        except BusyError:
            self.uncertain = False
            raise
        self.uncertain = False
        self._commits.append(commit)
        self._versions = commit.all_versions()

    def _version(self, stream: StreamDeclaration, digest: int) -> str:
        """The version of the stream's data in the lake with what has this digest."""
        if stream.destination_sync_mode is not DestinationSyncMode.OVERWRITE:
            digest += int(self._versions.get(stream.table, "0"), 16)
        return f"{digest % 2 ** (8 * DIGEST_BYTES):0{2 * DIGEST_BYTES}x}"
