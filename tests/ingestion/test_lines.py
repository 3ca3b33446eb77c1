"""A connector's output is taken line by line, in bounded memory, and no record of it is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dagster_project.failures import SourceError
from dagster_project.ingestion import lines
from dagster_project.ingestion.lines import LineSplitter
from tests.ingestion.scripted import WHOLE, Shop

RECORD = b'{"type":"RECORD","record":{"data":"'


def split(*chunks: bytes, messages: bool = True) -> tuple[list[bytes], list[bytes]]:
    """The lines of the chunks, and those that were shortened."""

    def parts() -> Iterator[tuple[bytes, list[bytes]]]:
        splitter = LineSplitter(messages=messages)
        for chunk in chunks:
            yield splitter.feed(chunk)
        yield splitter.close()

    found = list(parts())
    whole = [line for text, _ in found for line in text.split(b"\n") if line]
    return whole, [line for _, short in found for line in short]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test reaches soon."""
    monkeypatch.setattr(lines, "LONG", 100)
    monkeypatch.setattr(lines, "KEPT", 60)
    monkeypatch.setattr(lines, "LARGEST_MESSAGE", 1000)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_the_same_wherever_the_chunks_end(size: int) -> None:
    text = b"one\n\ntwo\nthree\n{}\nlast"
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert split(*chunks) == ([b"one", b"two", b"three", b"{}", b"last"], [])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [1, 10, 50, 170])
def test_of_a_long_line_that_is_no_message_the_beginning_is_kept(size: int) -> None:
    log = b'{"type":"LOG","log":{"message":"' + b"x" * 500
    text = b"before\n" + log + b"\nafter\n" + log
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    whole, shortened = split(*chunks)
    assert whole == [b"before", b"after"]
    assert shortened == [log[:60], log[:60]]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "head",
    [
        *(RECORD, b'{"record": {"data": "', b' { "type" : "STATE", "x": "', b'{"trace":{"x":"'),
        *(b'{"namespace":"', b'\xef\xbb\xbf{"x":"'),
    ],
)
def test_a_long_message_is_kept_whole(head: bytes) -> None:
    line = head + b"x" * 500
    assert split(line[:90], line[90:150], line[150:], b"\nnext\n") == ([line, b"next"], [])
    assert split(line, messages=False) == ([], [line[:60]])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [1, 10, 50, 170])
@pytest.mark.parametrize("before", [0, 90, 300])
def test_of_a_message_in_a_long_line_is_kept_what_shows_it(size: int, before: int) -> None:
    text = b"." * before + RECORD + b"x" * 500 + b"\nnext\n" + b"." * 500 + b"\n"
    if before == 0:
        text = b'{"log":"' + b"x" * 500 + b'","type":"RECORD"}' + text[text.index(b"\nnext") :]
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    whole, (shortened, other) = split(*chunks)
    assert whole == [b"next"]
    assert lines.holds_data(shortened)
    assert len(shortened) < 100
    assert other == b"." * 60


@pytest.mark.usefixtures("small")
def test_a_message_that_is_too_large_is_an_error() -> None:
    with pytest.raises(SourceError, match="more than 0 MB, which is the most that PostgreSQL"):
        split(*[RECORD] * 100)


# With a connector


def test_a_huge_line_that_is_no_message_takes_no_memory(shop: Shop) -> None:
    huge = """
    part = "x" * 2**20
    print('{"type": "LOG", "log": {"level": "INFO", "message": "', end="")
    for _ in range(100):
        print(part, end="")
    print('"}}')
    for _ in range(100):
        print(part, end="")
        sys.stderr.write(part)
    print()
    sys.stdout.flush()
    """
    with shop.apart(huge + "\n" + WHOLE) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        rows, grown = map(int, process.stdout.readline().split())
    print(f"grew by {grown} MB")
    assert rows == 3
    # Two chunks of the output, the Parquet of three rows, and what Python has on top.
    assert grown < 40


def test_a_huge_record_is_kept(shop: Shop) -> None:
    size = 50 * 2**20
    done = shop.sync(WHOLE.replace('name="Ada"', f'name="x" * {size}'))
    first, _ = shop.rows(done, "users")
    assert first["name"] == "x" * size


def test_a_large_record_is_kept_whatever_comes_first_in_it(shop: Shop) -> None:
    record = """
    data = {"name": "x" * 2**21, "id": 1}
    print(json.dumps({"namespace": "x" * 9, "record": {"emitted_at": 1, "data": data,
        "stream": "users"}, "type": "RECORD"}))
    status("users"); checkpoint("events"); status("events")
    """
    (row,) = shop.rows(shop.sync(record), "users")
    assert row["name"] == "x" * 2**21
    failed = shop.failure("    print('.' * 2**21, end='')" + record)
    assert "a message on a line with other output" in failed


def test_many_tiny_records_arrive(shop: Shop) -> None:
    body = """
    line = '{"type": "RECORD", "record": {"stream": "users", "data": {"id": %d}, "emitted_at": 1}}'
    for start in range(0, 200_000, 1000):
        print("\\n".join(line % number for number in range(start, start + 1000)))
    checkpoint("users", count=200_000)
    status("users"); checkpoint("events"); status("events")
    """
    done = shop.sync(body)
    tables = shop.tables(done, "users")
    assert [number for table in tables for number in table["id"].to_pylist()] == [*range(200_000)]
    assert len(tables) == 4


def test_of_what_a_connector_logs_the_first_and_last_line_are_kept(shop: Shop) -> None:
    body = """
    log("Failed to sync\\nTraceback:\\n  File x, line 1\\n  File y\\nConnectionError: refused\\n")
    print("y" * 3_000_000, file=sys.stderr)
    print("z" * 3_000_000)
    sys.exit(1)
    """
    message = shop.failure(body)
    assert "  INFO: Failed to sync … ConnectionError: refused\n" in message
    assert f"  {'y' * 500}" in message
    assert f"  {'z' * 500}\n" in message
    assert len(message) < 2000
