"""Pools: how many steps, of all runs, may take of something at once.

A step has one. Each connection's syncs have one of their own, or one that connections to the same
source system share (`pool` of its declaration); each dbt step has one, so that two runs do not
build the same tables at once; loads and expectations share the warehouse's. A step that finds no
slot waits; its slot is freed when its run is gone. Limits are shown, and changed, in the UI under
Deployment, Concurrency.
"""

from __future__ import annotations

import dagster as dg

#: The pool of steps that load into the warehouse or scan it.
WAREHOUSE = "warehouse"
#: Slots of pools that have more than the instance's default, which is one.
_LIMITS = {WAREHOUSE: 8}


def source_pool(domain: str, connection: str) -> str:
    """The pool of a connection that shares none."""
    return f"sync_{domain}_{connection}"


def set_limits(instance: dg.DagsterInstance) -> None:
    """Give pools their limits, but for those that a person has given one."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    chosen = {pool.name for pool in storage.get_pool_limits() if not pool.from_default}
    for name in _LIMITS.keys() - chosen:
        storage.set_concurrency_slots(name, _LIMITS[name])
