"""How a run's steps are executed: side by side, in processes forked from one that is loaded.

A step must not pay for imports, and must not inherit a connection: so nothing that a run's own
process does before its steps opens one, and each step makes its resources anew.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from importlib import import_module

import dagster as dg
from dagster._core.definitions.executor_definition import multiple_process_executor_requirements
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._core.executor import multiprocess
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext
from dagster._core.executor.multiprocess import MultiprocessExecutor

from dagster_project.orchestration.pools import set_limits
from dagster_project.orchestration.run_process import PROCESS, RunProcess
from dagster_project.orchestration.storage import wait_for_database
from dagster_project.parent import interrupt_with_parent
from dagster_project.quality.server import validation_server
from dagster_project.settings import get_settings
from dagster_project.transformation import invocation

#: Steps of these prefixes run dbt.
DBT_STEPS = ("transform_", "incremental_")
#: Steps of these prefixes bring data.
SOURCE_STEPS = ("airbyte_", "load_")
#: What steps import, by the prefix of their names: loaded before they are forked. None of these
#: modules opens a connection or starts a thread when it is imported.
PRELOADED: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (DBT_STEPS, ("psycopg",)),
    (
        SOURCE_STEPS,
        (
            # First, as it says how pyarrow is to allocate memory.
            "dagster_project.warehouse.arrays",
            *("pyarrow.parquet", "pyarrow.csv", "adbc_driver_postgresql", "obstore.store"),
        ),
    ),
    # pyarrow imports it when it makes arrays of records.
    (("airbyte_",), ("pandas",)),
)
#: Seconds between two looks whether a step that waits may start.
_ASKED_EVERY = 0.2
#: Steps of this prefix run expectations.
EXPECTATIONS_STEP = "expect_"


def preload(steps: Iterable[str] | None = None) -> None:
    """Import what these steps (None: steps of every kind) import, so that their forks have it.

    Whatever is loaded by then is exempt from garbage collection: a fork that collects would write
    to all of it, and so copy it. Importing takes a quarter less without collections, too.
    """
    gc.disable()
    names = None if steps is None else tuple(steps)
    for prefixes, modules in PRELOADED:
        if names is None or any(name.startswith(prefixes) for name in names):
            for module in modules:
                import_module(module)
    if names is None or any(name.startswith(DBT_STEPS) for name in names):
        invocation.preload()
    gc.freeze()
    gc.enable()


class ForkingExecutor(MultiprocessExecutor):
    """Dagster's multiprocess executor, with the run's validations in one process of their own.

    Where data have to come first, the first steps wait for no other imports than their own: dbt's
    and Great Expectations' are paid while they are at work.
    """

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        wait_for_database()
        run, instance = plan_context.dagster_run, plan_context.instance
        if RunProcess.of(run) is None:  # one that Dagster's own launcher started
            instance.add_run_tags(run.run_id, {PROCESS: str(RunProcess.current(run.run_id))})
        set_limits(instance)
        _end_steps_with_run()
        steps = execution_plan.step_keys_to_execute
        first = [key for key in steps if key.startswith(SOURCE_STEPS)]
        with ExitStack() as stack:

            def prepare() -> None:
                if any(key.startswith(EXPECTATIONS_STEP) for key in steps):
                    stack.enter_context(validation_server())
                preload(steps)

            def give_back() -> None:
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)

            # Dagster leaves it to a daemon, or a person, if steps were ended from without.
            stack.callback(give_back)
            preload(first) if first else prepare()
            waits = bool(first)
            for event in super().execute(plan_context, execution_plan):
                yield event
                if waits and event.event_type is DagsterEventType.STEP_START:
                    waits = False
                    prepare()


class _PatientExecution(ActiveExecution):
    """Waits where Dagster's multiprocess executor would ask again at once, for as long as it takes.

    That is where each step waits for a slot of its pool, or to be tried again.
    """

    def get_steps_to_execute(self, limit: int | None = None) -> Sequence[ExecutionStep]:
        steps = super().get_steps_to_execute(limit)
        claims = self._instance_concurrency_context
        waits = self._waiting_to_retry or (claims and claims.has_pending_claims())
        if waits and not steps and not self._in_flight:
            time.sleep(_ASKED_EVERY)
        return steps


# The executor has no other place for it.
multiprocess.ActiveExecution = _PatientExecution  # type: ignore[attr-defined]


@cache
def _end_steps_with_run() -> None:
    """Have the steps, which this process forks, interrupted when it ends, however that happens.

    Else those of a run that was killed worked on, beside those of the run that is started for it.
    """
    run = os.getpid()

    def in_child() -> None:
        if os.getppid() == run:  # not what a step forks
            interrupt_with_parent()

    os.register_at_fork(after_in_child=in_child)


def _start_method() -> str:
    """Forking is safe here on Linux; elsewhere system libraries may have started threads."""
    return "fork" if sys.platform == "linux" else "spawn"


@dg.executor(
    name="forking",
    config_schema={
        "max_concurrent": dg.Field(
            int,
            is_required=False,
            description="Steps side by side; MESH_PARALLEL_STEPS or the CPU count if unset.",
        )
    },
    requirements=multiple_process_executor_requirements(),
)
def forking_executor(init_context: InitExecutorContext) -> Executor:
    """Runs each step in a process forked from the run's own."""
    configured = init_context.executor_config.get("max_concurrent")
    steps = configured or get_settings().parallel_steps or os.cpu_count() or 1
    return ForkingExecutor(
        retries=RetryMode.ENABLED,
        max_concurrent=int(steps),  # type: ignore[call-overload]
        start_method=_start_method(),
    )
