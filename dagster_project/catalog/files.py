"""Proposals in a file of DataHub's own format, which its `file` source reads.

The file is an array of JSON with a record a line: so it is read by DataHub, and a line at a time by
what compares or searches it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from dagster_project.failures import CatalogError
from dagster_project.settings import Settings

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal


def metadata_file(settings: Settings) -> Path:
    """Where the metadata of all domains is written."""
    return settings.home / "catalog" / "metadata.json"


def as_record(proposal: Proposal) -> dict[str, Any]:
    """The proposal as the file has it."""
    record: dict[str, Any] = proposal.to_obj()
    record["aspect"] = {"json": json.loads(record["aspect"]["value"])}
    return record


def write(path: Path, proposals: Iterable[Proposal]) -> int:
    """Write the file, which is there whole or as it was before; how many records it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with beside.open("wb") as file:
            file.write(b"[")
            for count, proposal in enumerate(proposals, start=1):
                file.write(b",\n" if count > 1 else b"\n")
                file.write(orjson.dumps(as_record(proposal)))
            file.write(b"\n]\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return count


def read(path: Path) -> list[Any]:
    """The records of a file. Raises CatalogError if it is not there, or not of JSON."""
    try:
        records = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise CatalogError(f"{path} is not there: `mesh catalog emit` writes it") from None
    except orjson.JSONDecodeError as error:
        raise CatalogError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg}. `mesh catalog emit` writes the "
            "file anew"
        ) from None
    if not isinstance(records, list):
        raise CatalogError(f"{path} holds no array of records: `mesh catalog emit` writes it anew")
    return records
