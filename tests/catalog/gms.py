"""DataHub's server, as far as proposals go: what it takes, what it keeps, and how it fails.

It reads with DataHub's own classes, and answers as GMS 1.7 does (in its source: AspectResource,
ValidationApiUtils, UrnValidationUtil, PatchItemImpl). A batch is taken or refused as a whole,
without a word of which proposal is at fault, except that one with a URN that cannot be is left out
of it in silence.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote_plus, urlsplit

from avro.errors import AvroException
from datahub.emitter.aspect import ASPECT_MAP, TIMESERIES_ASPECT_MAP
from datahub.emitter.mcp_builder import entity_supports_aspect
from datahub.emitter.serialization_helper import post_json_transform, pre_json_transform
from datahub.metadata.schema_classes import (
    KEY_ASPECTS,
    ChangeTypeClass,
    MetadataChangeProposalClass,
)
from datahub.utilities.urns.error import InvalidUrnError
from datahub.utilities.urns.urn import Urn
from datahub.utilities.urns.urn_iter import list_urns

Record = dict[str, Any]
CONFIG = {
    "noCode": "true",
    "statefulIngestionCapable": True,
    "patchCapable": True,
    "versions": {"acryldata/datahub": {"version": "v1.7.0"}},
}
#: What tells the items of an array apart, where a patch does not say it itself.
KEYS = {
    "dataProductProperties": {"assets": ["destinationUrn"]},
    "globalTags": {"tags": ["tag"]},
    "ownership": {"owners": ["owner", "type"]},
    "upstreamLineage": {"upstreams": ["dataset"]},
}
#: What is between the names of a nested key.
NESTED = "\u241f"


class RefusedError(Exception):
    """The answer to a request that is not taken."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LeftOutError(Exception):
    """A proposal that is left out of its batch in silence."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How requests that bring proposals are answered, in place of taking them."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"message": "java.lang.RuntimeException: no connection to the database"}'
    #: What of the batch is stored before that: 0, its first half or all of it.
    stored: float = 0
    #: The connection is dropped without an answer.
    drops: bool = False


class RecordingGms:
    """GMS on a port of loopback that is free, and the same after each `start`."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        #: Every proposal that was sent, in the order of arrival, also those that were not taken.
        self.requests: list[Record] = []
        #: How many proposals each request brought.
        self.batches: list[int] = []
        #: The last state, by URN and name of the aspect; a timeseries aspect as a list.
        self.aspects: dict[tuple[str, str], Any] = {}
        #: URNs of proposals that were left out in silence.
        self.left_out: list[str] = []
        #: URNs of entities with which it cannot do anything, and does not say why.
        self.chokes_on: set[str] = set()
        #: Seconds until an answer.
        self.slow = 0.0
        #: Requests that wait for one.
        self.waiting = 0
        self._faults: deque[Fault] = deque()
        self._lasting: Fault | None = None
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Answer, on the same port as before."""
        self._stopped.clear()
        self._server = _Listener(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections. What was stored stays."""
        if self._server is not None:
            self._stopped.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Connections are refused for as long."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    # Faults

    def answer(self, status: int, times: int = 1, **headers: str) -> None:
        """Take nothing of the next requests, and answer so; `Retry_After="7"` is a header."""
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults += [Fault(status, said)] * times

    def fail(self, fault: Fault, times: int = 1) -> None:
        """Answer the next requests so."""
        self._faults += [fault] * times

    def take_half(self, times: int = 1) -> None:
        """Store the first half of each of the next batches, and answer 500."""
        self.fail(Fault(500, stored=0.5), times)

    def drop(self, times: int = 1) -> None:
        """Store the next batches, and drop the connection: the client does not know."""
        self.fail(Fault(stored=1, drops=True), times)

    def answer_always(self, status: int) -> None:
        """Answer so until `recover`."""
        self._lasting = Fault(status)

    def recover(self) -> None:
        """No fault is left."""
        self._lasting, self.slow = None, 0.0
        self._faults.clear()

    # Requests

    def take(self, proposals: list[Any]) -> None:
        """Store them. Raises RefusedError if one of them is at fault; then none is stored.

        A fault that is scripted comes first.
        """
        self.requests += proposals
        self.batches.append(len(proposals))
        fault = self._faults.popleft() if self._faults else self._lasting
        share = fault.stored if fault else 1
        stored = dict(self.aspects)
        left_out = []
        # Before the first is stored, all are read.
        for proposal in map(_proposal, proposals[: int(len(proposals) * share)]):
            try:
                _check_address(proposal)
                if proposal.entityUrn in self.chokes_on:
                    raise RefusedError(500, "java.lang.NullPointerException: null")
                _store(stored, proposal)
            except LeftOutError:
                left_out.append(proposal.entityUrn)
        self.aspects = stored
        self.left_out += left_out
        if fault:
            raise _FailingError(fault)

    def receive(self, path: str, action: str, body: bytes, token: str) -> None:
        """A request. Raises RefusedError."""
        if self.token is not None and token != f"Bearer {self.token}":
            # As its authentication filter says it.
            raise RefusedError(401, f"Unauthorized to perform this action, with {token}.")
        if path != "/aspects" or action not in ("ingestProposal", "ingestProposalBatch"):
            raise RefusedError(404, f"No root resource defined for path {path}")
        try:
            said = json.loads(body)
            one = action == "ingestProposal"
            proposals = [said["proposal"]] if one else said["proposals"]
            # Otherwise nobody is told what becomes of it.
            assert said["async"] == "false"
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise RefusedError(400, f"Cannot parse request entity: {error!r}") from None
        # It may be slow for several at a time, but stores one after the other.
        self.waiting += 1
        self._stopped.wait(self.slow)
        self.waiting -= 1
        with self._lock:
            self.take(proposals)


class _FailingError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    # Requests that are still slow are not waited for.
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[Any] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        # Who is connected is not served any longer, either.
        for connection in list(self.connections):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away before its answer is nothing to tell."""


def _handler(gms: RecordingGms) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # An answer in one piece: the second of two would wait for 40 ms.
        wbufsize = -1

        def do_GET(self) -> None:
            if urlsplit(self.path).path == "/config":
                self._answer(200, json.dumps(CONFIG))
            else:
                self._answer(404, "")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            where = urlsplit(self.path)
            action = "".join(parse_qs(where.query).get("action", []))
            try:
                gms.receive(where.path, action, body, self.headers.get("Authorization", ""))
            except _FailingError as failing:
                if failing.fault.drops:
                    self.close_connection = True
                else:
                    self._answer(failing.fault.status, failing.fault.body, **failing.fault.headers)
            except RefusedError as refused:
                error = {
                    "exceptionClass": "com.linkedin.restli.server.RestLiServiceException",
                    "message": str(refused),
                    "stackTrace": "RestLiServiceException\n\tat com.linkedin...",
                    "status": refused.status,
                }
                self._answer(refused.status, json.dumps(error))
            else:
                self._answer(200, '{"value":"success"}')

        def _answer(self, status: int, body: str, **headers: str) -> None:
            self.send_response(status, HTTPStatus(status).phrase)
            content = body.encode()
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def _proposal(record: Any) -> MetadataChangeProposalClass:
    """The proposal, as Rest.li reads it. Raises RefusedError."""
    try:
        read = dict(record)
        if aspect := read.get("aspect"):
            # Of the type bytes: a character for each of them.
            read["aspect"] = {**aspect, "value": aspect["value"].encode("latin-1")}
        proposal = MetadataChangeProposalClass.from_obj(_envelope(read))
        if not proposal.validate():
            raise ValueError("not of the schema")
    except (AttributeError, AvroException, KeyError, TypeError, ValueError) as error:
        raise RefusedError(400, f"Parameter 'proposals' is invalid: {error}") from None
    if proposal.entityUrn is None or not proposal.entityUrn.startswith("urn:li:"):
        raise RefusedError(
            500, f"TemplateOutputCastException: Invalid URN syntax: {proposal.entityUrn}"
        )
    return proposal


def _envelope(record: Record) -> Record:
    """The proposal around its aspect, which is read by itself."""
    envelope = {name: value for name, value in record.items() if name != "aspect"}
    return {**post_json_transform(envelope), "aspect": record.get("aspect")}


def _check_address(proposal: MetadataChangeProposalClass) -> None:
    """Raises RefusedError if no such entity has such an aspect, LeftOutError if its URN is none."""
    urn, aspect = proposal.entityUrn, proposal.aspectName
    kind = urn.split(":")[2]
    if kind not in KEY_ASPECTS:
        raise RefusedError(422, f"Failed to find entity with name {kind} in EntityRegistry")
    if proposal.entityType.lower() != kind.lower():
        raise RefusedError(
            422, f"URN entity type does not match MCP entity type. {kind} != {proposal.entityType}"
        )
    try:
        Urn.from_string(urn)
    except InvalidUrnError as error:
        raise LeftOutError from error
    if urn != urn.strip() or len(quote_plus(urn, safe="*")) > 512:
        raise LeftOutError
    known = ASPECT_MAP.get(aspect)
    if known is None or not entity_supports_aspect(kind, known):
        raise RefusedError(422, f"Unknown aspect {aspect} for entity {kind}")


def _store(aspects: dict[tuple[str, str], Any], proposal: MetadataChangeProposalClass) -> None:
    """Raises RefusedError if the aspect is not what it has to be."""
    where = proposal.entityUrn, proposal.aspectName
    try:
        said = json.loads(proposal.aspect.value.decode())
    except (AttributeError, ValueError) as error:
        # What is no JSON, it finds where nothing is prepared for it.
        raise RefusedError(
            500, f"java.lang.RuntimeException: ModelConversionException: Failed to parse: {error}"
        ) from None
    if proposal.aspectName in TIMESERIES_ASPECT_MAP:
        if proposal.changeType != ChangeTypeClass.UPSERT:
            raise RefusedError(
                500, "java.lang.UnsupportedOperationException: ChangeType not supported"
            )
        told, aspect = aspects.get(where, []), _read(proposal, said)
        # Its document's id is made of these, so the same one twice is one.
        aspects[where] = told if aspect in told else [*told, aspect]
    elif proposal.changeType == ChangeTypeClass.PATCH:
        try:
            changed = patched(aspects.get(where, {}), said, KEYS.get(proposal.aspectName, {}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RefusedError(500, f"jakarta.json.JsonException: {error!r}") from None
        aspects[where] = _read(proposal, changed)
    elif proposal.changeType == ChangeTypeClass.UPSERT:
        aspects[where] = _read(proposal, said)
    else:
        raise RefusedError(500, "java.lang.UnsupportedOperationException: ChangeType not supported")


def _read(proposal: MetadataChangeProposalClass, said: Any) -> Record:
    """The aspect, read and written by its class. Raises RefusedError."""
    name = f"Failed to validate record with class {proposal.aspectName}"
    try:
        aspect = ASPECT_MAP[proposal.aspectName].from_obj(post_json_transform(said))
        if not aspect.validate():
            raise RefusedError(422, name)
        for urn in list_urns(aspect):
            Urn.from_string(urn)
    except (AttributeError, AvroException, InvalidUrnError, KeyError, TypeError, ValueError) as e:
        raise RefusedError(422, f"{name}: {e}") from None
    read: Record = pre_json_transform(aspect.to_obj())
    return read


def patched(aspect: Record, patch: Any, keys: Mapping[str, list[str]]) -> Record:
    """The aspect after a JSON patch, in which items of arrays are named by their keys.

    `/owners/<owner>/<type>` is the owner of these; the first keys alone are all who have them.
    """
    if isinstance(patch, dict):
        keys, patch = {**keys, **patch.get("arrayPrimaryKeys", {})}, patch["patch"]
    changed = deepcopy(aspect)
    items = {
        name: {tuple(_key(item, path) for path in paths): item for item in changed.pop(name, ())}
        for name, paths in keys.items()
    }
    for operation in patch:
        path = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")]
        name, *rest = path[1:]
        op = operation["op"]
        if op not in ("add", "replace", "remove"):
            raise ValueError(f"operation {op}")
        if name not in keys:
            parent = changed
            for part in path[1:-1]:
                parent = parent.setdefault(part, {})
            if op == "remove":
                parent.pop(path[-1], None)
            else:
                parent[path[-1]] = operation["value"]
        elif op == "remove":
            gone = [key for key in items[name] if key[: len(rest)] == tuple(rest)]
            for key in gone:
                del items[name][key]
        elif len(rest) == len(keys[name]):
            items[name][tuple(rest)] = operation["value"]
        else:
            raise ValueError(f"{operation['path']} is not of the keys {keys[name]}")
    return {**changed, **{name: list(found.values()) for name, found in items.items()}}


def _key(item: Record, path: str) -> str:
    value: Any = item
    for part in path.split(NESTED):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)
