"""What a domain defines in Python, for the catalog: assets and checks that no file declares.

A domain without Python is not loaded for it, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dagster_project.catalog.assertions import Check
from dagster_project.catalog.datasets import Dataset
from dagster_project.catalog.metadata import InPython
from dagster_project.domain import domain_folder, read_domain
from dagster_project.failures import DeclarationError, MeshError
from dagster_project.identity import Table, Urns
from dagster_project.quality.suites import Severity
from dagster_project.warehouse.target import Column

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph, AssetNode

#: The kind of an asset that is a table of the warehouse, as people write it in `kinds`.
TABLE = "postgres"


def in_python(urns: Urns, domain: str, known: Mapping[tuple[str, ...], str]) -> InPython:
    """The domain's assets that are not `known` (their URNs by asset key), and all its checks.

    An asset is a table of the warehouse if it is of the kind `postgres` and its key has two parts;
    else it is a dataset of Dagster's. Raises DeclarationError for a mistake in the domain's files.
    """
    if not any(path.stat().st_size for path in domain_folder(domain).rglob("*.py")):
        return InPython()
    from dagster_project.locations.location import domain_definitions

    try:
        graph = domain_definitions(domain).resolve_asset_graph()
    except MeshError:
        raise
    except Exception as error:
        # Whatever their code raises.
        raise DeclarationError(
            f"{domain_folder(domain)}: what {domain} defines in Python does not load: "
            f"{type(error).__name__}: {error}"
        ) from error
    nodes = {tuple(node.key.path): node for node in graph.asset_nodes if node.is_materializable}
    ours = {key: _urn(urns, key, node) for key, node in nodes.items() if key not in known}
    there = {**known, **ours}
    personal = read_domain(domain).personal_data
    datasets = [
        Dataset(
            urn=urn,
            asset_key=key,
            domain=domain,
            name=key[-1],
            kind="Table" if TABLE in nodes[key].kinds else "Asset",
            description=nodes[key].description or "",
            columns=tuple(_columns(nodes[key])),
            personal=personal.get(".".join(key), ()),
            upstreams=_upstreams(nodes[key], there),
            properties={"kinds": ", ".join(sorted(nodes[key].kinds))},
        )
        for key, urn in sorted(ours.items())
    ]
    return InPython(datasets, list(_checks(graph)))


def _urn(urns: Urns, key: tuple[str, ...], node: AssetNode) -> str:
    if TABLE in node.kinds and len(key) == 2:
        return urns.table(Table(*key))
    return urns.asset(key)


def _upstreams(node: AssetNode, there: Mapping[tuple[str, ...], str]) -> tuple[str, ...]:
    paths = [tuple(key.path) for key in node.parent_keys]
    return tuple(sorted({there[path] for path in paths if path in there}))


def _columns(node: AssetNode) -> Iterator[Column]:
    """The columns that its definition tells."""
    import dagster as dg

    shape = node.metadata.get("dagster/column_schema")
    schema = shape.schema if isinstance(shape, dg.TableSchemaMetadataValue) else shape
    if isinstance(schema, dg.TableSchema):
        for column in schema.columns:
            yield Column(column.name, column.type, column.description or "")


def _checks(graph: AssetGraph) -> Iterator[Check]:
    for key in sorted(graph.asset_check_keys):
        spec = graph.get_check_spec(key)
        severity = Severity.CRITICAL if spec.blocking else Severity.WARNING
        yield Check(
            asset_key=tuple(key.asset_key.path),
            name=key.name,
            description=spec.description or f"The asset check {key.name}.",
            platform="dagster",
            kind="asset check",
            blocks=spec.blocking,
            severity=severity.value,
        )
