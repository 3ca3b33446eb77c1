"""What the README tells a reader to type and to write."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from dagster_project.settings import PROJECT

#: How the README calls the command line.
MESH = ".venv/bin/mesh "
TEXT = (PROJECT / "README.md").read_text()
_BLOCK = re.compile(r"^```(\w+) ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """What a reader is told to write."""

    path: str
    #: Where in the file: all of it if empty, its `end`, or before the line that is this.
    place: str
    text: str


def commands() -> list[str]:
    """Every command of the blocks that are to be typed, without comments."""
    lines = [
        line for kind, _, text in _BLOCK.findall(TEXT) if kind == "sh" for line in text.splitlines()
    ]
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def python() -> list[str]:
    """The blocks of Python that name no file."""
    return [text for kind, rest, text in _BLOCK.findall(TEXT) if kind == "python" and not rest]


def examples() -> dict[str, Example]:
    """The blocks that name a file, by that name."""
    named = [(rest.split(" ", 1), text) for kind, rest, text in _BLOCK.findall(TEXT) if rest]
    return {where[0]: Example(where[0], "".join(where[1:]), text) for where, text in named}
