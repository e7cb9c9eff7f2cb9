from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.sampling import Outcome, Sampler, create_sampler
from health_ml.planning.search_space import SearchSpace, TrialParameters

SWEEP = "l_rate=loguniform(1e-5,1e-1) width=int(1,64) name=a,b scale=normal(0,1) step=quniform(0,1,0.25)"


def space(sweep: str = SWEEP, **settings: Any) -> SearchSpace:
    built = build_search_space(
        FanOutOptions(sweep=sweep, settings={"max_trials": 12, "primary_metric": "val/loss", **settings})
    )
    assert built is not None
    return built


def loss(trial: TrialParameters) -> float:
    return abs(math.log10(dict(trial.values)["l_rate"]) + 2)  # type: ignore[arg-type]


def run(sampler: Sampler, *, outcomes: list[Outcome] | None = None, count: int = 1000) -> list[TrialParameters]:
    """Returns the trials of a search that runs one after the other."""
    trials = []
    while len(trials) < count and (trial := sampler.ask()) is not None:
        trials.append(trial)
        sampler.tell(trial, loss(trial))
        if outcomes is not None:
            outcomes.append(Outcome(trial, loss(trial)))
    return trials


def test_grid_comes_in_order_and_ends() -> None:
    sampler = create_sampler(space("a=1,2 b=x,y", sampling="grid"))
    trials = [sampler.ask() for _ in range(5)]
    assert [trial and trial.arguments() for trial in trials] == [
        ("--a=1", "--b=x"), ("--a=1", "--b=y"), ("--a=2", "--b=x"), ("--a=2", "--b=y"), None,
    ]  # fmt: skip


def test_grid_is_taken_up_again() -> None:
    grid = space("a=1..4", sampling="grid")
    started = [trial for trial in grid.grid_trials() if trial.index in (0, 2)]
    sampler = create_sampler(grid, started=started)
    assert [sampler.ask(), sampler.ask(), sampler.ask()] == [
        TrialParameters(1, (("a", 2),)),
        TrialParameters(3, (("a", 4),)),
        None,
    ]


@pytest.mark.parametrize("sampling", ["random", "bayesian"])
def test_same_seed_same_trials(sampling: str) -> None:
    searched = space(sampling=sampling, sampling_seed=1)
    first = run(create_sampler(searched))
    assert len(first) == 12
    assert [trial.index for trial in first] == list(range(12))
    assert first == run(create_sampler(searched))
    assert first != run(create_sampler(space(sampling=sampling, sampling_seed=2)))
    json.dumps([trial.to_json() for trial in first])


@pytest.mark.parametrize("sampling", ["random", "bayesian"])
def test_values_lie_in_the_space(sampling: str) -> None:
    for trial in run(create_sampler(space(sampling=sampling))):
        values: dict[str, Any] = dict(trial.values)
        assert list(values) == ["l_rate", "width", "name", "scale", "step"]
        assert 1e-5 <= values["l_rate"] <= 0.1
        assert isinstance(values["width"], int)
        assert 1 <= values["width"] <= 64
        assert values["name"] in ("a", "b")
        assert abs(values["scale"]) < 7
        assert values["step"] in (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("sampling", ["random", "bayesian"])
@pytest.mark.parametrize("done", [1, 11])
def test_search_is_taken_up_again_as_if_it_had_never_stopped(sampling: str, done: int) -> None:
    searched = space("l_rate=loguniform(1e-5,1e-1) width=int(1,64) name=a,b", sampling=sampling, max_trials=14)
    outcomes: list[Outcome] = []
    whole = run(create_sampler(searched), outcomes=outcomes)
    again = create_sampler(searched, started=whole[:done], outcomes=outcomes[:done])
    assert run(again) == whole[done:]


def test_running_trials_of_an_interrupted_search_can_still_report() -> None:
    searched = space(sampling="bayesian")
    first = create_sampler(searched)
    started = [trial for trial in (first.ask() for _ in range(3)) if trial is not None]
    again = create_sampler(searched, started=started, outcomes=[Outcome(started[1], 1.0)])
    again.tell(started[0], 0.5)
    again.tell(started[2], None)
    following = again.ask()
    assert following is not None
    assert following.index == 3


@pytest.mark.parametrize("sampling", ["random", "bayesian"])
def test_no_combination_comes_twice_until_all_were_tried(sampling: str) -> None:
    searched = space("width=1..4 name=a,b,c", sampling=sampling, max_trials=50)
    sampler = create_sampler(searched)
    trials: list[TrialParameters] = []
    while (trial := sampler.ask()) is not None:
        trials.append(trial)
        sampler.tell(trial, 1.0)
    assert {trial.values for trial in trials} == {trial.values for trial in searched.grid_trials()}
    assert [trial.index for trial in trials] == list(range(12))


def test_bayesian_search_learns() -> None:
    searched = space("l_rate=loguniform(1e-5,1e-1)", sampling="bayesian", max_trials=40)
    trials = run(create_sampler(searched))
    of_random_values = 1.25  # the mean of |x + 2| for x from -5 to -1
    assert sum(map(loss, trials[-20:])) / 20 < of_random_values / 2


def test_bayesian_search_maximizes() -> None:
    searched = space("x=uniform(0,1)", sampling="bayesian", max_trials=40, goal="maximize")
    sampler = create_sampler(searched)
    found: list[float] = []
    while (trial := sampler.ask()) is not None:
        value = dict(trial.values)["x"]
        assert isinstance(value, float)
        found.append(value)
        sampler.tell(trial, value)
    assert sum(found[-10:]) / 10 > 0.8


def test_failed_trials_do_not_stop_a_search() -> None:
    sampler = create_sampler(space(sampling="bayesian", max_trials=15))
    for number in range(15):
        trial = sampler.ask()
        assert trial is not None
        sampler.tell(trial, [None, math.nan, 1.0][number % 3])
    assert sampler.ask() is None


def test_grids_do_not_load_optuna() -> None:
    code = (
        "import sys; from health_ml.planning.fan_out import *; from health_ml.planning.sampling import create_sampler;"
        "create_sampler(build_search_space(FanOutOptions(different_seeds=2))).ask();"
        "print([name for name in ('optuna', 'torch', 'azure', 'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
