"""Proposals delivered to DataHub's server, GMS, over REST.

The session is that of DataHub's own emitter: its headers, proxies and certificates. The proposals
are posted here and not by its `emit_mcps`, which makes a text of the status of a refusal, takes the
login page that a redirect leads to for success, and writes into what it is given.

GMS refuses a batch as a whole and does not say which of it is at fault, so a refused one is halved
until those stand alone, in the order in which they came. With 500 it answers both what it cannot
take (an aspect that is no JSON, a patch that does not apply) and what it could take at another
time. So a proposal with 500 is refused only if the answer names one of the errors that it has for
what it cannot take, or if it takes others at the same time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote_plus, urlsplit

from dagster_project.failures import CatalogError, TransientCatalogError

if TYPE_CHECKING:
    from requests import Response

    from dagster_project.catalog.aspects import Proposal

#: Proposals a request. DataHub's own emitter sends no more: GMS has to be done with them before it
#: gives up, and answers 500 if it is not.
BATCH = 200
#: Bytes a request; GMS takes 16,000,000.
BATCH_BYTES = 15 * 1024 * 1024
#: Seconds until it has to have taken a connection, and to have answered.
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
#: Answers of 500, one after another, after which it has to show that it takes anything at all.
DOUBTS = 20
#: Bytes of a URN, as in a URL. GMS leaves out a longer one, and says that all went well.
URN_BYTES = 512

_REFUSED = {400, 412, 413, 422}
_AWAY = {408, 425, 429}
_CANNOT_TAKE = re.compile(
    r"(Validation|IllegalArgument|UnsupportedOperation|ModelConversion|Json\w*)Exception"
    r"|Failed to validate|Unknown (aspect|entity)|Could not deserialize"
)
_REASON_LENGTH = 500
_NOT_GMS = (
    "MESH_DATAHUB_GMS_URL has to be that of GMS (http://host:8080) or the frontend's way to it "
    "(https://host/api/gms)"
)
_LATER = "What was not delivered is sent again later"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A proposal that the server does not take, however often it is sent, and why."""

    proposal: Proposal
    reason: str
    #: Whether it was the server that said so.
    was_sent: bool = True


@dataclass(frozen=True, slots=True)
class _Letter:
    """A proposal as it is sent."""

    proposal: Proposal
    text: str


@dataclass(frozen=True, slots=True)
class _No:
    """Why a batch was not taken; in doubt if another time it might be."""

    reason: str
    in_doubt: bool


class _UnfitError(Exception):
    """It need not be sent."""


class Server:
    """GMS at this URL. One thread's at a time."""

    def __init__(self, url: str, token: str | None) -> None:
        from datahub.emitter.rest_emitter import DataHubRestEmitter

        # A secret that comes from a file often ends with its line.
        token = token.strip() if token else None
        parts = urlsplit(url)
        #: Where it is, without what is nobody's business.
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self._secrets = [secret for secret in (token, parts.password) if secret]
        emitter = DataHubRestEmitter(
            url,
            token,
            connect_timeout_sec=CONNECT_SECONDS,
            read_timeout_sec=ANSWER_SECONDS,
            retry_max_times=0,
            retry_status_codes=[],
        )
        self._session: Any = emitter.session
        self._base = url.rstrip("/")
        self._url = f"{self._base}/aspects?action=ingestProposalBatch"
        #: Proposals a request: fewer while it is too slow to answer for more.
        self._at_most = BATCH
        # Or a line for this host in ~/.netrc would take the token's place.
        self._session.auth = _as_it_is

    def __repr__(self) -> str:
        return f"Server({self._shown})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def look(self) -> str:
        """Which version of DataHub answers. Raises as `deliver` does."""
        from requests import RequestException

        try:
            response: Response = self._session.get(f"{self._base}/config", allow_redirects=False)
        except RequestException as error:
            raise TransientCatalogError(
                f"{self._shown} does not answer: {self._safe(_why(error))}"
            ) from None
        try:
            return str(response.json()["versions"]["acryldata/datahub"]["version"])
        except (KeyError, TypeError, ValueError):
            answer = self._safe(f"it answers {response.status_code} {response.reason}")
            raise CatalogError(
                f"{self._shown} is no DataHub server: {answer}. {_NOT_GMS}"
            ) from None

    def deliver(self, proposals: Sequence[Proposal]) -> list[Refusal]:
        """Send them in their order, and give those that the server does not take.

        All others are there then. May be repeated with the same ones, also after an error, when
        some may be there. Raises TransientCatalogError if the server is away, slow or overloaded,
        and CatalogError if it does not let us in or is no GMS.
        """
        refusals, letters = [], []
        for proposal in proposals:
            try:
                letters.append(_Letter(proposal, _as_text(proposal)))
            except _UnfitError as error:
                refusals.append(Refusal(proposal, str(error)[:_REASON_LENGTH], was_sent=False))
        # Those still to be sent, the next one last.
        parts = list(_batches(letters, self._at_most))[::-1]
        last_taken: list[_Letter] = []
        doubts = 0
        while parts:
            part = parts.pop()
            no = self._send(part)
            if no is None:
                last_taken, doubts = part[-1:], 0
                continue
            if no.in_doubt:
                doubts += 1
                if doubts % DOUBTS == 0:
                    self._prove(last_taken, no)
            if half := len(part) // 2:
                parts += [part[half:], part[:half]]
            else:
                refusals.append(Refusal(part[0].proposal, no.reason))
            if doubts and not parts:
                self._prove(last_taken, no)
        self._at_most = min(2 * self._at_most, BATCH)
        places = {id(proposal): place for place, proposal in enumerate(proposals)}
        return sorted(refusals, key=lambda refusal: places[id(refusal.proposal)])

    def _prove(self, taken: list[_Letter], no: _No) -> None:
        """Raise unless it takes once more what it took before: then what it refuses is at fault."""
        if not taken or self._send(taken) is not None:
            raise TransientCatalogError(f"{self._shown} takes nothing: {no.reason}. {_LATER}")

    def _send(self, letters: Sequence[_Letter]) -> _No | None:
        """Why these are not taken; None if they are."""
        from requests import RequestException

        texts = ",".join(letter.text for letter in letters)
        try:
            response: Response = self._session.post(
                self._url,
                # Not "async": the answer is to tell whether it was taken.
                data=f'{{"proposals":[{texts}],"async":"false"}}',
                allow_redirects=False,
            )
        except RequestException as error:
            if _is_too_slow(error):
                # Or it would be too slow each time.
                self._at_most = max(1, min(self._at_most, len(letters)) // 2)
            raise TransientCatalogError(
                f"{self._shown} does not answer: {self._safe(_why(error))}. {_LATER}"
            ) from None
        status, said = response.status_code, _message(response)
        answer = self._safe(f"it answers {status} {response.reason}: {said}")[:_REASON_LENGTH]
        if status == 200 and _is_of_gms(response):
            return None
        if status in (401, 403):
            raise CatalogError(
                f"{self._shown} does not let us in: {answer}. Look at MESH_DATAHUB_TOKEN: is it "
                "there, still valid, and may its owner edit all entities? A new one is known once "
                "the process that delivers is started again"
            )
        if status in _REFUSED:
            return _No(answer, in_doubt=False)
        if status == 500:
            return _No(answer, in_doubt=not _CANNOT_TAKE.search(said))
        if status > 500 or status in _AWAY:
            raise TransientCatalogError(
                f"{self._shown} cannot take anything now: {answer}. {_LATER}",
                _retry_after(response),
            )
        raise CatalogError(f"{self._shown} is no DataHub server: {answer}. {_NOT_GMS}")

    def _safe(self, text: str) -> str:
        """The text without our secrets, should somebody have put them there."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _as_it_is(request: Any) -> Any:
    return request


def _as_text(proposal: Proposal) -> str:
    """The proposal as GMS reads it. Raises _UnfitError."""
    from avro.errors import AvroException
    from datahub.emitter.serialization_helper import pre_json_transform

    _check_urn(str(proposal.entityUrn))
    try:
        record = pre_json_transform(proposal.to_obj())
        aspect = record.get("aspect")
        if aspect and not aspect["value"].isascii():
            # It is of the type bytes, and Rest.li takes a character for one of them.
            value = json.dumps(json.loads(aspect["value"]))
            record["aspect"] = {**aspect, "value": value}
        text = json.dumps(record)
    except (AttributeError, AvroException, TypeError, ValueError) as error:
        raise _UnfitError(f"not of DataHub's schema: {error}") from None
    if len(text) > BATCH_BYTES:
        raise _UnfitError(f"DataHub takes at most {BATCH_BYTES} bytes, and it has {len(text)}")
    return text


def _check_urn(urn: str) -> None:
    """Raises _UnfitError for one that GMS would leave out, and say that all went well."""
    from datahub.utilities.urns.error import InvalidUrnError
    from datahub.utilities.urns.urn import Urn

    try:
        Urn.from_string(urn)
    except InvalidUrnError as error:
        raise _UnfitError(f"{urn} is no URN: {error}") from None
    if urn != urn.strip():
        raise _UnfitError(f"{urn!r} begins or ends with a blank")
    if (size := len(quote_plus(urn, safe="*"))) > URN_BYTES:
        raise _UnfitError(
            f"a URN has at most {URN_BYTES} bytes in a URL, and {urn[:100]}... has {size}"
        )


def _batches(letters: Sequence[_Letter], at_most: int) -> Iterator[list[_Letter]]:
    batch: list[_Letter] = []
    size = 0
    for letter in letters:
        if batch and (len(batch) == at_most or size + len(letter.text) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += len(letter.text)
    if batch:
        yield batch


def _is_of_gms(response: Response) -> bool:
    """Whether it is the answer of an action of Rest.li, and not some page."""
    try:
        said = response.json()
    except ValueError:
        return False
    return isinstance(said, dict) and "value" in said


def _message(response: Response) -> str:
    """What a server says went wrong, without its stack trace."""
    try:
        said = response.json()["message"]
    except (KeyError, TypeError, ValueError):
        said = response.text
    return " ".join(str(said).split())


def _retry_after(response: Response) -> float | None:
    """The seconds for which it asks to be left alone, if it does."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, InvalidHeader):
        return None


def _is_too_slow(error: BaseException) -> bool:
    """Whether a request was taken, and not answered in time."""
    from urllib3.exceptions import ReadTimeoutError

    return any(
        isinstance(getattr(each, "reason", each), ReadTimeoutError) for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _why(error: BaseException) -> str:
    """What the operating system says of a failed request, which the libraries wrap three times."""
    from requests import RequestException

    for cause in _causes(error):
        if isinstance(cause, OSError) and not isinstance(cause, RequestException):
            return cause.strerror or str(cause)
    return type(error).__name__
