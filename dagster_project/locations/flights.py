"""The code location of the domain flights."""

from __future__ import annotations

import dagster as dg

from dagster_project.locations.location import domain_definitions


@dg.definitions
def defs() -> dg.Definitions:
    """All that flights defines."""
    return domain_definitions("flights")
