"""Reaching the package index: as the user told pip to, and what to do when it cannot be done.

Only the standard library: the set-up script uses this module before anything is installed.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

#: What pip calls a setting, and the variable by which uv is told the same.
_PIP_TO_UV = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
#: pip's own order: the environment wins over the section of a command, that over [global].
_SECTIONS = ("global", "install", ":env:")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_NO_NETWORK = re.compile(
    r"error sending request|failed to fetch|dns error|name resolution|client error|"
    r"connection (?:refused|reset|broken|error)|newconnectionerror|timed out|network is|"
    r"could not fetch url|no matching distribution|from versions: none",
    re.IGNORECASE,
)


def pip_settings(listing: str) -> dict[str, str]:
    """What pip would use, by the name of the setting, from the lines of `pip config list`."""
    found: dict[str, str] = {}
    lines = [line.partition("=") for line in listing.splitlines()]
    for section in _SECTIONS:
        for name, _, value in lines:
            if name.startswith(f"{section}.") and value:
                found[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    return found


def uv_environment(python: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment to run uv in: the index and certificate that pip was configured with.

    uv reads none of pip's configuration, so that a mirror set for pip would be ignored. What is set
    for uv itself stays as it is. `python` is an interpreter that has pip; without pip only the
    variables count.
    """
    environment = dict(os.environ if environ is None else environ)
    command = [str(python), "-I", "-m", "pip", "config", "list"]
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, errors="replace"
    )
    settings = pip_settings(answer.stdout) if answer.returncode == 0 else {}
    if environment.get("PIP_INDEX_URL"):
        settings["index-url"] = environment["PIP_INDEX_URL"]
    told = {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environment.keys()
    for name, variable in _PIP_TO_UV.items():
        if name in settings and variable not in environment and not (name == "index-url" and told):
            environment[variable] = settings[name]
    # These would lead uv to another environment than the one it is given.
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_SYSTEM_PYTHON", "PYTHONHOME"):
        environment.pop(variable, None)
    return environment


def last_lines(output: str, count: int = 12) -> str:
    """The end of an installer's output, indented, without the credentials of any address."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    return "\n".join(
        f"  {line}" for line in _CREDENTIALS.sub("****", "\n".join(lines[-count:])).splitlines()
    )


def advice(output: str) -> str:
    """What to do about a failed installation, by what the installer printed."""
    if "No space left" in output or "Disk quota exceeded" in output:
        return (
            "No disk space is left. Free some (uv's downloads can lie on another disk: set "
            "UV_CACHE_DIR), then run the same command again."
        )
    if "ash mismatch" in output or "DO NOT MATCH THE HASHES" in output:
        return (
            "The index sent a file other than the one that was locked. If you use a mirror, it is "
            "at fault; do not go on with that file."
        )
    if "ensurepip" in output:
        return (
            "This Python was installed without its venv module: install it (on Debian and Ubuntu "
            "`apt install python3-venv`), then run the same command again."
        )
    if (
        "no wheels with a matching" in output
        or "building source distributions is disabled" in output
    ):
        return (
            "A locked package has no wheel for this system. Linux (glibc) and macOS on x86-64 and "
            "arm64 have them all."
        )
    if _NO_NETWORK.search(output):
        return (
            "The package index was not reached. Check the network; HTTPS_PROXY names a proxy, "
            "PIP_INDEX_URL a mirror. Then run the same command again: what was downloaded is kept."
        )
    return "Mend what the lines above say, then run the same command again."
