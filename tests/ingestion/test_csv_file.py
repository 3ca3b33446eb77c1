"""CSV files, as they come: what is loaded of them, what is put aside, and what is refused."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_project.failures import SourceError
from dagster_project.ingestion.landed_file import file_batches
from dagster_project.ingestion.quotes import Quotes
from dagster_project.lake.store import Lake
from dagster_project.warehouse.staging import FAULT, RECORD
from tests.ingestion.zone import DAY, HEADER, Zone, columns_of, feed_of

NUL = "code: a NUL character, which PostgreSQL cannot hold"


def packed(content: bytes) -> bytes:
    """Compressed, the same at any time, as it is in the names of tests."""
    return gzip.compress(content, mtime=0)


@pytest.fixture
def zone(lake: Lake, tmp_path: Path, warehouse_url: str) -> Zone:
    return Zone(lake, tmp_path / "lake", warehouse_url)


#: Values that mean something to CSV, to a declaration or to PostgreSQL, among any others.
VALUES = st.one_of(
    st.sampled_from(["", " ", "NA", '"', '""', ",", ";", "\n", "\r\n", "\r", "\\", "\\N", "a\tb"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
)


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=8),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"]),
    delimiter=st.sampled_from([",", ";", "\t"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    is_quoted=st.booleans(),
    is_packed=st.booleans(),
)
def test_what_a_csv_writer_wrote_is_what_the_table_holds(
    zone: Zone,
    rows: list[tuple[str, str, str]],
    encoding: str,
    delimiter: str,
    newline: str,
    is_quoted: bool,
    is_packed: bool,
) -> None:
    zone.feed = feed_of(
        columns=columns_of(id="bigint", a="text", b="text", c="text"),
        # A byte order mark goes before what is declared.
        encoding="utf-16-le" if encoding == "utf-16-le" else "latin-1",
        delimiter=delimiter,
    )
    if encoding == "utf-8":
        zone.feed = zone.feed.model_copy(update={"encoding": "utf-8"})
    text = io.StringIO(newline="")
    # The writer quotes a newline only if it is one of those that it writes itself.
    quoting = csv.QUOTE_ALL if is_quoted or newline == "\n" else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writerow(["id", "a", "b", "c"])
    for number, row in enumerate(rows):
        writer.writerow([number, *row])
    content = text.getvalue().encode(encoding)
    zone.put(packed(content) if is_packed else content)
    zone.load()
    null = "NA" if quoting == csv.QUOTE_MINIMAL else None
    assert zone.rows("id, a, b, c") == [
        (number, *(None if value == null else value for value in row))
        for number, row in enumerate(rows)
    ]


def test_the_declared_null_values_are_null_unless_quoted(zone: Zone) -> None:
    zone.drop(DAY, '1,NA,NA\n2,1,"NA"\n3,2,\n')
    zone.load()
    assert zone.rows("id, delay, code") == [(1, None, None), (2, 1.0, "NA"), (3, 2.0, "")]


def test_columns_are_matched_by_name_whatever_their_order(zone: Zone) -> None:
    zone.drop(DAY, "a,1,0.5\n", "code,id,delay\n")
    content = (zone.folder / f"trips_{DAY}.csv").read_bytes()
    (batch,) = file_batches(content, "f", zone.feed)
    assert batch.schema.names == ["id", "delay", "code"]
    zone.load()
    assert zone.rows("id, delay, code") == [(1, 0.5, "a")]


def test_a_value_that_is_not_of_its_type_is_rejected_and_the_rest_is_loaded(zone: Zone) -> None:
    zone.drop(DAY, "1,soon,a\n2,2,b\n")
    done = zone.load()
    assert (done.received, done.new, done.rejected) == (2, 1, 1)
    record = {"id": "1", "delay": "soon", "code": "a"}
    assert zone.rejects() == [("delay: not double precision", record)]


def test_a_row_of_another_width_is_rejected_with_its_text_and_the_rest_is_loaded(
    zone: Zone,
) -> None:
    zone.drop(DAY, '1,1,a\n2,2\n3,"3\n",c,"d\ne"\n\n4,4,d\n')
    done = zone.load()
    assert (done.received, done.new, done.rejected) == (4, 2, 2)
    assert zone.rows("id") == [(1,), (4,)]
    assert zone.rejects() == [
        ("2 fields where the header has 3", {"row": 3, "text": "2,2"}),
        ("4 fields where the header has 3", {"row": 4, "text": '3,"3\n",c,"d\ne"'}),
    ]


def test_a_row_with_a_nul_character_is_rejected_and_the_rest_is_loaded(zone: Zone) -> None:
    zone.drop(DAY, "1,1,a\n2,2,b\0c\n3\0,3,NA\n4,4,d\n5,5\0\n")
    done = zone.load()
    assert (done.received, done.new, done.rejected) == (5, 2, 3)
    assert zone.rows("id") == [(1,), (4,)]
    assert zone.rejects() == [
        ("2 fields where the header has 3", {"row": 6, "text": "5,5\ufffd"}),
        (NUL, {"id": "2", "delay": "2", "code": "b\ufffdc"}),
        (NUL.replace("code", "id"), {"id": "3\ufffd", "delay": "3", "code": None}),
    ]


def test_bad_rows_are_found_wherever_in_a_large_file_they_are() -> None:
    good = "1,2,abcdefgh\n"
    content = f"{HEADER}{good * 200_000}2,x\n{good * 200_000}3,3,\0\n{good * 100_000}4,4,4,4\n"
    rejects, rows = [], 0
    for batch in file_batches(content.encode(), "f", feed_of()):
        assert batch.num_rows <= 65_536
        rows += batch.num_rows
        if FAULT in batch.schema.names:
            rejects += batch.select([FAULT, RECORD]).to_pylist()
    assert rows == 500_003
    assert sorted(reject[RECORD] for reject in rejects) == [
        '{"id":"3","delay":"3","code":"\ufffd"}',
        '{"row":200002,"text":"2,x"}',
        '{"row":500004,"text":"4,4,4,4"}',
    ]


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (codecs.BOM_UTF8 + b"id,delay,code\n1,1,\xc3\xa9\n", {}),
        ((HEADER + "1,1,é\n").encode("utf-16"), {}),
        (codecs.BOM_UTF16_BE + (HEADER + "1,1,é\n").encode("utf-16-be"), {}),
        ((HEADER + "1,1,é\n").encode("cp1252"), {"encoding": "cp1252"}),
        (packed((HEADER + "1,1,é\n").encode("cp1252")), {"encoding": "cp1252"}),
        (packed(HEADER.encode()) + packed("1,1,é\n".encode()), {}),
        ((HEADER + "1,1,é").encode(), {"final_newline": "optional"}),
        ("id|delay|code\r\n1|1|é\r\n".encode(), {"delimiter": "|"}),
        ("\nid,delay,code\n\n1,1,é\n\n".encode(), {}),
        ("id,delay,code\r1,1,é\r".encode(), {}),
    ],
    ids=[
        *("byte order mark", "UTF-16", "UTF-16 BE", "declared", "declared and packed"),
        *("packed in two members", "no newline at the end", "delimiter", "empty lines", "CR"),
    ],
)
def test_a_file_is_read_as_what_it_is(zone: Zone, content: bytes, declared: Any) -> None:
    zone.feed = feed_of(**declared)
    # The name says nothing.
    zone.put(content, f"trips_{DAY}.parquet")
    zone.load()
    assert zone.rows("id, delay, code") == [(1, 1.0, "é")]


@pytest.mark.parametrize("content", [HEADER, "id,code,delay\r\n"])
def test_a_file_without_rows_is_an_empty_day_only_if_that_is_declared(
    zone: Zone, content: str
) -> None:
    zone.drop(DAY, "1,1,a\n")
    zone.load()
    zone.drop(DAY, "", content)
    with pytest.raises(SourceError, match=r"a header and no rows.*`may_be_empty: true`"):
        zone.load()
    assert zone.rows("id") == [(1,)]
    zone.feed = feed_of(may_be_empty=True)
    done = zone.load()
    assert (done.new, done.removed, done.rows) == (0, 1, 0)
    assert zone.waiting() == []


PACKED = packed((HEADER + "1,1,a\n" * 1000).encode())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (codecs.BOM_UTF8, "is empty"),
        (packed(b""), "is empty"),
        (b"id,delay,code\n1,1,a\n2,2,b", "no newline at its end.*`final_newline: optional`"),
        (b"id,delay,code", "no newline at its end"),
        (b"id,delay,code\n1,1,a\n2,2", "its last row is cut"),
        (b'id,delay,code\n1,1,a\n2,2,"b\n', "a quoted value begins and does not end"),
        (b'id,delay,code\n1,1,a\n2,"2,b\n3,3,c\n', "a quoted value begins and does not end"),
        (b'id,delay,code\n1,1,"a\n2,2,b\n3,3,"c"\n4,4,d\n', "line 4 has a quote in the middle"),
        (b'id,delay,code\n1,1,"a\n2,2,b\n3,"3",c\n4,4,d\n', "line 4 has a quote in the middle"),
        (b'id,delay,code\n1,1,a"b\n2,2,c\n', "line 2 has a quote .*`quotes: false`"),
        (b'id,delay,code\n1,1,"a"b\n2,2,c\n', "line 2 has a quote in the middle"),
        (b'id,delay,code\n1,1, "a"\n', "line 2 has a quote in the middle"),
        (
            codecs.BOM_UTF8 + b"id,delay,code\n" + b'1,1,"a"\n' * 999 + b'1,1,"a" \n',
            "line 1001 has",
        ),
        (b"id,delay,code\n" + b'1,1,"a"\n' * 600_000 + b'1,1,"a"b\n', "line 600002 has a quote"),
        ('id,delay,code\n1,1,a\n1,1,a"b\n'.encode("utf-16"), "line 3 has a quote in the middle"),
        (b'id,delay,code\n1,1,"' + b"2,2,b\n" * 1_000_000, "longer than 2 MB, or a quote is open"),
        (PACKED[:-1], "ends too early or is damaged"),
        (PACKED[:50], "ends too early or is damaged"),
        (PACKED[:-8] + b"12345678", "ends too early or is damaged"),
        (b"id,delay,kode\n1,1,a\n", r"missing \['code'\], not declared \['kode'\]"),
        (b"id,delay\n1,1\n", r"missing \['code'\], not declared none"),
        (b"id,delay,code,x\n1,1,a,1\n", r"missing none, not declared \['x'\]"),
        (b"id,delay,code,id\n1,1,a,1\n", r"there more than once \['id'\]"),
        (b"id;delay;code\n1;1;a\n", "Are its values separated by ','.*`delimiter`"),
        (b"id,delay,code\n1,1,a\n2,\xe9,b\n", "line 3 is not valid utf-8.*`encoding`"),
        (b"id,delay,code\n1,1,a\n2,\xe9\n", "line 3 is not valid utf-8"),
        (b"id,delay,code\n1,1,a\xc3", "line 2 is not valid utf-8"),
        (b"id,delay,code\xff\n1,1,a\n", "line 1 is not valid utf-8"),
        ((HEADER + "1,1,a\n").encode("utf-16")[:-1], "line 2 is not valid utf-16"),
        (b"id,delay,code\n1\n2,2\n", "none of its 2 rows.*1 field where the header has 3"),
        (b"id,delay,code\n1,1,\0\n", f"none of its 1 rows.*{NUL}"),
        (b"id,delay,code\n1,1,a\n" + b"2,2\n" * 150_000, "more than 100,000 rows together"),
    ],
)
def test_a_file_that_is_not_what_was_declared_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=f"^landing/trips.csv.*{said}"):
        list(file_batches(content, "landing/trips.csv", feed_of()))


def test_a_last_row_without_a_newline_is_refused_if_it_is_short_whatever_is_declared(
    zone: Zone,
) -> None:
    zone.feed = feed_of(final_newline="optional")
    zone.drop(DAY, "1,1,a\n2,2")
    with pytest.raises(SourceError, match="its last row is cut"):
        zone.load()
    zone.drop(DAY, "1,1\n2,2,b")
    done = zone.load()
    assert (done.new, done.rejected) == (1, 1)


def test_a_single_column_has_rows_of_another_width_too(zone: Zone) -> None:
    zone.feed = feed_of(columns=columns_of(id="bigint"))
    zone.drop(DAY, "1\n2,3\n", "id\n")
    done = zone.load()
    assert (done.new, done.rejected) == (1, 1)
    zone.drop(DAY, "1\n\n3\n", "id\n")
    assert zone.load().rejected == 1
    zone.feed = feed_of(columns=columns_of(id="bigint"), null_values=[""])
    zone.drop(DAY, "1\n\n\n3\n", "id\n")
    assert zone.load().rejected == 0
    assert zone.rows("id") == [(1,), (3,), (None,), (None,)]
    zone.drop(DAY, '1\n"2\n', "id\n")
    with pytest.raises(SourceError, match="a quoted value begins and does not end"):
        zone.load()


def test_where_quotes_are_characters_they_are_kept(zone: Zone) -> None:
    zone.feed = feed_of(quotes=False)
    zone.drop(DAY, '1,1,5" pipe\n2,2,"NA"\n3,3,"\n')
    zone.load()
    assert zone.rows("id, code") == [(1, '5" pipe'), (2, '"NA"'), (3, '"')]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=st.text(st.sampled_from('a",\n\r'), max_size=30), sizes=st.lists(st.integers(1, 5)))
def test_quotes_are_judged_alike_wherever_a_block_ends(content: str, sizes: list[int]) -> None:
    """As by a reader that takes one character at a time."""
    wanted, state = None, "begins"
    for place, char in enumerate(content + "\n"):
        if state == "within":
            state = "ended" if char == '"' else "within"
        elif char == '"' and state in ("begins", "ended"):
            state = "within"
        elif char in ",\n\r":
            state = "begins"
        elif state == "ended":
            wanted = place - 1
            break
        elif char == '"':
            wanted = place
            break
        else:
            state = "inside"
    quotes, start, found = Quotes(","), 0, None
    rest = (content + "\n").encode()
    for size in [*sizes, len(rest), 0]:
        block, rest = rest[:size], rest[size:]
        if found is None and (place_ := quotes.amiss(block)) is not None:
            found = start + place_
        start += len(block)
    assert found == wanted
