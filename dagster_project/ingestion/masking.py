"""Keeping secrets out of what a connector prints: errors, logs and traces show `***` instead."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus

import orjson

from dagster_project.ingestion.declaration import Connection
from dagster_project.settings import PREFIX

#: Shorter values are masked only where they stand alone: `1` is part of every other number.
_DISTINCTIVE = 4


def secrets_of(connection: Connection) -> set[str]:
    """The values that the connection's configuration takes from the environment.

    The platform's own settings (MESH_) are none: a connector is given no secret of the platform.
    """
    names = {name for name in connection.needs() if not name.startswith(PREFIX)}
    return {os.environ[name] for name in names if os.environ.get(name)}


def _spellings(secret: str) -> set[str]:
    """How a secret can appear: as it is, line by line, within JSON, within a URL."""
    forms = {secret, orjson.dumps(secret).decode()[1:-1], repr(secret)[1:-1]}
    forms |= {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    # A private key is printed a line at a time.
    forms |= {line.strip() for line in secret.splitlines() if len(line.strip()) >= _DISTINCTIVE}
    return forms


def masking(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that replaces the secrets in a text."""
    forms = {form for secret in secrets for form in _spellings(secret) if form.strip()}
    if not forms:
        return lambda text: text
    patterns = [
        re.escape(form) if len(form) >= _DISTINCTIVE else rf"(?<!\w){re.escape(form)}(?!\w)"
        # The longest first: one secret can begin with another.
        for form in sorted(forms, key=len, reverse=True)
    ]
    pattern = re.compile("|".join(patterns))
    return lambda text: pattern.sub("***", text)
