"""Grids that are too large for one job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_ml.errors import PlanError
from health_ml.planning.dimensions import Choice
from health_ml.planning.large_grids import split_plan
from health_ml.planning.plan import JobPlan
from health_ml.planning.search_space import Sampling, SearchSpace


def grid(*sizes: int, **options: object) -> JobPlan:
    dimensions = tuple((f"p{index}", Choice(tuple(range(size)))) for index, size in enumerate(sizes))
    return JobPlan("models.Net", ("--model=models.Net",), search_space=SearchSpace(dimensions, **options))  # type: ignore[arg-type]


def trials(plan: JobPlan) -> list[tuple[tuple[str, object], ...]]:
    assert plan.search_space is not None
    return [trial.values for trial in plan.search_space.grid_trials()]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 40))
def test_the_parts_have_every_trial_once(sizes: list[int], most: int) -> None:
    plan = grid(*sizes)
    parts = split_plan(plan, most)
    found = [trial for part in parts for trial in trials(part)]
    assert sorted(found) == sorted(trials(plan))
    assert all(len(trials(part)) <= most for part in parts)
    assert len(parts) <= -(-len(found) // most) * 2 ** len(sizes), "parts are about as large as they may be"


def test_parts_are_named_and_share_what_may_run_at_the_same_time() -> None:
    parts = split_plan(grid(5, 4, max_concurrent=7), 8)
    assert [part.display_name for part in parts] == ["Net (1 of 3)", "Net (2 of 3)", "Net (3 of 3)"]
    spaces = [part.search_space for part in parts]
    assert [space.max_concurrent for space in spaces if space] == [3, 2, 2]
    assert [space.trial_count for space in spaces if space] == [8, 8, 4]


def test_too_few_at_the_same_time() -> None:
    with pytest.raises(PlanError, match=r"20 trials need 3 jobs, .*\n?.*Set --max_concurrent_trials=3 or more"):
        split_plan(grid(5, 4, max_concurrent=2), 8)


@pytest.mark.parametrize(
    "plan",
    [grid(5, 4, max_trials=3), grid(2, 4), grid(5, 4, sampling=Sampling.RANDOM), JobPlan("Net", ())],
    ids=["limited", "small", "random", "single"],
)
def test_other_plans_stay_one_job(plan: JobPlan) -> None:
    assert split_plan(plan, 8) == (plan,)
    assert split_plan(plan, None) == (plan,)
