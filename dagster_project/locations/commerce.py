"""The code location of the domain commerce."""

from __future__ import annotations

import dagster as dg

from dagster_project.locations.location import domain_definitions


@dg.definitions
def defs() -> dg.Definitions:
    """All that commerce defines."""
    return domain_definitions("commerce")
