"""The source systems of fleet and weather: the reference data over HTTP, on loopback only.

    GET /fleet/planes.csv, /fleet/airports.csv, /fleet/airlines.csv
    GET /weather/readings?since=<time>&until=<time>&limit=<n>&after=<next of the page before>
    GET /health

As a program (`python -m dagster_project.reference.server --data DIR`) it prints its address as one
line of JSON and ends when its standard input closes, and so with the process that started it. It
uses the standard library only, so that it answers within a few hundred milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, urlsplit

from dagster_project.failures import SourceError
from dagster_project.reference import data
from dagster_project.reference.readings import Key, Readings

LOOPBACK = "127.0.0.1"
DEFAULT_LIMIT = 1_000
MAX_LIMIT = 5_000
#: Seconds within which the server has to answer, and to end, before it counts as failed.
READY_WITHIN = 10.0
END_WITHIN = 5.0

_FLEET = {f"/fleet/{name}": name for name in (data.PLANES, data.AIRPORTS, data.AIRLINES)}
_PARAMETERS = ("since", "until", "limit", "after")


class RequestError(Exception):
    """A request that cannot be answered; the message tells the client what to mend."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of /weather/readings. Times are in UTC and included."""

    since: datetime | None = None
    until: datetime | None = None
    limit: int = DEFAULT_LIMIT
    after: Key | None = None

    @classmethod
    def parse(cls, text: str) -> Query:
        """The query string as parameters. Raises RequestError naming the parameter to mend."""
        pairs = parse_qsl(text, keep_blank_values=True)
        given = dict(pairs)
        if len(given) != len(pairs):
            raise RequestError(HTTPStatus.BAD_REQUEST, "a parameter is given twice")
        unknown = sorted(given.keys() - set(_PARAMETERS))
        if unknown:
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                f"unknown parameter {', '.join(unknown)}: allowed are {', '.join(_PARAMETERS)}",
            )
        return cls(
            since=_time("since", given["since"]) if "since" in given else None,
            until=_time("until", given["until"]) if "until" in given else None,
            limit=_limit(given["limit"]) if "limit" in given else DEFAULT_LIMIT,
            after=_after(given["after"]) if "after" in given else None,
        )


def _time(name: str, text: str) -> datetime:
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        time_ = None
    if time_ is None or time_.tzinfo is None:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"{name} must be an ISO 8601 time with its offset, such as 2013-01-01T06:00:00Z",
        )
    return time_.astimezone(UTC)


def _limit(text: str) -> int:
    limit = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, f"limit must be a whole number from 1 to {MAX_LIMIT}"
        )
    return limit


def _after(text: str) -> Key:
    hour, slash, origin = text.partition("/")
    if not (slash and origin):
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "after must be the value of `next` on the page before"
        )
    return _time("after", hour), origin


def _token(key: Key) -> str:
    return f"{key[0]:%Y-%m-%dT%H:%M:%SZ}/{key[1]}"


class SourceSystems(ThreadingHTTPServer):
    """The server; a free port is chosen if `port` is 0."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self._parsing = threading.Lock()
        super().__init__((LOOPBACK, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}"

    @cached_property
    def _readings(self) -> Readings:
        return Readings.read(self.folder / data.WEATHER)

    def readings(self) -> Readings:
        """All readings, parsed when first asked for, and once however many ask."""
        with self._parsing:
            return self._readings


class _Handler(BaseHTTPRequestHandler):
    server: SourceSystems
    server_version = "reference-sources"
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: with Nagle's algorithm the second waits 40 ms.
    disable_nagle_algorithm = True
    timeout = 60

    def do_GET(self) -> None:
        try:
            content_type, body = self._answer()
        except RequestError as error:
            self._reply_json(error.status, {"error": str(error)})
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the client is told, as by any server
            self._reply_json(
                HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"}
            )
        else:
            self._reply(HTTPStatus.OK, content_type, body)

    def _answer(self) -> tuple[str, bytes]:
        url = urlsplit(self.path)
        if url.path in _FLEET:
            return "text/csv; charset=utf-8", (self.server.folder / _FLEET[url.path]).read_bytes()
        if url.path == "/weather/readings":
            return "application/json", self._readings(Query.parse(url.query))
        if url.path == "/health":
            return "application/json", b'{"status": "ok"}'
        raise RequestError(
            HTTPStatus.NOT_FOUND,
            f"no {url.path} here: there are {', '.join(_FLEET)}, /weather/readings and /health",
        )

    def _readings(self, query: Query) -> bytes:
        page = self.server.readings().page(query.since, query.until, query.after, query.limit)
        following = _token(page.last) if page.last else None
        return json.dumps({"readings": page.readings, "next": following}).encode()

    def _reply(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _reply_json(self, status: HTTPStatus, content: dict[str, str]) -> None:
        self._reply(status, "application/json", json.dumps(content).encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what http.server itself refuses (a method, a malformed line), as JSON too."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._reply_json(status, {"error": message or status.phrase})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        """Nothing: the connectors log their own requests."""


@contextlib.contextmanager
def running(home: Path) -> Iterator[str]:
    """The source systems in a process of their own; gives their base address, without a slash.

    They end with the context, or with this process however that ends. Raises SourceError if the
    reference data is not installed or the server does not answer within READY_WITHIN seconds.
    """
    folder = data.data_folder(home)
    project = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([project, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster_project.reference.server", "--data", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C reaches the whole process group: the source must outlive its readers.
            start_new_session=True,
        )
        try:
            yield _address(process, errors)
        finally:
            _end(process)


def _address(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    assert process.stdout is not None
    line = b""
    deadline = time.monotonic() + READY_WITHIN
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        read = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not read:
            break
        line += read
    try:
        return str(json.loads(line)["url"])
    except (ValueError, KeyError):
        _end(process)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()[-2000:]
        raise SourceError(
            "the reference source systems did not start within "
            f"{READY_WITHIN:.0f} s (exit code {process.returncode}): {said or 'they said nothing'}"
        ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(END_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def main(arguments: list[str] | None = None) -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the CSV files")
    parser.add_argument("--port", type=int, default=0, help="0, the default, is a free port")
    options = parser.parse_args(arguments)
    with SourceSystems(options.data, options.port) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.daemon = True
        serving.start()
        sys.stdout.write(json.dumps({"url": server.url}) + "\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        server.shutdown()


if __name__ == "__main__":
    main()
