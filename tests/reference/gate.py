"""The source systems behind a gate, which sees every request and may refuse it."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def gate(source: str, see: Callable[[str], bytes | None]) -> Iterator[str]:
    """The URL of the gate; `see` is given each request's path and gives what it is refused with."""

    class Gate(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = 400, see(self.path)
            if body is None:
                with urllib.request.urlopen(source + self.path, timeout=10) as answer:
                    status, body = answer.status, answer.read()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
