"""The lake on an S3 that needs credentials, loses answers, is slow, or is not there at all."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta

import pytest

from dagster_project.failures import LakeError, TransientLakeError
from dagster_project.lake import s3, store
from dagster_project.lake.store import AlreadyThereError, Lake
from tests.lake import s3 as server
from tests.lake.s3 import PASSING, SECRET_KEY, SESSION_TOKEN, Fault, S3Server

Use = Callable[[Lake], object]
#: By the method of the request that it takes.
USES: dict[str, Use] = {
    "PUT": lambda lake: lake.create("new", b"x" * 5000),
    "GET": lambda lake: lake.read("there"),
    "GET list": lambda lake: [item.key for item in lake.list("")],
    "POST": lambda lake: lake.delete(["gone", "never there"]),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


@pytest.fixture
def lake(s3_lake: Lake) -> Lake:
    """A lake with an object in it."""
    s3_lake.create("there", b"y" * 5000)
    return s3_lake


def failure(use: Use, lake: Lake) -> LakeError:
    """How it fails: without a word of what must stay secret, or of what the server answered."""
    with pytest.raises(LakeError) as caught:
        use(lake)
    told = "".join(traceback.format_exception(caught.value)) + repr(lake) + repr(lake.__dict__)
    for secret in (SECRET_KEY, SESSION_TOKEN, "StringToSign", "x-amz-"):
        assert secret not in told
    return caught.value


# Faults that pass


@pytest.mark.usefixtures("in_haste")
@pytest.mark.parametrize("method", USES)
def test_no_fault_that_passes_is_noticed(
    s3_server: S3Server, s3_lake: Lake, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(s3, "SILENCE", timedelta(seconds=0.5))
    faults = [*PASSING, Fault.HANGS]
    for number, fault in enumerate(faults):
        lake = Lake(f"{s3_lake.url}/{number}")
        for key in ("there", "gone"):
            lake.create(key, key.encode())
        s3_server.fail(fault, on=method.split(maxsplit=1)[0])
        USES[method](lake)
        assert s3_server.faults == [fault]
        s3_server.fail()
        new = {"new"} if method == "PUT" else set()
        left = {"there"} if method == "POST" else {"there", "gone"}
        assert {item.key for item in lake.list("")} == new | left
        assert lake.read("there") == b"there"
        if new:
            assert lake.read("new") == b"x" * 5000


def test_what_was_written_before_the_answer_got_lost_is_ours_if_it_is_the_same(
    s3_server: S3Server, lake: Lake
) -> None:
    for fault in (Fault.LOST, Fault.RESET, Fault.FAILED_LATE, Fault.CUT):
        s3_server.fail(fault, on="PUT")
        lake.create(fault.name, b"ours")
        assert [method for method, _, _ in s3_server.seen] == ["PUT", "PUT", "GET"]
        s3_server.fail(fault, on="PUT")
        with pytest.raises(AlreadyThereError):
            lake.create(fault.name, b"of another's")
        assert lake.read(fault.name) == b"ours"


def test_a_conflict_with_a_writer_who_fails_is_no_object(s3_server: S3Server, lake: Lake) -> None:
    s3_server.fail(Fault.CONFLICT, on="PUT")
    lake.create("a", b"ours")
    assert lake.read("a") == b"ours"


@pytest.mark.usefixtures("in_haste")
def test_a_long_listing_goes_on_where_it_failed(s3_server: S3Server, s3_lake: Lake) -> None:
    bucket = s3_server.folder / s3_lake.url.removeprefix("s3://")
    bucket.mkdir()
    names = [f"{number:05d}" for number in range(1200)]
    for name in names:
        (bucket / name).touch()
    s3_server.fail(None, Fault.CUT)
    assert [item.key for item in s3_lake.list("")] == names
    assert len(s3_server.seen) == 3, "two pages, one of them twice"
    s3_server.fail()
    s3_lake.delete(names[1:])
    assert [item.key for item in s3_lake.list("")] == names[:1]
    assert len([method for method, _, _ in s3_server.seen if method == "POST"]) == 2


@pytest.mark.usefixtures("in_haste")
def test_a_large_object_is_given_the_time_that_it_takes(
    s3_server: S3Server, s3_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says nothing until it has it all."""
    monkeypatch.setattr(s3, "SILENCE", timedelta(seconds=0.3))
    monkeypatch.setattr(s3, "SLOWEST", 10_000)
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    monkeypatch.setattr(server, "LATE", 1.0)
    s3_server.fail(*[Fault.SLOW] * 100, on="PUT")
    with pytest.raises(TransientLakeError, match="the server said nothing"):
        s3_lake.create("small", b"x" * 3_000)
    s3_lake.create("large", b"x" * 300_000)
    s3_lake.replace("large", b"y" * 300_000)
    s3_server.fail()
    assert s3_lake.read("large") == b"y" * 300_000


# Faults that stay


@pytest.mark.usefixtures("in_haste")
@every_use
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.ERROR, "the server answered 500"),
        (Fault.UNAVAILABLE, r"the server answered 503 \(SlowDown\)"),
        (Fault.RESET, "the connection broke"),
        (Fault.HANGS, "the server said nothing"),
    ],
)
def test_what_does_not_pass_while_patience_lasts_may_pass_later(
    s3_server: S3Server,
    s3_lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    use: Use,
    fault: Fault,
    said: str,
) -> None:
    monkeypatch.setattr(s3, "SILENCE", timedelta(seconds=0.1))
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    s3_server.fail(*[fault] * 200)
    error = failure(use, s3_lake)
    assert isinstance(error, TransientLakeError)
    assert error.transient
    with pytest.raises(TransientLakeError, match=f"s3://.*could not be .*{said}.*again"):
        raise error
    assert len(s3_server.faults) > 2


@pytest.mark.usefixtures("in_haste", "s3_server")
def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    with socket.socket() as taken:
        # Bound, but nobody listens.
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        error = failure(USES["GET"], Lake("s3://bucket"))
    assert isinstance(error, TransientLakeError)
    assert "no connection to the server could be made" in str(error)
    assert "AWS_ENDPOINT_URL" in str(error)


# Refusals


@every_use
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch). Set AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "AKIAOTHER", "InvalidAccessKeyId). Set AWS_ACCESS_KEY_ID"),
        ("AWS_SESSION_TOKEN", "old", "InvalidToken). Set AWS_SESSION_TOKEN"),
        ("AWS_REGION", "us-east-1", "AuthorizationHeaderMalformed). Set AWS_REGION"),
        ("AWS_SKIP_SIGNATURE", "true", "AccessDenied)"),
    ],
)
def test_a_refusal_says_which_variable_to_look_at(
    s3_server: S3Server,
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    use: Use,
    variable: str,
    value: str,
    said: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(variable, value)
    s3_server.fail()
    error = failure(use, Lake(lake.url))
    assert said in str(error)
    assert not error.transient
    assert len(s3_server.seen) == 1, "asking again would change nothing"
    assert SECRET_KEY not in caplog.text


@every_use
def test_a_bucket_that_does_not_exist_is_named(s3_server: S3Server, use: Use) -> None:
    error = failure(use, Lake("s3://no-such-bucket/lake"))
    assert "s3://no-such-bucket/lake" in str(error)
    assert "NoSuchBucket" in str(error)
    assert "MESH_LAKE_URL" in str(error)


def test_credentials_are_asked_for_where_there_are_none(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials are. Set AWS_ACCESS_KEY_ID" in str(failure(USES["GET"], Lake("s3://b")))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "SecretAccessKey" in str(failure(USES["GET"], Lake("s3://b")))
    # At AWS a machine can have credentials of its own.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(s3, "retry_config", lambda: {"max_retries": 0})
    assert "there are no credentials. Set AWS_" in str(failure(USES["GET"], Lake("s3://b")))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_ENDPOINT_URL", "http://s3.invalid", "http://, over which everybody"),
        ("AWS_ENDPOINT_URL_S3", "http://lake.invalid:9000", "AWS_ENDPOINT_URL_S3 is http://"),
        ("AWS_ENDPOINT_URL", f"https://me:{SECRET_KEY}@s3.invalid", "has credentials in it"),
        ("AWS_ENDPOINT_URL", "localhost:9000", "not a URL such as https://"),
        ("AWS_ENDPOINT_URL", "http://localhost:port", "not a URL such as https://"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET_KEY}\n", "AWS_SECRET_ACCESS_KEY begins or ends"),
        ("AWS_SESSION_TOKEN", f" {SESSION_TOKEN}", "AWS_SESSION_TOKEN begins or ends"),
        ("AWS_REGION", "eu\n", "AWS_REGION begins or ends"),
    ],
)
@pytest.mark.usefixtures("s3_server")
def test_a_variable_that_cannot_be_right_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert said in str(failure(USES["GET"], Lake("s3://bucket")))


@pytest.mark.parametrize(
    ("endpoint", "allow", "over_http"),
    [
        ("http://s3.invalid", "TRUE", True),
        ("http://[::1]:9000", "", True),
        ("http://localhost:9000", "", True),
        ("https://s3.invalid", "true", False),
    ],
)
@pytest.mark.usefixtures("s3_server")
def test_http_is_for_loopback_and_for_those_who_allow_it(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, allow: str, over_http: bool
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", allow)
    assert s3.client_config(s3.SILENCE)["allow_http"] is over_http


def test_credentials_in_the_lakes_own_url_are_refused() -> None:
    with pytest.raises(LakeError, match="has credentials in it") as caught:
        Lake(f"s3://me:{SECRET_KEY}@bucket")
    assert SECRET_KEY not in str(caught.value)
