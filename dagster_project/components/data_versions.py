"""Which data version partitions have that a run found to be as they were.

Dagster notes one version for all partitions of a run. If that of the run were noted, partitions in
which nothing changed would seem to have changed, as each was noted by another run, of other
partitions, and what is made of them would be asked for.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

from collections import Counter
from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG


def version_before(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Sequence[str]
) -> str | None:
    """The data version that most of these partitions have; None if Dagster knows of none."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG], list(partitions)
    )
    versions = Counter(each[DATA_VERSION_TAG] for each in tags.values() if DATA_VERSION_TAG in each)
    return versions.most_common(1)[0][0] if versions else None
