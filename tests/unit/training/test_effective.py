"""Optimizer flags that the model does not heed."""

from __future__ import annotations

import pytest

from health_ml.deep_learning_config import LRSchedulerType, OptimizerType
from health_ml.errors import ArgumentsError
from health_ml.lightning_container import LightningContainer
from health_ml.training.effective import check_effective
from tests.unit.cli.sample_containers import OptimizerContainer, PlainContainer, ReadingContainer


def check(container: LightningContainer, *typed: str) -> None:
    container.create_lightning_module()
    check_effective(container, dict.fromkeys(typed, "command line"))


def test_a_model_that_makes_its_optimizer_itself() -> None:
    with pytest.raises(ArgumentsError, match="--l_rate and --momentum have no effect on PlainModel"):
        check(PlainContainer(), "l_rate", "momentum", "max_epochs")


def test_a_container_that_reads_the_parameter() -> None:
    check(ReadingContainer(), "l_rate")
    with pytest.raises(ArgumentsError, match=r"--weight_decay has no effect on PlainModel.*reads it\."):
        check(ReadingContainer(), "l_rate", "weight_decay")


def test_only_what_was_typed_counts() -> None:
    container = PlainContainer()
    container.create_lightning_module()
    check_effective(container, {"l_rate": "container PlainContainer", "momentum": "config file x.yaml"})
    assert container.model is not None


@pytest.mark.parametrize("name", ["l_rate", "weight_decay", "optimizer_type", "l_rate_scheduler", "adam_betas"])
def test_a_model_with_the_optimizer_of_the_flags(name: str) -> None:
    check(OptimizerContainer(), name)


def test_a_flag_of_another_optimizer_or_schedule() -> None:
    container = OptimizerContainer()
    expected = (
        "--l_rate_step_gamma has no effect with --l_rate_scheduler=Polynomial: it needs --l_rate_scheduler=Step. "
        "--momentum has no effect with --optimizer_type=Adam: it needs --optimizer_type=SGD or "
        "--optimizer_type=RMSprop."
    )
    with pytest.raises(ArgumentsError, match=expected):
        check(container, "l_rate_step_gamma", "momentum")
    container.l_rate_scheduler, container.optimizer_type = LRSchedulerType.Step, OptimizerType.SGD
    check(container, "l_rate_step_gamma", "momentum")
