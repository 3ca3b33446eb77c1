"""Whether DataHub takes what is in a file, found before it is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dagster_project.catalog.files import as_record, read


def faults(path: Path) -> Iterator[str]:
    """What DataHub would refuse of a file, a line each: which record, and what is wrong with it.

    What its own check of such files (`datahub check metadata-file`) finds, and what that lets pass
    and the server would not: aspects that nobody knows or that the entity cannot have, fields that
    nobody knows, and URNs that are none, within aspects too.
    """
    from datahub.ingestion.api.common import PipelineContext
    from datahub.ingestion.source.file import GenericFileSource

    found = False
    for number, record in enumerate(read(path), start=1):
        for fault in _faults_of(record):
            found = True
            yield f"{path}: record {number}: {fault}"
    if found:
        return
    source = GenericFileSource.create({"path": str(path)}, PipelineContext(run_id="check"))
    for _ in source.get_workunits_internal():
        pass
    for failure in source.get_report().failures:
        yield f"{path}: {failure.message}: {'; '.join(failure.context)}"


def _faults_of(record: Any) -> Iterator[str]:
    content = record.get("aspect") if isinstance(record, dict) else None
    if not isinstance(content, dict) or not content.get("json"):
        yield "is no proposal of an aspect"
        return
    where = f"{record.get('aspectName')} of {record.get('entityUrn')}"
    if fault := _address_fault(record):
        yield f"{where}: {fault}"
        return
    for fault in _content_faults(record):
        yield f"{where}: {fault}"


def _address_fault(record: Mapping[str, Any]) -> str | None:
    """Why there is no such aspect of such an entity."""
    from datahub.emitter.aspect import ASPECT_MAP
    from datahub.emitter.mcp_builder import entity_supports_aspect
    from datahub.metadata.schema_classes import KEY_ASPECTS

    entity, aspect = str(record.get("entityType")), record.get("aspectName")
    if fault := _urn_fault(str(record.get("entityUrn")), entity):
        return fault
    if entity not in KEY_ASPECTS:
        return f"DataHub has no entities of the type {entity}"
    if aspect not in ASPECT_MAP:
        return "DataHub has no such aspect"
    if not entity_supports_aspect(entity, ASPECT_MAP[aspect]):
        return f"a {entity} cannot have this aspect"
    return None


def _content_faults(record: Mapping[str, Any]) -> Iterator[str]:
    """What of a record's aspect, or of its patch of one, DataHub's classes do not take."""
    from avro.errors import AvroException
    from datahub.emitter.mcp import MetadataChangeProposalWrapper
    from datahub.utilities.urns.urn_iter import list_urns

    content = record["aspect"]["json"]
    try:
        # It changes what it is given.
        proposal = MetadataChangeProposalWrapper.from_obj(dict(record))
        if not proposal.validate():
            yield "not of DataHub's schema"
            return
    except (AttributeError, AvroException, KeyError, TypeError, ValueError) as error:
        yield f"not of DataHub's schema: {str(error)[:300]}"
        return
    if not isinstance(proposal, MetadataChangeProposalWrapper):
        if fault := _patch_fault(content):
            yield fault
        return
    for name in _lost(content, as_record(proposal)["aspect"]["json"]):
        yield f"DataHub has no such field: {name}"
    for urn in sorted(set(list_urns(proposal.aspect))):
        if fault := _urn_fault(urn):
            yield fault


def _lost(said: Any, understood: Any, at: str = "") -> Iterator[str]:
    """The fields that DataHub's classes did not take, and so leave out."""
    if isinstance(said, dict) and isinstance(understood, dict):
        for name, value in said.items():
            if name in understood:
                yield from _lost(value, understood[name], f"{at}{name}.")
            elif value is not None:
                yield f"{at}{name}"
    elif isinstance(said, list) and isinstance(understood, list):
        for item, other in zip(said, understood, strict=False):
            yield from _lost(item, other, at)


def _urn_fault(urn: str, entity: str | None = None) -> str | None:
    """Why this is no URN, or not one of this type of entity."""
    from datahub.utilities.urns.error import InvalidUrnError
    from datahub.utilities.urns.urn import Urn

    try:
        found = Urn.from_string(urn).entity_type
    except InvalidUrnError as error:
        return f"{urn} is no URN: {error}"
    return f"its URN is of a {found}, not of a {entity}" if entity not in (None, found) else None


def _patch_fault(patch: Any) -> str | None:
    """Why this is no JSON patch, plain or with the keys of the arrays that it adds to."""
    operations = patch.get("patch") if isinstance(patch, dict) else patch
    if not isinstance(operations, list) or not operations:
        return "holds no operations of a JSON patch"
    for operation in operations:
        if not isinstance(operation, dict) or operation.get("op") not in ("add", "remove"):
            return f"an operation of a patch adds or removes, not so {operation}"
        if not str(operation.get("path")).startswith("/"):
            return f"an operation of a patch has a path such as /owners, not so {operation}"
    return None
