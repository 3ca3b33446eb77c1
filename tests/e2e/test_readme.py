"""The commands that the README gives, as it gives them, after a first run."""

from __future__ import annotations

import shlex

import pytest

from tests.e2e.platform import Ended, Platform
from tests.readme import MESH, commands


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith(MESH)])
def test_a_command_of_the_readme_succeeds(command: str, platform: Platform, first_run: Ended):
    ended = platform.mesh(*shlex.split(command)[1:])
    assert ended.code == 0, f"{ended.out[-2000:]}\n{ended.err[-2000:]}"
    assert ended.out
    if " down" in command:
        assert platform.mesh("up").code == 0
