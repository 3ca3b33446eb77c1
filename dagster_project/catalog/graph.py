"""The lineage graph that somebody who reads the records would see.

It is made of records alone, as they are in a file of DataHub's format, so that it shows what was
told and not what was meant. A dbt model and the table that it makes are one, as DataHub shows them.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dagster_project.catalog.aspects import ASSET
from dagster_project.catalog.withdrawal import takes_back
from dagster_project.failures import CatalogError
from dagster_project.identity import Urns

#: A column of the dataset of this URN.
Field = tuple[str, str]


@dataclass(slots=True)
class Node:
    """A dataset, as far as it is told of."""

    urn: str
    name: str = ""
    kind: str = ""
    description: str = ""
    domain: str = ""
    owners: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


@dataclass
class Graph:
    """Datasets by URN, and for each, and each of their columns, what it is made of."""

    nodes: dict[str, Node] = field(default_factory=dict)
    upstreams: dict[str, set[str]] = field(default_factory=dict)
    origins: dict[Field, set[Field]] = field(default_factory=dict)

    @cached_property
    def downstreams(self) -> Mapping[str, set[str]]:
        """For each dataset, those that are made of it."""
        return _turned(self.upstreams)

    @cached_property
    def uses(self) -> Mapping[Field, set[Field]]:
        """For each column, those that are made of it."""
        return _turned(self.origins)

    def find(self, name: str) -> Node:
        """The dataset of this name, a table's also as its asset has it: fleet/dim_planes.

        Raises CatalogError with near matches if there is none.
        """
        names = {node.name: node for node in self.nodes.values()}
        if found := names.get(name) or names.get(name.replace("/", ".")):
            return found
        same = [known for known in names if known.replace("/", ".").split(".")[-1] == name]
        near = dict.fromkeys([*same, *difflib.get_close_matches(name, names, n=3)])
        example = next((known for known in sorted(names) if "." in known), "")
        hint = f"did you mean {', '.join(near)}?" if near else f"name one as SQL does: {example}"
        raise CatalogError(f"no table {name}: {hint}")


def _turned(edges: Mapping[Any, set[Any]]) -> dict[Any, set[Any]]:
    turned = defaultdict(set)
    for downstream, upstreams in edges.items():
        for upstream in upstreams:
            turned[upstream].add(downstream)
    return turned


def read_graph(records: Iterable[Mapping[str, Any]]) -> Graph:
    """The graph of the datasets that the records tell of; what they only mention is in it, too."""
    told: dict[str, dict[str, Any]] = defaultdict(dict)
    for record in records:
        if record["entityType"] == "dataset" and not takes_back(record):
            told[record["entityUrn"]][record["aspectName"]] = record["aspect"]["json"]
    # The primary one of two siblings is the dbt model: it goes into the table that it makes.
    shown = {
        urn: aspects["siblings"]["siblings"][0]
        for urn, aspects in told.items()
        if aspects.get("siblings", {}).get("primary")
    }
    graph = Graph()

    def node_of(urn: str) -> str:
        urn = shown.get(urn, urn)
        graph.nodes.setdefault(urn, Node(urn, name=urn))
        return urn

    for urn, aspects in told.items():
        here = node_of(urn)
        if here == urn:
            _describe(graph.nodes[here], aspects)
        lineage = aspects.get("upstreamLineage", {})
        for upstream in lineage.get("upstreams", ()):
            if (there := node_of(upstream["dataset"])) != here:
                graph.upstreams.setdefault(here, set()).add(there)
        for downstream, upstream in _column_edges(lineage):
            ours, theirs = (
                (node_of(dataset), column) for dataset, column in (downstream, upstream)
            )
            if ours != theirs:
                graph.origins.setdefault(ours, set()).add(theirs)
    return graph


def _column_edges(lineage: Mapping[str, Any]) -> Iterator[tuple[Field, Field]]:
    for edge in lineage.get("fineGrainedLineages") or ():
        for downstream in edge["downstreams"]:
            for upstream in edge["upstreams"]:
                yield Urns.column_of(downstream), Urns.column_of(upstream)


def _describe(node: Node, aspects: Mapping[str, Any]) -> None:
    properties = aspects.get("datasetProperties", {})
    asset = properties.get("customProperties", {}).get(ASSET, "")
    # A table is named as in SQL, everything else as its asset is.
    node.name = (asset.replace("/", ".") if asset.count("/") == 1 else asset) or node.name
    node.description = properties.get("description", "")
    node.kind = "".join(aspects.get("subTypes", {}).get("typeNames", [])[:1])
    node.domain = "".join(aspects.get("domains", {}).get("domains", [])[:1]).rpartition(":")[2]
    node.columns = [f["fieldPath"] for f in aspects.get("schemaMetadata", {}).get("fields", ())]
    added = aspects.get("ownership", {}).get("patch", ())
    node.owners = [operation["value"]["owner"] for operation in added]
