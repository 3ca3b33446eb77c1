"""`mesh lineage`: the graph of what a table is made of, and of what is made of it, as trees."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from dagster_project.catalog.files import as_record
from dagster_project.catalog.graph import Field, Graph, Node, read_graph
from dagster_project.catalog.metadata import static_metadata
from dagster_project.cli.catalog import say
from dagster_project.cli.in_python import in_python
from dagster_project.cli.services import prepare_home
from dagster_project.settings import Settings

PlaceT = TypeVar("PlaceT")


def show(settings: Settings, table: str, *, up: bool, down: bool, columns: bool) -> None:
    """Print the trees. Raises CatalogError with near matches if there is no such table."""
    prepare_home(settings)
    told = static_metadata(settings, say, in_python)
    graph = read_graph(as_record(proposal) for proposal in told)
    node = graph.find(table)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    owners = ", ".join(owner.rpartition(":")[2] for owner in node.owners)
    console.print(Text.assemble(_told(node), (f", {owners}", "dim")))
    console.print(Text(node.description), end="\n\n")
    if up:
        console.print(_tree("made of", graph, node, graph.upstreams, graph.origins, columns))
    if down:
        console.print(_tree("goes into", graph, node, graph.downstreams, graph.uses, columns))


def _tree(
    heading: str,
    graph: Graph,
    node: Node,
    datasets: Mapping[str, Collection[str]],
    fields: Mapping[Field, Collection[Field]],
    columns: bool,
) -> Tree:
    root = Tree(heading)
    if columns:
        _add_columns(root, graph, node, fields)
    else:
        _add(root, node.urn, datasets, lambda urn: _told(graph.nodes[urn]), set())
    if not root.children:
        root.label = f"{heading} nothing"
    return root


def _add_columns(
    root: Tree, graph: Graph, node: Node, edges: Mapping[Field, Collection[Field]]
) -> None:
    def told(place: Field) -> Text:
        return Text.assemble(graph.nodes[place[0]].name, ".", (place[1], "bold"))

    for column in node.columns:
        branch = root.add(Text(column, style="bold"))
        _add(branch, (node.urn, column), edges, told, set())
        if not branch.children:
            branch.label = Text.assemble((column, "bold"), ("  no column", "dim"))


def _add(
    branch: Tree,
    place: PlaceT,
    edges: Mapping[PlaceT, Collection[PlaceT]],
    told: Callable[[PlaceT], Text],
    seen: set[PlaceT],
) -> None:
    """Grow the branch by all that follows from a place; what stands above already is not grown."""
    for found in sorted(edges.get(place, ()), key=lambda found: told(found).plain):
        label = told(found)
        if found in seen and edges.get(found):
            branch.add(label.append("  see above", style="dim"))
        else:
            seen.add(found)
            _add(branch.add(label), found, edges, told, seen)


def _told(node: Node) -> Text:
    return Text.assemble((node.name, "bold"), (f"  {node.kind.lower()} of {node.domain}", "dim"))
