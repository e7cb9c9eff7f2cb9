from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from health_ml.errors import PlanError
from health_ml.planning.dimensions import Choice, IntRange, LogUniform, QUniform, Uniform
from health_ml.planning.early_termination import BanditPolicy, Goal, MedianStoppingPolicy
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.search_space import Sampling, SearchSpace, TrialParameters, product

KNOWN = ["l_rate", "random_seed", "crossval_index", "max_epochs", "optimizer_type"]


def build(**options: Any) -> SearchSpace:
    space = build_search_space(FanOutOptions(**options), known_parameters=KNOWN)
    assert space is not None
    return space


def values(space: SearchSpace) -> list[tuple[Any, ...]]:
    return [tuple(value for _, value in trial.values) for trial in space.grid_trials()]


# --- each option -----------------------------------------------------------------------------------------------------


def test_no_option_is_no_fan_out() -> None:
    assert build_search_space(FanOutOptions(crossval_count=5, crossval_index=2, sweep="  ")) is None


def test_seeds() -> None:
    space = build(different_seeds=3)
    assert space.sources == ("--different_seeds=3",)
    assert [trial.arguments() for trial in space.grid_trials()] == [
        ("--random_seed=0",),
        ("--random_seed=1",),
        ("--random_seed=2",),
    ]


def test_folds() -> None:
    assert build(crossval_count=2).dimensions == (("crossval_index", IntRange(0, 1)),)


def test_seeds_times_folds() -> None:
    space = build(different_seeds=2, crossval_count=3)
    assert space.grid_size == space.trial_count == 6
    assert values(space) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert space.sources == ("--different_seeds=2", "--crossval_count=3")


def test_sweep() -> None:
    space = build(sweep="l_rate=1e-4,1e-3 random_seed=0..1")
    assert space.parameter_names == ("l_rate", "random_seed")
    assert values(space) == [("1e-4", 0), ("1e-4", 1), ("1e-3", 0), ("1e-3", 1)]
    assert [trial.index for trial in space.grid_trials()] == [0, 1, 2, 3]
    assert list(space.grid_trials()) == list(space.grid_trials())


def test_sweep_takes_flags_as_they_are_typed() -> None:
    assert build(sweep="--l-rate=1,2").parameter_names == ("l_rate",)


def test_random_sweep_with_settings() -> None:
    space = build(
        sweep="l_rate=loguniform(1e-5,1e-1)",
        settings={
            "sampling": "random", "max_trials": 7, "primary_metric": "val/acc", "goal": "Maximize", "max_concurrent": 2,
            "sampling_seed": 3, "early_termination": "median_stopping",
        },
    )  # fmt: skip
    assert space == SearchSpace(
        (("l_rate", LogUniform(1e-5, 0.1)),),
        ("--sweep='l_rate=loguniform(1e-5,1e-1)'",),
        Sampling.RANDOM,
        3,
        7,
        2,
        "val/acc",
        Goal.MAXIMIZE,
        MedianStoppingPolicy(),
    )
    assert space.grid_size is None
    assert space.trial_count == 7


def test_sweep_times_seeds_is_a_grid() -> None:
    space = build(sweep="l_rate=1,2", different_seeds=2, settings={"max_concurrent": 3, "goal": None})
    assert values(space) == [(0, "1"), (0, "2"), (1, "1"), (1, "2")]
    assert space.max_concurrent == 3


def test_max_trials_ends_a_grid_early() -> None:
    space = build(sweep="l_rate=1,2,3", settings={"max_trials": 2})
    assert (values(space), space.trial_count, space.grid_size) == ([("1",), ("2",)], 2, 3)


def test_block_of_yaml() -> None:
    block = yaml.safe_load("""
        parameters:
          l_rate: loguniform(1e-5, 1e-1)
          max_epochs: [1, 2]
          optimizer_type: {choice: [Adam, SGD]}
        sampling: bayesian
        max_trials: 10
        max_concurrent_trials: 2
        primary_metric: val/loss
        goal: minimize
        trial_timeout: 1h30m
        timeout: 86400
        early_termination: {type: bandit, slack_factor: 0.1, evaluation_interval: 2}
    """)
    space = build(fan_out=block)
    assert space == SearchSpace(
        (
            ("l_rate", LogUniform(1e-5, 0.1)),
            ("max_epochs", Choice((1, 2))),
            ("optimizer_type", Choice(("Adam", "SGD"))),
        ),
        ("fan_out",),
        Sampling.BAYESIAN,
        max_trials=10,
        max_concurrent=2,
        primary_metric="val/loss",
        early_termination=BanditPolicy(2, slack_factor=0.1),
        timeout_seconds=86400,
        trial_timeout_seconds=5400,
    )


def test_flags_win_over_the_block() -> None:
    block = {"parameters": {"l_rate": [1, 2, 3]}, "max_trials": 2, "goal": "minimize"}
    space = build(fan_out=block, settings={"max_trials": 1})
    assert space.max_trials == 1


def test_tuning_args_as_hi_ml_documents_them() -> None:
    sweep = pytest.importorskip("azure.ai.ml.sweep")
    arguments = {
        "max_total_trials": 3,
        "parameter_sampling": {"l_rate": sweep.Choice([0.1, 0.5, 0.9])},
        "sampling_algorithm": "grid",
        "primary_metric": "val/loss",
        "goal": "Minimize",
    }
    before = dict(arguments)
    space = build(tuning_args=arguments)
    assert arguments == before
    assert space == SearchSpace(
        (("l_rate", Choice((0.1, 0.5, 0.9))),), ("--hyperdrive",), max_trials=3, primary_metric="val/loss"
    )
    assert next(trial.arguments() for trial in space.grid_trials()) == ("--l_rate=0.1",)


def test_tuning_args_with_objects_of_the_sdk() -> None:
    sweep = pytest.importorskip("azure.ai.ml.sweep")
    space = build(
        tuning_args={
            "parameter_sampling": {"l_rate": sweep.Uniform(0, 1), "max_epochs": sweep.QUniform(1, 9, 2)},
            "sampling_algorithm": sweep.BayesianSamplingAlgorithm(),
            "max_total_trials": 5,
            "max_concurrent_trials": 2,
            "early_termination_policy": sweep.BanditPolicy(slack_amount=0.5),
            "timeout": 3600,
            "trial_timeout": 60,
        }
    )
    assert space == SearchSpace(
        (("l_rate", Uniform(0, 1)), ("max_epochs", QUniform(1, 9, 2))),
        ("--hyperdrive",),
        Sampling.BAYESIAN,
        max_trials=5,
        max_concurrent=2,
        primary_metric="val/loss",
        early_termination=BanditPolicy(slack_amount=0.5),
        timeout_seconds=3600,
        trial_timeout_seconds=60,
    )


def test_tuning_args_sample_at_random_by_default_as_the_sdk_does() -> None:
    space = build(tuning_args={"parameter_sampling": {"l_rate": "1,2"}, "max_total_trials": 2})
    assert space.sampling is Sampling.RANDOM


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"sweep": "l_rate"}, ["'l_rate' is no name=values"]),
        ({"sweep": "=1"}, ["'=1' is no name=values"]),
        ({"sweep": "l_rate= random_seed=0.. max_epochs=uniform(1)"},
         ["l_rate has no values.", "random_seed is 0.., a range without end", "max_epochs is uniform(1); write"]),
        ({"sweep": "l_rate=choice(1"}, ["--sweep lacks a closing )"]),
        ({"sweep": "l_rat=1,2"}, ["There is no parameter 'l_rat'. Did you mean 'l_rate'?"]),
        ({"sweep": "l_rate=1 l_rate=2"}, ["'l_rate' is varied twice."]),
        ({"sweep": "l_rate=uniform(0,1) xyz=normal(0,1)"},
         ["A grid needs lists of values, but l_rate, xyz may take any value", "There is no parameter 'xyz'."]),
        ({"sweep": "l_rate=uniform(0,1)", "settings": {"sampling": "random"}}, ["say how often with --max_trials"]),
        ({"sweep": "l_rate=1,2", "settings": {"sampling": "bayesian"}},
         ["--primary_metric is missing, which --sampling=bayesian cannot do without"]),
        ({"sweep": "l_rate=1,2", "settings": {"early_termination": "median_stopping"}},
         ["--primary_metric is missing, which the median_stopping policy cannot do without"]),
        ({"sweep": "l_rate=1,2", "settings": {"sampling": "bayes", "goal": "min", "max_trials": "x"}},
         ["sampling='bayes' is not one of grid, random or bayesian", "goal='min' is not one of minimize or maximize",
          "max_trials='x' is no whole number"]),
        ({"sweep": "l_rate=1,2", "settings": {"max_trials": 0, "max_concurrent": -1}},
         ["max_trials=0 has to be above 0", "max_concurrent=-1 has to be above 0"]),
        ({"settings": {"sampling": "random"}}, ["--sampling=random has no effect without a search"]),
        ({"sweep": "l_rate=1", "tuning_args": {}}, ["--hyperdrive and --sweep each define a search"]),
        ({"sweep": "l_rate=1", "fan_out": {}}, ["--sweep and the fan_out block of the YAML file each define a search"]),
        ({"sweep": "random_seed=1,2", "different_seeds": 2},
         ["Both --different_seeds=2 and --sweep='random_seed=1,2' vary random_seed"]),
        ({"sweep": "l_rate=uniform(0,1)", "different_seeds": 2, "settings": {"sampling": "random", "max_trials": 2}},
         ["chooses its trials by --sampling=random, which cannot be multiplied with others"]),
        ({"fan_out": {"parameter": {"l_rate": [1]}}}, ["There is no 'parameter'. Did you mean 'parameters'",
                                                     "'parameters' has to name the parameters that vary, and is None"]),
        ({"fan_out": {"parameters": {"l_rate": 1}, "max_trials": 1.5, "early_termination": "x"}},
         ["l_rate has only the value 1", "max_trials=1.5 is no whole number", "no early termination policy 'x'"]),
        ({"fan_out": {"parameters": {"l_rate": [1]}, "timeout": "90"}}, ["timeout_seconds: The duration '90' cannot"]),
        ({"fan_out": ["l_rate"]}, ["fan_out has to be a mapping, not ['l_rate']"]),
        ({"tuning_args": {"param_sampling": {}}}, ["get_parameter_tuning_args cannot be read",
                                                  "Did you mean 'parameter_sampling'?"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_all_at_once(options: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(PlanError, match=r"\w") as caught:
        build(**options)
    text = str(caught.value)
    assert [message for message in messages if message not in text] == []


def test_everything_wrong_is_said_with_its_source() -> None:
    with pytest.raises(PlanError, match=r"The search space \(--sweep='l_rat=1'\) cannot be used: There is no p"):
        build(sweep="l_rat=1")


# --- the value -------------------------------------------------------------------------------------------------------


def test_product_of_one_is_itself() -> None:
    space = build(different_seeds=2)
    assert product([space]) is space


@pytest.mark.parametrize("value", [1e-05, 0.1, 1 / 3, 5, "a b", True, None])
def test_trial_passes_values_exactly(value: Any) -> None:
    (argument,) = TrialParameters(0, (("x", value),)).arguments()
    text = argument.removeprefix("--x=")
    assert (float(text) if isinstance(value, float) else text) == (value if isinstance(value, float) else str(value))


def test_trial_json_and_back_is_equal() -> None:
    trial = TrialParameters(3, (("b", 1), ("a", "x"), ("c", None)))
    assert TrialParameters.from_json(json.loads(json.dumps(trial.to_json()))) == trial


@pytest.mark.parametrize("change", [{"sampling": "x"}, {"dimensions": None}, {"more": 1}])
def test_damaged_search_space_is_refused(change: dict[str, Any]) -> None:
    damaged = {**build(different_seeds=2).to_json(), **change}
    with pytest.raises(PlanError, match="A search space cannot be read"):
        SearchSpace.from_json(damaged)
