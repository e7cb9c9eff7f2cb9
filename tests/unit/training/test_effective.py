"""Optimizer flags that the model does not heed."""

from __future__ import annotations

from typing import Any

import pytest

from health_ml.deep_learning_config import LRSchedulerType, OptimizerType
from health_ml.errors import ArgumentsError
from health_ml.lightning_container import LightningContainer
from health_ml.training.effective import check_effective, check_effective_ahead
from tests.unit.cli.sample_containers import (
    ModelWithOptimizer,
    OptimizerContainer,
    PlainContainer,
    PlainModel,
    ReadingContainer,
)


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


# --- before the model exists ------------------------------------------------------------------------------------------


def check_ahead(container: LightningContainer, *typed: str, varied: tuple[str, ...] = ()) -> None:
    check_effective_ahead(container, dict.fromkeys(typed, "command line"), varied=varied)


def test_what_create_model_leaves_no_doubt_about_is_said_ahead() -> None:
    with pytest.raises(ArgumentsError, match="--l_rate and --momentum have no effect on PlainModel"):
        check_ahead(PlainContainer(), "l_rate", "momentum", "max_epochs")
    with pytest.raises(ArgumentsError, match="--momentum has no effect with --optimizer_type=Adam"):
        check_ahead(OptimizerContainer(), "momentum")
    check_ahead(OptimizerContainer(optimizer_type=OptimizerType.SGD), "momentum")
    check_ahead(OptimizerContainer(), "momentum", varied=("optimizer_type",))
    check_ahead(ReadingContainer(), "l_rate")
    check_ahead(OptimizerContainer())


def make(kind: type[Any]) -> Any:
    return kind()


class AskingContainer(LightningContainer):
    def create_model(self) -> Any:
        return make(PlainModel)


class DelegatingContainer(LightningContainer):
    def create_model(self) -> Any:
        return self.make(PlainModel)

    def make(self, kind: type[Any]) -> Any:
        return kind()


class EitherContainer(LightningContainer):
    def create_model(self) -> Any:
        return ModelWithOptimizer() if self.tag else PlainModel()


class InheritingContainer(PlainContainer):
    def create_model(self) -> Any:
        return super().create_model() or ModelWithOptimizer()


class ChangingContainer(OptimizerContainer):
    def setup(self) -> None:
        self.optimizer_type = OptimizerType.SGD


@pytest.mark.parametrize(
    ("container", "name"),
    [
        (AskingContainer, "l_rate"),
        (DelegatingContainer, "l_rate"),
        (EitherContainer, "l_rate"),
        (InheritingContainer, "l_rate"),
        (ChangingContainer, "momentum"),
        (LightningContainer, "l_rate"),
    ],
)
def test_what_only_the_model_can_tell_is_left_to_it(container: type[LightningContainer], name: str) -> None:
    check_ahead(container(), name)
    assert container().l_rate == 1e-4
