"""The lake on S3: what the environment says of it, and what its refusals mean.

Endpoint, region and credentials come from the environment alone, by the names that AWS's own tools
read; obstore reads them. The answers of a server are not repeated: AWS repeats in them what was
signed, session token and all.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dagster_project.failures import LakeError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

#: How long a server may say nothing.
SILENCE = timedelta(seconds=60)
#: It says nothing while it is sent an object: bytes of it a second that need not be a fault.
SLOWEST = 128 * 2**10
#: How long one request may take, for an object that comes slowly but comes.
REQUEST = timedelta(minutes=10)

#: Of several names of one thing, the first that is set is used.
_ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_PLAIN = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")
#: Where credentials can come from, other than the metadata service of a machine at AWS.
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)

_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGION = "Set AWS_REGION to the bucket's region"
_TOKEN = "Set AWS_SESSION_TOKEN anew, with the key that belongs to it, or unset it"  # noqa: S105
#: What to do about an error code of S3.
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_REMEDIES = {
    "AccessDenied": "Let the owner of AWS_ACCESS_KEY_ID list, read, write and delete objects there",
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": _TOKEN,
    "InvalidAccessKeyId": "Set AWS_ACCESS_KEY_ID to a key that the server knows, or "
    "AWS_ENDPOINT_URL to the server that knows it",
    "InvalidToken": _TOKEN,
    "NoSuchBucket": "Create the bucket, or name another one in MESH_LAKE_URL; AWS_ENDPOINT_URL "
    "says which server is asked",
    "PermanentRedirect": _REGION,
    "RequestTimeTooSkewed": "Set this machine's clock",
    "SignatureDoesNotMatch": "Set AWS_SECRET_ACCESS_KEY to the secret of AWS_ACCESS_KEY_ID",
}
#: What is no server's failure and passes all the same, or is one within an answer of 200.
_PASSING = {"408", "409", "412", "429", "InternalError", "SlowDown"}
#: What obstore calls the ways in which a request can get lost.
_LOST = {
    "Connect": "no connection to the server could be made",
    "Interrupted": "the connection broke",
    "Request": "the connection broke",
    "Timeout": f"the server said nothing for {SILENCE.total_seconds():.0f} s or more",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a store did not do what it was asked to."""

    reason: str
    remedy: str = ""
    #: Whether the same request can be answered otherwise later.
    transient: bool = False

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason


def silence(size: int) -> timedelta:
    """How long a server may say nothing that is sent so many bytes, in whole multiples."""
    return SILENCE * max(1, math.ceil(size / SLOWEST / SILENCE.total_seconds()))


def client_config(silent: timedelta) -> ClientConfig:
    """How to talk to the server that the environment names, which may be silent for so long.

    Raises LakeError for a variable that cannot be right. Its value is not shown.
    """
    for name in _PLAIN:
        value = os.environ.get(name, "")
        if value != value.strip() or not value.isprintable():
            raise LakeError(f"{name} begins or ends with white space, or has a line break in it")
    named = next((name for name in _ENDPOINT if os.environ.get(name)), None)
    if named and not any(os.environ.get(name) for name in _CREDENTIALS):
        raise LakeError(f"{named} is set, but no credentials are. {_KEYS}")
    config: ClientConfig = {
        "allow_http": named is not None and _over_http(named),
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": silent,
        "timeout": max(silent, REQUEST),
    }
    return config


def retry_config() -> RetryConfig:
    """The quick retries of one request, which also those have who use the store directly."""
    return {
        "max_retries": 4,
        "retry_timeout": timedelta(seconds=20),
        "backoff": {"max_backoff": timedelta(seconds=2)},
    }


def _over_http(variable: str) -> bool:
    """Whether the endpoint is asked without TLS: on loopback, or if the environment allows it."""
    if "@" in os.environ[variable]:
        raise LakeError(f"{variable} has credentials in it. {_KEYS} instead")
    try:
        parts = urlsplit(os.environ[variable])
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise LakeError(f"{variable} is not a URL such as https://s3.example.com")
    if parts.scheme == "https":
        return False
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "on", "true", "y", "yes")
    if not allowed and not _is_loopback(host):
        raise LakeError(
            f"{variable} is http://, over which everybody on the way reads the data. Use https://, "
            "or set AWS_ALLOW_HTTP=true for a network that you trust"
        )
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refusal(error: Exception) -> Refusal:
    """What an error of obstore says, without any secret that its text may hold."""
    text = str(error)
    status = _found(r"status(?: code)?: (\d{3})\b", text)
    code = _found(r"<Code>(\w{1,64})</Code>", text)
    kind = _found(r"\bHttpError \{\s*kind: (\w+)", text)
    if "/latest/api/token" in text or "/latest/meta-data" in text:
        return Refusal("there are no credentials", f"{_KEYS}; no file with credentials is read")
    if "received redirect without location" in text.lower():
        return Refusal("the bucket is elsewhere", _REGION)
    if code in _REMEDIES:
        return Refusal(f"the server refused it ({code})", _REMEDIES[code])
    if status in ("401", "403"):
        return Refusal(
            f"the server refused it ({code or status})",
            f"{_KEYS}, and AWS_ENDPOINT_URL if the server is not AWS",
        )
    if isinstance(error, FileNotFoundError):
        return Refusal("there is no such object")
    if status:
        passes = status.startswith("5") or status in _PASSING or code in _PASSING
        said = f"the server answered {status}" + (f" ({code})" if code else "")
        return Refusal(said, "Run it again later" if passes else "", passes)
    if kind in _LOST:
        remedy = "See whether the server (AWS_ENDPOINT_URL) runs and is reached, and run it again"
        return Refusal(_LOST[kind], remedy, transient=True)
    first = text.split("\n", 1)[0].split("<", 1)[0]
    if "Unable to rename file: No such file" in first:
        # Of a lake on disk: somebody cleared up in the folder just then.
        return Refusal("the file was removed while it was written", "Run it again", transient=True)
    return Refusal(re.sub(r"//[^/@\s]*@", "//", first))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else ""
