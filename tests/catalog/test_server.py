"""Delivery to DataHub's server: nothing lost, in order, and what it refuses found and told."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from datahub.configuration.common import OperationalError
from datahub.emitter.mcp import MetadataChangeProposalWrapper
from datahub.emitter.rest_emitter import DataHubRestEmitter
from datahub.metadata.schema_classes import (
    AssertionResultClass,
    AssertionResultTypeClass,
    AssertionRunEventClass,
    AssertionRunStatusClass,
    ChangeTypeClass,
    DatasetPropertiesClass,
    DomainPropertiesClass,
    GenericAspectClass,
    MetadataChangeProposalClass,
    TagAssociationClass,
)
from datahub.specific.aspect_helpers.tags import HasTagsPatch

from dagster_project.catalog import server as server_module
from dagster_project.catalog.aspects import owned, upserts
from dagster_project.catalog.server import BATCH, DOUBTS, Server
from dagster_project.failures import CatalogError, TransientCatalogError
from tests.catalog.gms import Fault, RecordingGms

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal

TOKEN = "t0ken-s3cr3t-word"
ANN, BOB = "urn:li:corpuser:ann", "urn:li:corpuser:bob"


@pytest.fixture
def gms() -> Iterator[RecordingGms]:
    with RecordingGms(TOKEN) as gms:
        yield gms


@pytest.fixture
def server(gms: RecordingGms) -> Iterator[Server]:
    with Server(gms.url, TOKEN) as server:
        yield server


def dataset(number: int) -> str:
    return f"urn:li:dataset:(urn:li:dataPlatform:postgres,warehouse.fleet.table_{number},DEV)"


def named(number: int, name: str = "größe") -> Proposal:
    (proposal,) = upserts(dataset(number), DatasetPropertiesClass(name=name))
    return proposal


def raw(number: int, name: str, value: bytes, /, **fields: Any) -> Proposal:
    """A proposal whose aspect is not DataHub's."""
    said = {
        "entityUrn": dataset(number),
        "entityType": "dataset",
        "changeType": ChangeTypeClass.UPSERT,
        "aspectName": name,
        "aspect": GenericAspectClass(value=value, contentType="application/json"),
    }
    return MetadataChangeProposalClass(**{**said, **fields})


def events(number: int, *times: int) -> list[Proposal]:
    urn = f"urn:li:assertion:{number}"
    return [
        MetadataChangeProposalWrapper(
            entityUrn=urn,
            aspect=AssertionRunEventClass(
                timestampMillis=time,
                runId=str(time),
                asserteeUrn=dataset(number),
                assertionUrn=urn,
                status=AssertionRunStatusClass.COMPLETE,
                result=AssertionResultClass(type=AssertionResultTypeClass.SUCCESS),
            ),
        )
        for time in times
    ]


#: Proposals that the server does not take, and what it says of them.
BAD = {
    "of no such aspect": (raw(0, "datasetProps", b"{}"), "Unknown aspect datasetProps"),
    "of an aspect of other entities": (
        MetadataChangeProposalWrapper(
            entityUrn=dataset(0), aspect=DomainPropertiesClass(name="fleet")
        ),
        "Unknown aspect domainProperties for entity dataset",
    ),
    "of no such entity": (
        raw(0, "status", b"{}", entityUrn="urn:li:table:t", entityType="table"),
        "table",
    ),
    "of an entity of another type": (raw(0, "status", b"{}", entityType="chart"), "chart"),
    "that is no JSON": (raw(0, "status", b"no json"), "answers 500"),
    "that is of another schema": (
        raw(0, "datasetProperties", b'{"name": 3}'),
        "Failed to validate record",
    ),
    "with an aspect missing": (raw(0, "status", b"{}", aspect=None), "answers 500"),
    "with a type of change that there is not": (
        raw(0, "status", b"{}", changeType="REPLACE"),
        "not of DataHub's schema",
    ),
    "with a patch that does not apply": (
        raw(0, "globalTags", b'[{"op": "test", "path": "/tags/x"}]', changeType="PATCH"),
        "answers 500",
    ),
    # What the server says nothing of, or only that it went wrong, is not sent.
    "with a URN that is none": (raw(0, "status", b"{}", entityUrn="planes"), "is no URN"),
    "with a URN of too few parts": (
        raw(0, "status", b"{}", entityUrn="urn:li:dataset:(a,b)"),
        "is no URN",
    ),
    "with a URN that is too long": (
        raw(0, "status", b"{}", entityUrn=f"urn:li:domain:{'x' * 600}", entityType="domain"),
        "a URN has at most 512 bytes",
    ),
    "with a URN that ends with a blank": (
        raw(0, "status", b"{}", entityUrn="urn:li:domain:x ", entityType="domain"),
        "ends with a blank",
    ),
}


def stored(gms: RecordingGms) -> dict[tuple[str, str], Any]:
    """What is stored, after it was seen that nothing of it was lost in silence."""
    assert gms.left_out == []
    return gms.aspects


# Taken


def test_all_that_is_told_of_the_domains_arrives_once_however_often_it_is_sent(
    gms: RecordingGms, server: Server, records: list[dict[str, Any]]
) -> None:
    proposals = [MetadataChangeProposalWrapper.from_obj(dict(record)) for record in records]
    assert server.deliver(proposals) == []
    told = {(record["entityUrn"], record["aspectName"]): record for record in records}
    assert stored(gms).keys() == told.keys()
    for where, record in told.items():
        if record["changeType"] == "UPSERT":
            assert gms.aspects[where] == record["aspect"]["json"], where
    owners = gms.aspects[(next(u for u, a in told if ":dataset:" in u), "ownership")]["owners"]
    assert [owner["type"] for owner in owners] == ["TECHNICAL_OWNER"]
    once = dict(gms.aspects)
    assert server.deliver(proposals) == []
    assert gms.aspects == once
    assert len(gms.requests) == 2 * len(records)
    assert [(r["entityUrn"], r["aspectName"]) for r in gms.requests] == 2 * list(told)


def test_what_was_added_by_hand_stays_beside_what_a_patch_adds(
    gms: RecordingGms, server: Server
) -> None:
    first, second = (TagAssociationClass(tag=f"urn:li:tag:{name}") for name in "ab")
    server.deliver(HasTagsPatch(dataset(1)).add_tag(first).build())
    server.deliver([*owned(dataset(1), ANN), *HasTagsPatch(dataset(1)).add_tag(second).build()])
    server.deliver(
        [*owned(dataset(1), BOB), *HasTagsPatch(dataset(1)).remove_tag(first.tag).build()]
    )
    assert [o["owner"] for o in stored(gms)[dataset(1), "ownership"]["owners"]] == [ANN, BOB]
    assert gms.aspects[dataset(1), "globalTags"]["tags"] == [{"tag": "urn:li:tag:b"}]


def test_batches_are_as_large_as_datahub_sends_them(
    gms: RecordingGms, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.deliver([]) == []
    assert gms.batches == []
    assert server.deliver([named(number) for number in range(2 * BATCH + 1)]) == []
    assert gms.batches == [BATCH, BATCH, 1]
    monkeypatch.setattr(server_module, "BATCH_BYTES", 1000)
    assert server.deliver([named(number, "x" * 200) for number in range(5)]) == []
    assert gms.batches[3:] == [2, 2, 1]
    (refusal,) = server.deliver([named(1, "x" * 2000), named(2)])
    assert "DataHub takes at most 1000 bytes" in refusal.reason
    assert gms.batches[6:] == [1]


def test_a_dataset_named_in_any_script_is_so_on_the_other_side(
    gms: RecordingGms, server: Server
) -> None:
    utf8 = json.dumps({"name": "größe 桜 🛩"}, ensure_ascii=False).encode()
    assert server.deliver([raw(1, "datasetProperties", utf8), named(2, "größe 桜 🛩")]) == []
    names = {aspect["name"] for aspect in stored(gms).values()}
    assert names == {"größe 桜 🛩"}


def test_what_is_sent_is_not_changed_by_it(server: Server) -> None:
    proposals = [named(1), *owned(dataset(1), ANN)]
    before = [proposal.to_obj() for proposal in proposals]
    server.deliver(proposals)
    assert [proposal.to_obj() for proposal in proposals] == before


# Refused


@pytest.mark.parametrize("kind", BAD)
def test_a_proposal_that_is_not_taken_is_told_with_the_reason_and_all_others_arrive(
    gms: RecordingGms, server: Server, kind: str
) -> None:
    bad, reason = BAD[kind]
    good = [named(number) for number in range(1, 6)]
    (refusal,) = server.deliver([*good[:3], bad, *good[3:]])
    assert refusal.proposal is bad
    assert server.deliver([bad]) == [refusal]
    assert reason in refusal.reason
    assert len(refusal.reason) <= 500
    assert stored(gms).keys() == {(dataset(n), "datasetProperties") for n in range(1, 6)}


@pytest.mark.parametrize("position", [0, 311, 599])
@pytest.mark.parametrize("kind", ["of no such aspect", "that is no JSON"])
def test_one_bad_proposal_among_many_is_found(
    gms: RecordingGms, server: Server, position: int, kind: str
) -> None:
    bad, _ = BAD[kind]
    proposals = [named(number) for number in range(1, 601)]
    proposals[position] = bad
    (refusal,) = server.deliver(proposals)
    assert refusal.proposal is bad
    assert len(stored(gms)) == 599
    # It is halved, and not sent one by one.
    assert len(gms.batches) < 25


def test_bad_ones_in_every_batch_are_found_in_their_order(
    gms: RecordingGms, server: Server
) -> None:
    proposals = [named(number) for number in range(1, 601)]
    bad = [raw(number, "datasetProps", b"{}") for number in (1, 2, 150, 200, 399, 400, 600)]
    for proposal in bad:
        proposals[int(proposal.entityUrn.split("_")[1].split(",")[0]) - 1] = proposal
    assert [refusal.proposal for refusal in server.deliver(proposals)] == bad
    assert len(stored(gms)) == 593


def test_all_bad_are_all_refused(gms: RecordingGms, server: Server) -> None:
    bad = [raw(number, "datasetProps", b"{}") for number in range(50)]
    assert [refusal.proposal for refusal in server.deliver(bad)] == bad
    assert gms.aspects == {}


@pytest.mark.parametrize("kind", ["of no such aspect", "that is no JSON"])
@pytest.mark.parametrize("spoilt", [0, 3, 7])
def test_the_order_of_an_entity_is_kept_also_beside_bad_ones(spoilt: int, kind: str) -> None:
    states: list[int] = []

    class Watching(RecordingGms):
        def take(self, proposals: list[Any]) -> None:
            try:
                super().take(proposals)
            finally:
                for aspect in self.aspects.values():
                    states.append(int(aspect["name"]))

    bad, _ = BAD[kind]
    proposals: list[Proposal] = [named(1, str(state)) for state in range(8)]
    proposals.insert(spoilt, bad)
    with Watching() as gms, Server(gms.url, None) as server:
        (refusal,) = server.deliver(proposals)
    assert refusal.proposal is bad
    assert states == sorted(states)
    assert states[-1] == 7


def test_what_is_refused_is_told_in_its_order(server: Server) -> None:
    kinds = [bad for bad, _ in BAD.values()]
    assert [refusal.proposal for refusal in server.deliver([*kinds, named(1)])] == kinds


@pytest.mark.parametrize("choked", [{5}, {1, 2, 3}, {600}, set(range(1, 2 * DOUBTS))])
def test_what_it_cannot_take_and_does_not_say_why_is_refused_if_it_takes_others(
    gms: RecordingGms, server: Server, choked: set[int]
) -> None:
    server.deliver([named(0)])
    gms.chokes_on = {dataset(number) for number in choked}
    proposals = [named(number) for number in range(601)]
    refusals = server.deliver(proposals)
    assert [refusal.proposal for refusal in refusals] == [proposals[n] for n in sorted(choked)]
    assert "NullPointerException" in refusals[0].reason
    assert len(stored(gms)) == 601 - len(choked)


def test_what_it_cannot_take_alone_is_asked_again_until_it_takes_something(
    gms: RecordingGms, server: Server
) -> None:
    gms.chokes_on = {dataset(1)}
    with pytest.raises(TransientCatalogError, match="takes nothing: it answers 500"):
        server.deliver([named(1)])
    (refusal,) = server.deliver([named(1), named(2)])
    assert refusal.proposal.entityUrn == dataset(1)


def test_a_server_that_breaks_in_the_middle_is_not_taken_for_one_that_refuses(
    gms: RecordingGms, server: Server
) -> None:
    class Breaking(RecordingGms):
        def take(self, proposals: list[Any]) -> None:
            super().take(proposals)
            self.answer_always(500)

    with Breaking() as breaking, Server(breaking.url, None) as other:
        with pytest.raises(TransientCatalogError, match="no connection to the database"):
            other.deliver([named(number) for number in range(BATCH + 3)])
        assert len(breaking.aspects) == BATCH


# Away


def test_half_a_batch_that_is_there_is_made_whole(gms: RecordingGms, server: Server) -> None:
    gms.take_half(2)
    proposals = [named(1, str(state)) for state in range(4)] + [named(n) for n in range(2, 301)]
    assert server.deliver(proposals) == []
    assert len(stored(gms)) == 300
    assert gms.aspects[dataset(1), "datasetProperties"]["name"] == "3"


def test_what_arrived_without_an_answer_is_there_once_after_the_next_time(
    gms: RecordingGms, server: Server
) -> None:
    proposals = [*events(1, 1000, 2000), named(1), *owned(dataset(1), ANN)]
    gms.drop()
    with pytest.raises(TransientCatalogError, match="does not answer"):
        server.deliver(proposals)
    assert len(gms.aspects) == 3
    assert server.deliver(proposals) == []
    assert [e["runId"] for e in stored(gms)["urn:li:assertion:1", "assertionRunEvent"]] == [
        "1000",
        "2000",
    ]
    assert len(gms.aspects[dataset(1), "ownership"]["owners"]) == 1


def test_a_server_that_is_down_is_told_at_once_and_takes_all_when_it_is_back(
    gms: RecordingGms, server: Server
) -> None:
    proposals = [named(number) for number in range(3)]
    server.deliver(proposals[:1])
    with gms.down():
        with pytest.raises(TransientCatalogError) as away:
            server.deliver(proposals)
    assert f"{gms.url} does not answer: Connection refused" in str(away.value)
    assert away.value.transient
    assert server.deliver(proposals) == []
    assert len(stored(gms)) == 3


def test_a_slow_server_is_not_waited_for(
    gms: RecordingGms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "ANSWER_SECONDS", 1.0)
    gms.slow = 30.0
    with Server(gms.url, TOKEN) as server:
        with pytest.raises(TransientCatalogError, match="does not answer: timed out"):
            server.deliver([named(1)])
        gms.recover()
        assert server.deliver([named(1)]) == []


def test_a_server_that_is_too_slow_for_many_is_told_fewer_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Plodding(RecordingGms):
        def receive(self, path: str, action: str, body: bytes, token: str) -> None:
            self.slow = 30.0 if len(json.loads(body)["proposals"]) > 15 else 0.0
            super().receive(path, action, body, token)

    monkeypatch.setattr(server_module, "ANSWER_SECONDS", 3.0)
    proposals = [named(number) for number in range(40)]
    with Plodding() as gms, Server(gms.url, None) as server:
        for _ in range(2):
            with pytest.raises(TransientCatalogError, match="does not answer: timed out"):
                server.deliver(proposals)
        assert server.deliver(proposals) == []
        assert len(gms.aspects) == 40
        # And more again once it is not: of 10, 20, and so on.
        monkeypatch.setattr(Plodding, "receive", RecordingGms.receive)
        gms.recover()
        for _ in range(3):
            assert server.deliver(proposals) == []
        assert gms.batches[-1] == 40


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_takes_nothing_is_asked_again_later(
    gms: RecordingGms, server: Server, status: int
) -> None:
    proposals = [named(number) for number in range(600)]
    gms.answer_always(status)
    with pytest.raises(TransientCatalogError, match=f"it answers {status} "):
        server.deliver(proposals)
    # It is not asked many times.
    assert len(gms.batches) <= DOUBTS
    assert gms.aspects == {}
    gms.recover()
    assert server.deliver(proposals) == []
    assert len(stored(gms)) == 600


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None)]
)
def test_how_long_it_asks_to_be_left_alone_is_told(
    gms: RecordingGms, server: Server, said: str, seconds: float | None
) -> None:
    gms.answer(429, Retry_After=said)
    with pytest.raises(TransientCatalogError) as limited:
        server.deliver([named(1)])
    assert limited.value.retry_after == seconds
    gms.answer(503)
    with pytest.raises(TransientCatalogError) as limited:
        server.deliver([named(1)])
    assert limited.value.retry_after is None


def test_what_a_proxy_says_in_place_of_the_server_is_bounded(
    gms: RecordingGms, server: Server
) -> None:
    gms.fail(Fault(502, body=f"<html>\n{'Bad Gateway ' * 1000}</html>"))
    with pytest.raises(TransientCatalogError, match="Bad Gateway") as away:
        server.deliver([named(1)])
    assert len(str(away.value)) < 700
    assert "\n" not in str(away.value)
    gms.fail(Fault(502, body='["Bad Gateway"]'))
    with pytest.raises(TransientCatalogError, match="Bad Gateway"):
        server.deliver([named(1)])


# Not let in


@pytest.mark.parametrize("token", [None, "another-w0rd"])
def test_who_is_not_let_in_is_told_to_look_at_the_token(
    gms: RecordingGms, token: str | None
) -> None:
    with Server(gms.url, token) as server, pytest.raises(CatalogError) as refused:
        server.deliver([named(1)])
    assert not refused.value.transient
    assert "Look at MESH_DATAHUB_TOKEN" in str(refused.value)
    # Although the server says it.
    assert "another-w0rd" not in shown(refused.value)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, "<html>Sign in</html>", {}),
        (200, '["value"]', {}),
        (302, "", {"Location": "/login"}),
        (404, "", {}),
    ],
)
def test_what_is_no_datahub_server_is_not_taken_for_one(
    gms: RecordingGms, server: Server, status: int, body: str, headers: dict[str, str]
) -> None:
    gms.fail(Fault(status, headers, body))
    with pytest.raises(CatalogError, match="MESH_DATAHUB_GMS_URL has to be") as refused:
        server.deliver([named(1)])
    assert not refused.value.transient
    # Where it points to is not gone to, nor what answers there taken for success.
    assert f"it answers {status} " in str(refused.value)


def test_the_token_is_shown_nowhere(
    gms: RecordingGms, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    word = "passw0rd"
    url = gms.url.replace("http://", f"http://ann:{word}@")
    with Server(url, TOKEN) as server:
        failures = []
        for fault in (Fault(500, body=TOKEN), Fault(503, body=f"{TOKEN} {word}"), Fault(302)):
            gms.fail(fault, times=2)
            with pytest.raises(CatalogError) as failure:
                server.deliver([named(1)])
            failures.append(failure.value)
            gms.recover()
        with gms.down(), pytest.raises(CatalogError) as failure:
            server.deliver([named(1)])
        failures.append(failure.value)
        assert server.deliver([named(1)]) == []
        gms.fail(Fault(422, body=f'{{"message": "{TOKEN}"}}'))
        (refusal,) = server.deliver([named(1)])
        text = repr(server) + str(refusal) + "".join(map(shown, failures)) + caplog.text
    for secret in (TOKEN, word):
        assert secret not in text
    assert gms.url in repr(server)


def test_a_token_from_a_file_with_a_line_s_end_is_the_same(gms: RecordingGms) -> None:
    with Server(gms.url, f"{TOKEN}\n") as server:
        assert server.deliver([named(1)]) == []


def test_a_password_for_the_host_in_netrc_does_not_replace_the_token(
    gms: RecordingGms, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password x\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert server.deliver([named(1)]) == []


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_datahub_s_own_emitter_finds_the_recording_server_to_be_one(gms: RecordingGms) -> None:
    emitter = DataHubRestEmitter(gms.url, TOKEN, retry_max_times=0)
    emitter.test_connection()
    emitter.emit(named(1))
    emitter.emit_mcps([named(2), *owned(dataset(2), ANN)])
    assert len(stored(gms)) == 3
    assert gms.batches == [1, 2]
    with pytest.raises(OperationalError, match="Unknown aspect datasetProps"):
        emitter.emit(BAD["of no such aspect"][0])
