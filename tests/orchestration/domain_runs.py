"""Runs of a domain's, that fail where a test wants them to."""

from collections.abc import Collection, Iterator, Sequence

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_run
from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin

from dagster_project.orchestration.runs import location_origin

BROKEN: set[str] = set()


def while_seats() -> None:
    """What happens meanwhile: a test puts something in its place."""


DAYS = dg.DailyPartitionsDefinition("2013-02-01", end_date="2013-02-10")


@dg.asset
def planes() -> None:
    assert "planes" not in BROKEN


@dg.asset(deps=[planes])
def seats() -> None:
    while_seats()
    assert "seats" not in BROKEN


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def visits() -> None:
    assert "visits" not in BROKEN


@dg.multi_asset(
    specs=[dg.AssetSpec("engines", skippable=True), dg.AssetSpec("wings", skippable=True)],
    check_specs=[dg.AssetCheckSpec("engines_counted", asset="engines")],
    can_subset=True,
)
def parts(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """Fails at the first that is broken, having made those before it."""
    for key in sorted(context.selected_asset_keys):
        assert key.to_user_string() not in BROKEN
        yield dg.MaterializeResult(asset_key=key)
    for check in context.selected_asset_check_keys:
        yield dg.AssetCheckResult(
            asset_key=check.asset_key, check_name=check.name, passed=check.name not in BROKEN
        )


@dg.asset_check(asset=planes, blocking=True)
def planes_there() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed="there" not in BROKEN, metadata={"unexpected rows": 7}, description=None
    )


@dg.asset_check(asset=seats)
def seats_counted() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed="counted" not in BROKEN,
        severity=dg.AssetCheckSeverity.WARN,
        description="<none> & nothing",
    )


DEFINITIONS = dg.Definitions(
    assets=[planes, seats, visits, parts],
    asset_checks=[planes_there, seats_counted],
    jobs=[
        dg.define_asset_job("both", dg.AssetSelection.assets(planes, seats)),
        dg.define_asset_job("first", dg.AssetSelection.assets(planes)),
        dg.define_asset_job("rest", dg.AssetSelection.assets(seats)),
        dg.define_asset_job("engines_and_seats", dg.AssetSelection.assets("engines", "seats")),
        dg.define_asset_job("parts", dg.AssetSelection.assets("engines", "wings")),
        dg.define_asset_job("daily", dg.AssetSelection.assets(visits)),
    ],
    executor=dg.in_process_executor,
)
KEYS = DEFINITIONS.resolve_asset_graph().asset_check_keys


def origin_of(job: str, domain: str = "fleet") -> RemoteJobOrigin:
    """The origin of a job of a domain's code location."""
    origin = RemoteRepositoryOrigin(location_origin(domain), "__repository__")
    return origin.get_job_origin(job)


def run(
    instance: dg.DagsterInstance,
    job: str = "both",
    *broken: str,
    days: tuple[str, str] = ("", ""),
    retries: tuple[str, str] | None = None,
    domain: str = "fleet",
    assets: Collection[str] = (),
    resumed: bool = True,
    steps: Sequence[str] = (),
) -> str:
    """A run of a domain's in which these are broken; of some `assets`, if not of all of the job.

    It `retries` one, of which the first is: what that one had not done, if it `resumed` it.
    """
    BROKEN.clear()
    BROKEN.update(broken)
    definition = DEFINITIONS.resolve_job_def(job)
    chosen = frozenset(dg.AssetKey(name) for name in assets) or None
    if chosen:
        definition = definition.get_subset(asset_selection=chosen)
    tags = {}
    if days[0]:
        tags["dagster/asset_partition_range_start"] = days[0]
        tags["dagster/asset_partition_range_end"] = days[1]
    first, parent = retries or (None, None)
    if retries:
        tags |= {"dagster/root_run_id": retries[0], "dagster/parent_run_id": retries[1]}
        if resumed:
            tags["dagster/is_resume_retry"] = "true"
    plan = create_execution_plan(definition, step_keys_to_execute=[*steps] or None)
    created = instance.create_run_for_job(
        definition,
        execution_plan=plan,
        tags=tags,
        remote_job_origin=origin_of(job, domain),
        root_run_id=first,
        parent_run_id=parent,
        asset_selection=chosen,
    )
    execute_run(InMemoryJob(definition), created, instance)
    return created.run_id
