"""An S3 server for tests, on loopback: it needs credentials, and fails when and how it is told to.

`localbucket` keeps the objects. In front of it stands what checks every request's signature
(AWS Signature Version 4), answers DeleteObjects, which localbucket does not know, and commits the
faults of a script: the same script, the same faults.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from localbucket import S3Handler

REGION = "eu-central-1"
ACCESS_KEY = "AKIALAKETESTS"
SECRET_KEY = "wJalr/XUtnFEMI+K7MDENG-bPxRfiCYEXAMPLE"
SESSION_TOKEN = "FwoGZXIvYXdzEBYaDHh5enp5/session+token"

#: Seconds that a slow answer is late.
LATE = 0.2


class Fault(Enum):
    """What can happen to a request."""

    SLOW = "the answer is late"
    HANGS = "no answer ever comes"
    ERROR = "500, and nothing was done"
    UNAVAILABLE = "503 SlowDown, and nothing was done"
    CONFLICT = "409 as another writer is at work, and nothing was done"
    DROPPED = "the connection ends, and nothing was done"
    FAILED_LATE = "500, though it was done"
    LOST = "the connection ends, though it was done"
    RESET = "the connection is reset, though it was done"
    CUT = "it was done; the connection ends in the middle of the answer"


#: Faults that any request can meet, and that cost no waiting until somebody's patience ends.
PASSING = [fault for fault in Fault if fault not in (Fault.HANGS, Fault.CONFLICT)]


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, with the names of its headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """`/bucket/key`, as it was sent."""
        return urlsplit(self.target).path

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)


async def _read(reader: asyncio.StreamReader) -> Request:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    headers = {name.lower(): value.strip() for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body)


def _answer(status: str, body: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body.encode())}\r\n\r\n{body}"
    ).encode()


def _refusal(status: str, code: str, **details: str) -> bytes:
    told = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in details.items())
    return _answer(status, f'<?xml version="1.0"?>\n<Error><Code>{code}</Code>{told}</Error>')


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signature_refusal(request: Request) -> bytes | None:
    """The answer to a request that is not signed as it has to be; None for one that is.

    As AWS does, the answer repeats what was signed: a session token is in it.
    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    scheme, _, said = request.headers.get("authorization", "").partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        return _refusal("403 Forbidden", "AccessDenied", Message="Access Denied")
    parts = dict(part.strip().split("=", 1) for part in said.split(","))
    access_key, day, region, service, _ = parts["Credential"].split("/")
    if access_key != ACCESS_KEY:
        return _refusal("403 Forbidden", "InvalidAccessKeyId", AWSAccessKeyId=access_key)
    if request.headers.get("x-amz-security-token") != SESSION_TOKEN:
        return _refusal("403 Forbidden", "InvalidToken")
    if region != REGION:
        return _refusal("400 Bad Request", "AuthorizationHeaderMalformed", Region=REGION)
    digest = request.headers["x-amz-content-sha256"]
    if digest not in (hashlib.sha256(request.body).hexdigest(), "UNSIGNED-PAYLOAD"):
        return _refusal("400 Bad Request", "XAmzContentSHA256Mismatch")
    query = sorted((quote(name, safe="-_.~"), quote(v, safe="-_.~")) for name, v in request.query)
    canonical = "\n".join(
        [
            request.method,
            request.path,
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{request.headers[name]}" for name in parts["SignedHeaders"].split(";")),
            "",
            parts["SignedHeaders"],
            digest,
        ]
    )
    scope = f"{day}/{region}/{service}/aws4_request"
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{scope}\n{hashed}"
    key = f"AWS4{SECRET_KEY}".encode()
    for step in scope.split("/"):
        key = _hmac(key, step)
    if hmac.compare_digest(_hmac(key, to_sign).hex(), parts["Signature"]):
        return None
    return _refusal(
        "403 Forbidden",
        "SignatureDoesNotMatch",
        StringToSign=to_sign,
        CanonicalRequest=canonical,
        AWSAccessKeyId=access_key,
    )


class S3Server:
    """The server: `with S3Server(folder) as server: ... server.url`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (S3Handler,), {"data_root": folder.resolve()})
        self._objects = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._loop = asyncio.new_event_loop()
        self._fault: Callable[[Request], Fault | None] = lambda request: None
        #: Method, path and fault of each request.
        self.seen: list[tuple[str, str, Fault | None]] = []
        self.url = ""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know of it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": SESSION_TOKEN,
        }

    def new_bucket(self) -> str:
        """The URL of a new bucket."""
        name = f"bucket-{len(list(self.folder.iterdir()))}"
        (self.folder / name).mkdir()
        return f"s3://{name}"

    def fail(self, *faults: Fault | None, on: str = "") -> None:
        """Commit these faults, one a request (of method `on`), and then no more."""
        script = deque(faults)
        self.seen.clear()

        def fault(request: Request) -> Fault | None:
            return script.popleft() if script and on in ("", request.method) else None

        self._fault = fault

    def storm(self, seed: int, share: float) -> None:
        """Commit one of the passing faults on this share of all requests."""
        chance = random.Random(seed)
        self.seen.clear()
        self._fault = lambda _: chance.choice(PASSING) if chance.random() < share else None

    @property
    def faults(self) -> list[Fault]:
        """The faults that were committed."""
        return [fault for _, _, fault in self.seen if fault]

    def __enter__(self) -> Self:
        async def start() -> str:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        threading.Thread(target=self._objects.serve_forever, args=(0.05,), daemon=True).start()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.url = asyncio.run_coroutine_threadsafe(start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._objects.shutdown()
        self._objects.server_close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while True:
                request = await _read(reader)
                fault = self._fault(request)
                self.seen.append((request.method, unquote(request.path), fault))
                answer = await self._answered(request, fault)
                if fault is Fault.RESET:
                    opened: socket.socket = writer.get_extra_info("socket")
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if fault in (Fault.DROPPED, Fault.LOST, Fault.RESET):
                    break
                if fault is Fault.HANGS:
                    await reader.read()
                    break
                if fault is Fault.CUT:
                    head = answer.index(b"\r\n\r\n") + 4
                    kept = (head + len(answer)) // 2 if len(answer) > head else head // 2
                    writer.write(answer[:kept])
                    await writer.drain()
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    async def _answered(self, request: Request, fault: Fault | None) -> bytes:
        if fault is Fault.SLOW:
            await asyncio.sleep(LATE)
        if fault is Fault.ERROR:
            return _answer("500 Internal Server Error")
        if fault is Fault.UNAVAILABLE:
            return _refusal("503 Slow Down", "SlowDown")
        if fault is Fault.CONFLICT:
            return _refusal("409 Conflict", "ConditionalRequestConflict")
        if fault in (Fault.DROPPED, Fault.HANGS):
            return b""
        answer = signature_refusal(request) or await self._done(request)
        if fault is Fault.FAILED_LATE:
            return _refusal("500 Internal Server Error", "InternalError")
        return answer

    async def _done(self, request: Request) -> bytes:
        if request.method != "POST" or ("delete", "") not in request.query:
            return await self._forwarded(request)
        keys = [key.text or "" for key in ET.fromstring(request.body).iter() if _is_key(key)]
        for key in keys:
            one = Request("DELETE", f"{request.path}/{quote(key)}", {}, b"")
            answer = await self._forwarded(one)
            if not answer.startswith(b"HTTP/1.1 204"):
                return answer
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _answer("200 OK", f"<DeleteResult>{deleted}</DeleteResult>")

    async def _forwarded(self, request: Request) -> bytes:
        headers = request.headers | {"connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        reader, writer = await asyncio.open_connection(*self._objects.server_address[:2])
        writer.write(f"{request.method} {request.target} HTTP/1.1\r\n{head}\r\n".encode())
        writer.write(request.body)
        answer = await reader.read()
        writer.close()
        return answer


def _is_key(element: ET.Element) -> bool:
    return element.tag.rpartition("}")[2] == "Key"
