"""`mesh sql`: CSV as PostgreSQL itself writes it, and a session that can only read."""

from __future__ import annotations

import csv
import io

import psycopg
import pytest

from tests.e2e.platform import Platform

WRITES = [
    "INSERT INTO asked.things VALUES (0)",
    "DELETE FROM asked.things",
    "CREATE TABLE asked.mine (id int)",
    "DROP TABLE asked.things",
    "SELECT nextval('asked.counter')",
    "SELECT setval('asked.counter', 9)",
    "SELECT 1 AS id INTO asked.mine",
    "WITH gone AS (DELETE FROM asked.things RETURNING id) SELECT * FROM gone",
    "SELECT 1; INSERT INTO asked.things VALUES (0)",
    "COMMIT; INSERT INTO asked.things VALUES (0)",
    "DO $$ BEGIN SET TRANSACTION READ WRITE; INSERT INTO asked.things VALUES (0); END $$",
    """DO $$ BEGIN
        PERFORM set_config('transaction_read_only', 'off', false);
        INSERT INTO asked.things VALUES (0);
    END $$""",
]
STATE = (
    "SELECT (SELECT count(*) FROM asked.things), (SELECT is_called FROM asked.counter), "
    "to_regclass('asked.mine')"
)


def ask(platform: Platform, statement: str) -> str:
    ended = platform.mesh("sql", statement)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    return ended.out


def test_one_header_line_and_the_rows(served: Platform):
    assert ask(served, "SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, 'y' ORDER BY 1") == (
        "a,b\n1,x\n2,y\n"
    )


def test_an_answer_without_rows_has_its_header(served: Platform):
    assert ask(served, """SELECT 1 AS a, 2 AS "b,c" WHERE false""") == 'a,"b,c"\n'


def test_null_is_not_the_empty_string(served: Platform):
    assert ask(served, "SELECT NULL AS nothing, '' AS empty, 1 AS one") == (
        'nothing,empty,one\n,"",1\n'
    )


def test_what_has_to_be_quoted_comes_back_as_it_was(served: Platform):
    out = ask(served, """SELECT E'a"b' AS q, 'a,b' AS c, E'a\\nb' AS n, ' ä€' AS u""")
    header, row = csv.reader(io.StringIO(out, newline=""))
    assert header == ["q", "c", "n", "u"]
    assert row == ['a"b', "a,b", "a\nb", " ä€"]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("""'{"x": [1, "a,b"], "y": null}'::jsonb""", '{"x": [1, "a,b"], "y": null}'),
        ("ARRAY['2013-01-01'::date, NULL]", "{2013-01-01,NULL}"),
        ("true", "t"),
        ("0.1::double precision", "0.1"),
        ("1e300::double precision", "1e+300"),
        ("'NaN'::double precision", "NaN"),
        ("1.50::numeric", "1.50"),
        ("9223372036854775807::bigint", "9223372036854775807"),
        ("'2013-07-01 12:00+02'::timestamptz AT TIME ZONE 'UTC'", "2013-07-01 10:00:00"),
        ("'infinity'::timestamptz", "infinity"),
        ("'4713-01-01 BC'::date", "4713-01-01 BC"),
        ("'1 day 02:00'::interval", "1 day 02:00:00"),
        (r"'\x00ff'::bytea", r"\x00ff"),
        ("ROW(1, 'a')", "(1,a)"),
        ("'50%' || '%s'", "50%%s"),
        ("7 % 4", "3"),
    ],
)
def test_a_value_is_as_postgresql_writes_it(served: Platform, expression: str, text: str):
    header, row = csv.reader(io.StringIO(ask(served, f"SELECT {expression} AS value, 1 AS one")))
    assert header == ["value", "one"]
    assert row == [text, "1"]


def test_a_long_answer_is_whole(served: Platform):
    lines = ask(served, "SELECT id FROM asked.things ORDER BY id").splitlines()
    assert lines == ["id", *map(str, range(1, 50_001))]


def test_what_is_no_select_but_reads_is_answered(served: Platform):
    assert ask(served, "SHOW transaction_read_only") == "transaction_read_only\non\n"
    assert ask(served, "EXPLAIN SELECT 1").startswith("QUERY PLAN\n")


@pytest.mark.parametrize("statement", WRITES)
@pytest.mark.parametrize("owner", [False, True], ids=["reader", "owner"])
def test_it_cannot_write(served: Platform, statement: str, owner: bool):
    """Not as the role that may only read, nor as one that owns the tables."""
    environment = {"MESH_WAREHOUSE_URL": served.url()} if owner else {}
    with psycopg.connect(served.url()) as connection:
        before = connection.execute(STATE).fetchone()
    ended = served.mesh("sql", statement, **environment)
    assert ended.code == 1
    assert ended.err.startswith("mesh: ")
    assert "Traceback" not in ended.err
    with psycopg.connect(served.url()) as connection:
        assert connection.execute(STATE).fetchone() == before


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT * FROM no.such", 'relation "no.such" does not exist'),
        ("SELECT 1 / (id - 40000) FROM asked.things", "division by zero"),
    ],
)
def test_a_mistake_is_told_in_postgresqls_words(served: Platform, statement: str, said: str):
    ended = served.mesh("sql", statement)
    assert ended.code == 1
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not any(secret in ended.err for secret in served.secrets())
