"""Runs the reference pipelines of a deployment, over GraphQL, and says how they went.

    python3 deploy/kind/pipelines.py http://127.0.0.1:3000

The standard library is all that it uses. Exit code 1 if a run failed, or did not end in time.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from typing import Any

#: In the order of what depends on what. `flights` is by files: `mesh replay` drops them.
DOMAINS = ("fleet", "weather", "commerce")
LOADED_WITHIN, ENDED_WITHIN = 300.0, 1800.0

LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
LAUNCH = """mutation ($domain: String!, $job: String!) { launchRun(executionParams: {selector: {
    repositoryLocationName: $domain, repositoryName: "__repository__", jobName: $job}}) {
        __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUN = """query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"""


def ask(url: str, query: str, **variables: Any) -> dict[str, Any]:
    """What GraphQL answers. Raises OSError while nobody does."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(  # noqa: S310 - the address is the caller's
        f"{url}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    if "errors" in found:
        raise RuntimeError(json.dumps(found["errors"]))
    data: dict[str, Any] = found["data"]
    return data


def wait_for_locations(url: str) -> None:
    """Until all are loaded: a launch before that can leave a run that never starts."""
    limit = time.monotonic() + LOADED_WITHIN
    while True:
        try:
            entries = ask(url, LOCATIONS)["workspaceOrError"]["locationEntries"]
            states = {each["name"]: each["locationOrLoadError"] or {} for each in entries}
        except (OSError, urllib.error.URLError) as error:
            states = {"the webserver": {"message": str(error)}}
        broken = {n: s for n, s in states.items() if s.get("__typename") != "RepositoryLocation"}
        if states and not broken:
            return
        if time.monotonic() > limit:
            raise SystemExit(f"not loaded in {LOADED_WITHIN:.0f} s: {broken}")
        time.sleep(2)


def main() -> int:
    """Run the pipelines one after the other."""
    url = sys.argv[1].rstrip("/")
    wait_for_locations(url)
    failed = 0
    for domain in DOMAINS:
        began = time.monotonic()
        launched = ask(url, LAUNCH, domain=domain, job=f"{domain}_pipeline")["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise SystemExit(f"{domain}: {launched}")
        run, status = launched["run"]["runId"], ""
        while status not in {"SUCCESS", "FAILURE", "CANCELED"}:
            if time.monotonic() > began + ENDED_WITHIN:
                raise SystemExit(f"{domain}: the run {run} is {status} after {ENDED_WITHIN:.0f} s")
            time.sleep(2)
            status = ask(url, RUN, run=run)["runOrError"]["status"]
        failed += status != "SUCCESS"
        print(f"{domain}: {status} in {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
