"""The graph that the records of the reference domains make, and nothing but the records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from dagster_project.catalog.graph import Field, Graph
from dagster_project.domain import domain_names, read_domain
from dagster_project.failures import CatalogError
from dagster_project.ingestion.records import AIRBYTE_COLUMNS

#: Where data comes in.
ORIGINS = ("source/", "landing/")
COUNTED = "a count of rows, for which no column is read"
NAMED = "a word of the query's own"
DATED = "the day that a file's name has, which no column of the file holds"
DAY = "flights_raw.flights.flight_date"
#: Where columns of marts begin other than in a column of a source, and why.
BEGINNINGS = {
    DAY: DATED,
    "commerce.cart_funnel_by_month.items_added_to_cart": COUNTED,
    "commerce.dim_users.items_purchased": COUNTED,
    "commerce.revenue_by_month.baskets": COUNTED,
    "commerce.revenue_by_month.items_returned": COUNTED,
    "commerce.revenue_by_month.items_sold": COUNTED,
    "commerce_staging.int_commerce__baskets.items": COUNTED,
    "flights.delay_by_plane_age.flights_scheduled": COUNTED,
    "flights.delay_by_weather.flights_scheduled": COUNTED,
    "flights.on_time_by_airport.airport_role": NAMED,
    "flights.on_time_by_airport.flights_scheduled": COUNTED,
    "flights.on_time_by_carrier.flights_scheduled": COUNTED,
    "flights.on_time_by_day.flights_scheduled": COUNTED,
    "flights.on_time_by_route.flights_scheduled": COUNTED,
}
#: Columns of marts that come from nothing else, beside those above.
UNTRACED = {
    "commerce.revenue_by_month.average_basket_items",
    "flights.fct_flights.flight_date",
    "flights.on_time_by_day.day_of_week",
    "flights.on_time_by_day.flight_date",
}


def traced(graph: Graph, fields: Iterable[Field]) -> set[Field]:
    """The columns that these are made of in the end, which are made of none."""
    found: set[Field] = set()
    waiting, seen = list(fields), set()
    while waiting:
        field = waiting.pop()
        if field in seen:
            continue
        seen.add(field)
        if origins := graph.origins.get(field):
            waiting += origins
        else:
            found.add(field)
    return found


def told(graph: Graph, fields: Iterable[Field]) -> set[str]:
    return {f"{graph.nodes[urn].name}.{column}" for urn, column in fields}


def marts(graph: Graph) -> list[Any]:
    return [node for node in graph.nodes.values() if node.name.partition(".")[0] == node.domain]


def test_what_belongs_together_is_one_graph_and_the_shop_is_another(graph: Graph) -> None:
    """The shop uses nothing of the airports' domains, and they nothing of the shop's."""
    components: list[set[str]] = []
    left = set(graph.nodes)
    while left:
        waiting, component = [left.pop()], set()
        while waiting:
            urn = waiting.pop()
            component.add(urn)
            near = graph.upstreams.get(urn, set()) | graph.downstreams.get(urn, set())
            waiting += near & left
            left -= near
        components.append({graph.nodes[urn].domain for urn in component})
    assert sorted(map(sorted, components)) == [["commerce"], ["fleet", "flights", "weather"]]


def test_every_dataset_comes_from_a_source(graph: Graph) -> None:
    for node in graph.nodes.values():
        first, waiting = set(), [node.urn]
        while waiting:
            urn = waiting.pop()
            waiting += graph.upstreams.get(urn, ())
            first |= set() if graph.upstreams.get(urn) else {graph.nodes[urn].name}
        assert all(name.startswith(ORIGINS) for name in first), (node.name, first)


def test_a_dataset_is_made_of_those_that_its_query_names(graph: Graph) -> None:
    names = {
        node.name: {graph.nodes[urn].name for urn in graph.upstreams.get(node.urn, ())}
        for node in graph.nodes.values()
    }
    assert names["fleet_raw.planes"] == {"lake/fleet/register/planes"}
    assert names["lake/fleet/register/planes"] == {"source/fleet/register/planes"}
    assert names["flights_raw.flights"] == {"landing/flights/flights"}
    assert names["flights.delay_by_weather"] == {
        "flights.fct_flights",
        "weather.fct_weather_hourly",
    }


def test_a_domain_uses_those_that_it_says_it_depends_on(graph: Graph) -> None:
    for name in domain_names():
        used = {
            graph.nodes[upstream].domain
            for urn, upstreams in graph.upstreams.items()
            for upstream in upstreams
            if graph.nodes[urn].domain == name
        }
        assert used - {name} == set(read_domain(name).depends_on)


def test_every_column_of_a_mart_is_traced_to_its_sources_or_is_known_to_have_none(
    graph: Graph,
) -> None:
    beginnings, untraced = set(), set()
    for node in marts(graph):
        for column in node.columns:
            first = told(graph, traced(graph, [(node.urn, column)]))
            others = {name for name in first if not name.startswith(ORIGINS)}
            beginnings |= others
            if first == others:
                untraced.add(f"{node.name}.{column}")
    assert beginnings == BEGINNINGS.keys()
    assert untraced == UNTRACED | {name for name in BEGINNINGS if "_" not in name.partition(".")[0]}


@pytest.mark.parametrize(
    ("table", "column", "sources"),
    [
        # Renamed on its way.
        ("fleet.dim_airlines", "carrier_name", {"source/fleet/register/airlines.name"}),
        # Taken by `select *`, then through a case.
        (
            "weather.fct_weather_hourly",
            "wind_band",
            {"source/weather/readings/weather.wind_speed"},
        ),
        # Of two domains, joined with `using`.
        (
            "flights.delay_by_plane_age",
            "is_age_known",
            {DAY, "source/fleet/register/planes.year"},
        ),
        # A sum of a sum of both sides of a union.
        (
            "commerce.revenue_by_month",
            "gross_revenue",
            {
                "source/commerce/shop/products.price",
                "source/commerce/shop/purchases.purchased_at",
            },
        ),
        # A key within JSON.
        ("commerce.dim_users", "country_code", {"source/commerce/shop/users.address"}),
    ],
)
def test_a_column_is_traced_through_everything_on_its_way(
    graph: Graph, table: str, column: str, sources: set[str]
) -> None:
    assert told(graph, traced(graph, [(graph.find(table).urn, column)])) == sources


def test_raw_columns_are_those_of_the_source_but_for_the_platform_s_own(graph: Graph) -> None:
    raw = [node for node in graph.nodes.values() if "_raw." in node.name]
    assert len(raw) == 8
    for node in raw:
        for column in node.columns:
            first = told(graph, traced(graph, graph.origins.get((node.urn, column), ())))
            if column in AIRBYTE_COLUMNS:
                assert all(name.startswith("lake/") for name in first), column
            elif column in ("_object", "_loaded_at", "flight_date"):
                assert not first, column
            else:
                (name,) = first
                assert name.startswith(ORIGINS), column
                assert name.endswith(f".{column}")


def test_columns_are_made_of_columns_that_exist_in_datasets_that_are_upstream(
    graph: Graph,
) -> None:
    for (urn, column), origins in graph.origins.items():
        assert column in graph.nodes[urn].columns
        for upstream, theirs in origins:
            assert theirs in graph.nodes[upstream].columns, (urn, column)
            assert upstream in graph.upstreams[urn], (urn, column)


def test_an_unknown_name_is_answered_with_those_that_are_near(graph: Graph) -> None:
    assert graph.find("landing/flights/flights").kind == "Files"
    assert graph.find("fleet/dim_planes") is graph.find("fleet.dim_planes")
    with pytest.raises(
        CatalogError, match=r"no table fleet\.dim_plane: did you mean fleet\.dim_pl"
    ):
        graph.find("fleet.dim_plane")
    with pytest.raises(CatalogError, match=r"did you mean fleet\.dim_airports, "):
        graph.find("dim_airports")
    with pytest.raises(CatalogError, match="no table xyzzy: name one as SQL does: commerce"):
        graph.find("xyzzy")
