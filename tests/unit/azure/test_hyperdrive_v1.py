"""A HyperDriveConfig of version 1 means the same search here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from health_ml.azure.hyperdrive_v1 import translated, tuning_args_of
from health_ml.errors import PlanError
from health_ml.planning.dimensions import Choice, IntRange, LogUniform
from health_ml.planning.early_termination import BanditPolicy, Goal
from health_ml.planning.fan_out import space_of_tuning_args
from health_ml.planning.search_space import Sampling

FIELDS: dict[str, Any] = {
    "_policy_config": {
        "name": "Bandit",
        "properties": {"evaluation_interval": 2, "delay_evaluation": 0, "slack_factor": 0.1},
    },
    "_generator_config": {
        "name": "RANDOM",
        "parameter_space": {"l_rate": ["loguniform", [-10, -1]], "a": ["choice", [[1, 2]]], "r": ["randint", [5]]},
    },
    "_primary_metric_config": {"name": "val/auc", "goal": "maximize"},
    "_max_total_runs": 4,
    "_max_concurrent_runs": 2,
    "_max_duration_minutes": 60,
}


def test_translation_gives_the_same_search() -> None:
    space = space_of_tuning_args(translated(FIELDS))
    dimensions = dict(space.dimensions)
    l_rate = dimensions.pop("l_rate")
    assert isinstance(l_rate, LogUniform)
    assert (l_rate.low, l_rate.high) == pytest.approx((4.5399e-05, 0.36788), rel=1e-4)
    assert dimensions == {"a": Choice((1, 2)), "r": IntRange(0, 4)}
    assert space.sampling is Sampling.RANDOM
    assert (space.max_trials, space.max_concurrent, space.timeout_seconds) == (4, 2, 3600.0)
    assert (space.primary_metric, space.goal) == ("val/auc", Goal.MAXIMIZE)
    assert space.early_termination == BanditPolicy(evaluation_interval=2, slack_factor=0.1)


def test_no_policy() -> None:
    assert "early_termination" not in translated({**FIELDS, "_policy_config": {"name": "Default"}})


def test_everything_without_counterpart_is_named() -> None:
    fields = {
        **FIELDS,
        "_generator_config": {"name": "SOBOL", "parameter_space": {"x": ["triangular", [1, 2, 3]]}},
        "_policy_config": {"name": "Other"},
    }
    with pytest.raises(PlanError, match=r"'SOBOL'.*triangular\(1, 2, 3\).*'Other'"):
        translated(fields)


def test_without_version_1_the_error_says_what_to_install(tmp_path: Path) -> None:
    try:
        import azureml.train.hyperdrive  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("version 1 of the AzureML SDK is installed")
    with pytest.raises(PlanError, match=r"himl-runner\[v1\]"):
        tuning_args_of(lambda run_config: None, folder=tmp_path)


def test_real_configuration(tmp_path: Path) -> None:
    hyperdrive = pytest.importorskip("azureml.train.hyperdrive", reason="version 1 of the AzureML SDK is not installed")

    def get_config(run_config: Any) -> Any:
        return hyperdrive.HyperDriveConfig(
            run_config=run_config,
            hyperparameter_sampling=hyperdrive.GridParameterSampling({"a": hyperdrive.choice(1, 2)}),
            primary_metric_name="val/loss",
            primary_metric_goal=hyperdrive.PrimaryMetricGoal.MINIMIZE,
            max_total_runs=2,
        )

    space = space_of_tuning_args(tuning_args_of(get_config, folder=tmp_path))
    assert space.dimensions == (("a", Choice((1, 2))),)
    assert space.sampling is Sampling.GRID
