"""The one entry for `dg` tooling: all domains together."""

from __future__ import annotations

import dagster as dg

from dagster_project.domain import domain_names
from dagster_project.locations.location import domain_definitions


@dg.definitions
def defs() -> dg.Definitions:
    """All domains in one location. The platform itself runs a location a domain."""
    return dg.Definitions.merge(*(domain_definitions(name) for name in domain_names()))
