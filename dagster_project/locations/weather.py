"""The code location of the domain weather."""

from __future__ import annotations

import dagster as dg

from dagster_project.locations.location import domain_definitions


@dg.definitions
def defs() -> dg.Definitions:
    """All that weather defines."""
    return domain_definitions("weather")
