"""Which domain a component's folder belongs to."""

from __future__ import annotations

from pathlib import Path

from dagster_project.failures import DeclarationError
from dagster_project.settings import DEFS


def domain_of(path: Path) -> str:
    """The domain whose folder holds `path`. Raises DeclarationError for a path outside defs/."""
    try:
        parts = Path(path).resolve().relative_to(DEFS).parts
    except ValueError:
        raise DeclarationError(
            f"{path} is not under {DEFS}: a component belongs to a domain"
        ) from None
    return parts[0]
