"""What dbt says of its builds, kept in the lake by run, for whatever reads dbt's artifacts.

`_dbt/<run id>/<step>-<build>/run_results.json`, which names nodes of the manifest that lies under
`_dbt/manifests/<digest>.json`: kept once for each version of the project, not with each run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson

from dagster_project.lake.store import Lake

#: Where the artifacts lie in the lake. A domain's name begins with a letter.
PREFIX = "_dbt"
RUN_RESULTS = "run_results.json"


def keep(lake: Lake, run_id: str, step: str, target: Path, manifest: Path) -> str | None:
    """Keep what a build has left in its folder `target`; the key, or None if it left nothing.

    Raises LakeError (TransientLakeError if the lake is away) if it could not be kept.
    """
    results = target / RUN_RESULTS
    if not results.exists():
        return None
    content = manifest.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    described = f"{PREFIX}/manifests/{digest}.json"
    if not any(item.key == described for item in lake.list(f"{PREFIX}/manifests")):
        lake.create(described, content)
    key = f"{PREFIX}/{run_id}/{step}-{target.name}/{RUN_RESULTS}"
    said = orjson.loads(results.read_bytes())
    said["metadata"]["env"] = {**said["metadata"].get("env", {}), "manifest": described}
    lake.create(key, orjson.dumps(said))
    return key
