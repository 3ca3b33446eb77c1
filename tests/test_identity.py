"""The one name of a table, in every system that has one for it."""

from __future__ import annotations

import pytest

from dagster_project.identity import Feed, Stream, Table, quoted, raw_table


def test_a_stream_has_one_name_from_its_source_to_its_table() -> None:
    stream = Stream("fleet", "register", "planes")
    assert stream.source == "fleet.register"
    assert stream.source_key == ("source", "fleet", "register", "planes")
    assert stream.asset_key == ("lake", "fleet", "register", "planes")
    assert stream.prefix == "fleet/register/planes"
    assert stream.table == Table("fleet_raw", "planes") == raw_table("fleet", "planes")
    assert stream.table.asset_key == ("fleet_raw", "planes")


def test_a_feed_has_one_name_from_the_landing_zone_to_its_table() -> None:
    feed = Feed("flights", "flights")
    assert feed.prefix == "landing/flights/flights"
    assert feed.asset_key == ("landing", "flights", "flights")
    assert str(feed.table) == "flights_raw.flights"


@pytest.mark.parametrize("schema", ["fleet", "fleet_raw", "fleet_staging"])
def test_a_schema_belongs_to_its_domain(schema: str) -> None:
    assert Table(schema, "planes").domain == "fleet"


@pytest.mark.parametrize("text", ["planes", "a.b.c", ".b", "a.", "", "."])
def test_what_is_not_schema_and_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not of the form schema\.table"):
        Table.parse(text)


def test_a_parsed_table_is_written_as_it_was() -> None:
    assert str(Table.parse("fleet_raw.planes")) == "fleet_raw.planes"


def test_a_name_cannot_end_its_quotes() -> None:
    assert quoted('a"; DROP TABLE x; --') == '"a""; DROP TABLE x; --"'
    assert Table('s"', "t.u").relation == '"s"""."t.u"'
    with pytest.raises(ValueError, match="NUL"):
        quoted("a\x00b")


def test_the_rejects_of_a_long_name_are_a_table_of_their_own() -> None:
    assert Table("s", "orders").rejects == Table("s", "orders__rejects")
    names = ["x" * 63, "x" * 62 + "y", "ü" * 31, "x" * 55]
    found = [Table("s", name).rejects.name for name in names]
    assert len(set(found) | set(names)) == 8
    # PostgreSQL would cut what is longer, to the name of the table itself.
    assert all(len(name.encode()) <= 63 for name in found)
    assert all(name.endswith("__rejects") for name in found)
