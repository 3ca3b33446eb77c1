"""An asset whose one heavy step is a pod of its own, with the resources that it needs.

The rest of its run stays where it is. On a laptop the same command is a process. In a domain's
folder it would be an asset as any other; see "Heavy steps" in deploy/README.md.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.
import sys

import dagster as dg

#: What the pod does. In a domain it is a module of its own: ["python", "-m", "…"].
COMMAND = """
from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    rows = sum(range(pipes.extras["upto"]))
    pipes.log.info("summed")
    pipes.report_asset_materialization(metadata={"sum": rows})
"""


@dg.asset(key_prefix="fleet", kinds={"python"})
def summed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The sum of many numbers, which would need 8 GiB if it were a model to be trained."""
    from dagster_project.orchestration.step_pods import run_in_pod

    return run_in_pod(
        context,
        [sys.executable, "-c", COMMAND],
        resources={
            "requests": {"cpu": "4", "memory": "8Gi"},
            "limits": {"memory": "8Gi"},
        },
        extras={"upto": 1_000},
    ).get_materialize_result()
