"""Proposals in a file of DataHub's own format, which its `file` source reads.

The file is an array of JSON with a record a line: so it is read by DataHub, and a line at a time by
what compares or searches it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from dagster_project.failures import CatalogError
from dagster_project.settings import Settings

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal


_ANEW = "`mesh catalog emit` writes it anew"


def metadata_file(settings: Settings) -> Path:
    """Where the metadata of all domains is written: a file an environment."""
    return settings.home / "catalog" / settings.env.value / "metadata.json"


def events_folder(settings: Settings) -> Path:
    """Where it is written what happened: a file a delivery, in order by name."""
    return metadata_file(settings).with_name("events")


def as_record(proposal: Proposal) -> dict[str, Any]:
    """The proposal as the file has it."""
    record: dict[str, Any] = proposal.to_obj()
    record["aspect"] = {"json": json.loads(record["aspect"]["value"])}
    return record


def as_proposal(record: Mapping[str, Any]) -> Proposal:
    """What `as_record` made a record of."""
    from datahub.metadata.schema_classes import GenericAspectClass, MetadataChangeProposalClass

    value = json.dumps(record["aspect"]["json"]).encode()
    aspect = GenericAspectClass(value=value, contentType="application/json")
    return MetadataChangeProposalClass(
        entityType=record["entityType"],
        entityUrn=record["entityUrn"],
        changeType=record["changeType"],
        aspectName=record["aspectName"],
        aspect=aspect,
    )


def write(path: Path, records: Iterable[Mapping[str, Any]], *, keep: bool = False) -> None:
    """Write the file, which is there whole or as it was before.

    With `keep`, a file that has other records than these stays, under a name that sorts before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    lines = list(map(orjson.dumps, records))
    try:
        with beside.open("wb") as file:
            file.write(b"[\n")
            file.write(b",\n".join(lines))
            file.write(b"\n]\n")
            file.flush()
            os.fsync(file.fileno())
        if keep and _has_others(path, lines):
            _set_aside(path)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _has_others(path: Path, lines: Sequence[bytes]) -> bool:
    try:
        there = path.read_bytes().splitlines()
    except FileNotFoundError:
        return False
    return not {line.removesuffix(b",") for line in there} <= {b"[", b"]", *lines}


def _set_aside(path: Path) -> None:
    for number in count(1):
        try:
            # Nobody else's name is taken, and the old one goes when the new file takes its place.
            os.link(path, path.with_name(f"{path.stem}-{number:03d}{path.suffix}"))
        except FileExistsError:
            continue
        return


def read(path: Path) -> list[Any]:
    """The records of a file. Raises CatalogError if it is not there, or not of JSON."""
    try:
        records = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise CatalogError(f"{path} is not there: `mesh catalog emit` writes it") from None
    except orjson.JSONDecodeError as error:
        raise CatalogError(f"{path}:{error.lineno}: not valid JSON: {error.msg}. {_ANEW}") from None
    if not isinstance(records, list):
        raise CatalogError(f"{path} holds no array of records. {_ANEW}")
    return records
