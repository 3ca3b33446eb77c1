"""When a failed run is a problem, and when others have done what it failed to do."""

from __future__ import annotations

import gc
import weakref
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from dagster_project.orchestration import diagnosis, undone
from dagster_project.orchestration.diagnosis import failed_runs, standing_failures
from dagster_project.orchestration.problem import Kind, Problem, failed_days_tag
from tests.orchestration import domain_runs
from tests.orchestration.domain_runs import BROKEN, DEFINITIONS, origin_of, run


def runs(instance: dg.DagsterInstance) -> set[str]:
    return {problem.path.removeprefix("/runs/") for problem in failed_runs(instance, "fleet")}


def test_a_failed_run_is_a_problem_until_another_did_what_it_failed_to_do(
    instance: dg.DagsterInstance,
) -> None:
    assert runs(instance) == set()
    failed = run(instance, "both", "seats")
    (problem,) = failed_runs(instance, "fleet")
    assert problem == Problem(
        Kind.RUN, "seats", f"run {failed[:8]}", f"/runs/{failed}", problem.since, (failed,)
    )
    assert list(failed_runs(instance, "weather")) == []
    run(instance, "daily", days=("2013-02-01", "2013-02-02"))
    assert runs(instance) == {failed}
    run(instance)
    assert runs(instance) == set()


def test_runs_of_other_domains_hide_nothing(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "RUNS", 2)
    failed = run(instance, "both", "seats")
    for _ in range(2):
        run(instance, "both", "seats", domain="weather")
    assert runs(instance) == {failed}
    run(instance)
    for _ in range(2):
        run(instance, domain="weather")
    assert runs(instance) == set()


def test_retries_that_did_the_rest_together_make_a_run_good(instance: dg.DagsterInstance) -> None:
    first = run(instance, "both", "planes")
    second = run(instance, "both", "seats", retries=(first, first))
    assert runs(instance) == {first, second}
    run(instance, "both", retries=(first, second), steps=["seats", "seats_seats_counted"])
    assert runs(instance) == set()


def test_what_came_behind_the_step_that_failed_has_to_be_done_too(
    instance: dg.DagsterInstance,
) -> None:
    failed = run(instance, "both", "planes")
    run(instance, "first")
    assert runs(instance) == {failed}
    # By another run than the first: together they did it.
    run(instance, "rest")
    assert runs(instance) == set()


def test_a_run_that_failed_before_its_first_step_is_not_made_good_by_any_other(
    instance: dg.DagsterInstance,
) -> None:
    failed = instance.create_run_for_job(
        DEFINITIONS.resolve_job_def("both"), remote_job_origin=origin_of("both")
    )
    instance.report_run_failed(failed)
    run(instance, "daily", days=("2013-02-01", "2013-02-02"))
    assert runs(instance) == {failed.run_id}
    run(instance)
    assert runs(instance) == set()


def test_a_day_that_failed_is_not_made_good_by_another(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "daily", "visits", days=("2013-02-03", "2013-02-03"))
    run(instance, "daily", days=("2013-02-04", "2013-02-06"))
    (problem,) = failed_runs(instance, "fleet")
    assert problem.name == "visits (2013-02-03)"
    again = run(instance, "daily", "visits", days=("2013-02-03", "2013-02-03"))
    (problem,) = failed_runs(instance, "fleet")
    assert problem.what == f"2 runs, the last {again[:8]}"
    failed = again
    assert runs(instance) == {failed}
    run(instance, "daily", days=("2013-02-02", "2013-02-06"))
    assert runs(instance) == set()


def test_of_a_range_whose_other_days_are_run_again_those_to_blame_are_judged(
    instance: dg.DagsterInstance,
) -> None:
    failed = run(instance, "daily", "visits", days=("2013-02-01", "2013-02-06"))
    instance.add_run_tags(failed, failed_days_tag(failed, ["2013-02-05", "2013-02-02"]))
    (problem,) = failed_runs(instance, "fleet")
    assert problem.name == "visits (2013-02-02, 2013-02-05)"
    for first, last in (("01", "01"), ("03", "04"), ("06", "06")):
        run(instance, "daily", days=(f"2013-02-{first}", f"2013-02-{last}"))
    run(instance, "daily", days=("2013-02-02", "2013-02-02"))
    assert runs(instance) == {failed}
    run(instance, "daily", days=("2013-02-05", "2013-02-05"))
    assert runs(instance) == set()


def test_days_that_nobody_was_blamed_for_have_to_be_done_too(instance: dg.DagsterInstance) -> None:
    # Who was to run them again without the one to blame was killed.
    failed = run(instance, "daily", "visits", days=("2013-02-01", "2013-02-03"))
    instance.add_run_tags(failed, failed_days_tag(failed, ["2013-02-02"]))
    run(instance, "daily", days=("2013-02-02", "2013-02-02"))
    assert runs(instance) == {failed}
    run(instance, "daily", days=("2013-02-03", "2013-02-03"))
    run(instance, "daily", days=("2013-02-01", "2013-02-01"))
    assert runs(instance) == set()


def test_a_run_that_will_be_retried_is_judged_by_its_retry(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = run(instance, "both", "planes")
    instance.add_run_tags(failed, {"dagster/will_retry": "true"})
    assert runs(instance) == set()
    # Nobody did: the backfill that it is of was canceled.
    monkeypatch.setattr(diagnosis, "RETRIED_WITHIN", timedelta(0))
    assert runs(instance) == {failed}
    again = run(instance, "both", "planes", retries=(failed, failed))
    instance.add_run_tags(failed, {"dagster/auto_retry_run_id": again})
    assert runs(instance) == {again}


def standing(instance: dg.DagsterInstance) -> set[str]:
    """The runs that stand failed, those that are one problem by the same name too."""
    return {failure.run.run_id for failure in standing_failures(instance, "fleet")}


def test_a_success_of_some_of_a_steps_assets_is_none_of_its_others(
    instance: dg.DagsterInstance,
) -> None:
    failed = run(instance, "parts", "engines")
    run(instance, "parts", assets=["wings"])
    assert standing(instance) == {failed}
    run(instance, "parts", assets=["engines"])
    assert standing(instance) == set()


def test_what_a_step_made_before_it_failed_need_not_be_made_again(
    instance: dg.DagsterInstance,
) -> None:
    failed = run(instance, "parts", "wings")
    run(instance, "rest")
    assert standing(instance) == {failed}
    run(instance, "parts", assets=["wings"])
    # Its check of the engines was not reached.
    assert standing(instance) == {failed}
    run(instance, "parts", assets=["engines"])
    assert standing(instance) == set()


def test_a_later_run_that_failed_elsewhere_has_done_what_it_did(
    instance: dg.DagsterInstance,
) -> None:
    run(instance, "both", "planes")
    second = run(instance, "both", "seats")
    run(instance, "rest")
    assert second not in standing(instance)
    assert standing(instance) == set()


def test_a_retry_of_a_part_is_none_of_the_whole(instance: dg.DagsterInstance) -> None:
    whole = run(instance, "parts", "engines")
    # In the UI: the wings alone, anew, of the same root; and that was retried.
    part = run(instance, "parts", "wings", assets=["wings"], retries=(whole, whole), resumed=False)
    run(instance, "parts", assets=["wings"], retries=(whole, part))
    assert standing(instance) == {whole}
    # By way of a retry that failed, too.
    second = run(instance, "parts", "engines", retries=(whole, whole))
    assert standing(instance) == {whole, second}
    run(instance, "parts", retries=(whole, second))
    assert standing(instance) == set()


def test_a_day_that_a_run_was_blamed_for_is_not_that_of_one_that_executes_it_again(
    instance: dg.DagsterInstance,
) -> None:
    failed = run(instance, "daily", "visits", days=("2013-02-01", "2013-02-03"))
    tag = failed_days_tag(failed, ["2013-02-02"])
    instance.add_run_tags(failed, tag)
    again = run(instance, "daily", "visits", days=("2013-02-01", "2013-02-03"))
    instance.add_run_tags(again, tag)
    names = {problem.name for problem in failed_runs(instance, "fleet")}
    assert names == {"visits (2013-02-02)", "visits (2013-02-01 to 2013-02-03)"}


def test_a_step_that_ends_after_its_run_was_marked_as_failed_is_seen(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = run(instance, "both", "seats")
    assert standing(instance) == {failed}
    assert failed not in undone._ENDED
    monkeypatch.setattr(undone, "_SETTLED", 0)
    assert standing(instance) == {failed}
    assert failed in undone._ENDED


def test_an_instance_that_was_looked_at_is_not_kept(tmp_path: Path) -> None:
    # Dagster makes one for each tick of a sensor: kept, the server runs out of connections.
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run(instance, "both", "seats")
        assert len(runs(instance)) == 1
        seen = weakref.ref(instance)
    del instance
    gc.collect()
    assert seen() is None


def test_some_steps_of_a_run_anew_are_not_all_of_it(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "both", "planes")
    # As the UI does for steps that were selected: the same job, and no tag that says so.
    run(instance, "both", steps=["planes"])
    assert runs(instance) == {failed}
    run(instance, "both", steps=["planes"], retries=(failed, failed))
    assert runs(instance) == {failed}
    run(instance, "both")
    assert runs(instance) == set()


def test_what_was_done_before_the_failure_has_not_mended_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run that made the planes before, and ended after, the other one failed at them.
    failures: list[str] = []
    monkeypatch.setattr(
        domain_runs, "while_seats", lambda: failures.append(run(instance, "first", "planes"))
    )
    run(instance, "both")
    assert runs(instance) == set(failures)
    monkeypatch.setattr(domain_runs, "while_seats", lambda: None)
    run(instance, "first")
    assert runs(instance) == set()


def test_a_tag_of_a_retry_that_was_inherited_hides_nothing(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "both", "seats")
    again = run(instance, "both", retries=(failed, failed))
    instance.add_run_tags(failed, {"dagster/auto_retry_run_id": again})
    assert runs(instance) == set()
    by_hand = run(instance, "both", "seats")
    instance.add_run_tags(by_hand, {"dagster/auto_retry_run_id": again})
    assert runs(instance) == {by_hand}


def test_a_run_whose_steps_have_all_succeeded_has_left_nothing(
    instance: dg.DagsterInstance,
) -> None:
    done = instance.get_run_by_id(run(instance))
    assert done
    # It was killed before it could say so.
    instance.report_run_failed(done)
    assert runs(instance) == set()


def test_a_range_is_made_good_by_runs_of_its_parts(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "daily", "visits", days=("2013-02-01", "2013-02-06"))
    run(instance, "daily", days=("2013-02-01", "2013-02-03"))
    assert runs(instance) == {failed}
    run(instance, "daily", days=("2013-02-04", "2013-02-06"))
    assert runs(instance) == set()


def test_many_later_runs_do_not_push_out_what_mended_a_failure(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "RUNS", 2)
    run(instance, "both", "seats")
    run(instance, "rest")
    for _ in range(3):
        run(instance, "first")
    assert runs(instance) == set()
    monkeypatch.setattr(diagnosis, "_MENDED", {})
    assert runs(instance) == set()


def test_of_failures_of_one_name_all_are_remembered(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(instance, "parts", "engines", assets=["engines"])
    second = run(instance, "parts", "wings", assets=["wings"])
    (problem,) = failed_runs(instance, "fleet")
    assert problem.runs == (first, second)
    monkeypatch.setattr(diagnosis, "LOOKED_BACK", timedelta(0))
    run(instance, "parts", assets=["wings"])
    (problem,) = failed_runs(instance, "fleet", told=problem.runs)
    assert problem.runs == (first,)


def test_what_has_been_deleted_nobody_has_to_make(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "both", "seats")
    names = {problem.runs[0] for problem in failed_runs(instance, "fleet", known={"seats"})}
    assert names == {failed}
    assert list(failed_runs(instance, "fleet", known={"planes"})) == []


def test_what_was_done_while_a_run_went_on_that_had_failed_at_it_counts(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The engines fail first; while the seats are made, another run makes them.
    def meanwhile() -> None:
        monkeypatch.setattr(domain_runs, "while_seats", lambda: None)
        broken = set(BROKEN)
        run(instance, "parts")
        BROKEN.update(broken)

    monkeypatch.setattr(domain_runs, "while_seats", meanwhile)
    failed = run(instance, "engines_and_seats", "engines")
    assert runs(instance) == set(), failed
