"""Optimizer and learning rate as flags: imported from :mod:`health_ml.deep_learning_config`, where users find it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from itertools import pairwise
from typing import Any

import param

from health_ml.param_types import FiniteNumber, FractionTuple


class OptimizerType(Enum):
    """Optimizers that LightningModuleWithOptimizer can build."""

    Adam = "Adam"
    AMSGrad = "AMSGrad"
    SGD = "SGD"
    RMSprop = "RMSprop"


class LRWarmUpType(Enum):
    """How the learning rate starts."""

    NoWarmUp = "NoWarmUp"
    Linear = "Linear"


class LRSchedulerType(Enum):
    """How the learning rate changes after the warm-up."""

    Exponential = "Exponential"
    Step = "Step"
    Polynomial = "Polynomial"
    Cosine = "Cosine"
    MultiStep = "MultiStep"


class OptimizerParams(param.Parameterized):
    """Optimizer and learning rate of models that derive from LightningModuleWithOptimizer."""

    l_rate = FiniteNumber(default=1e-4, bounds=(0, None), doc="Initial learning rate.")
    l_rate_scheduler = param.ClassSelector(
        class_=LRSchedulerType,
        default=LRSchedulerType.Polynomial,
        instantiate=False,
        doc="How the learning rate decays.",
    )
    l_rate_exponential_gamma = FiniteNumber(
        default=0.9, bounds=(0, None), doc="Factor per epoch of the exponential schedule."
    )
    l_rate_step_gamma = FiniteNumber(default=0.1, bounds=(0, None), doc="Factor per step of the step schedule.")
    l_rate_step_step_size = param.Integer(
        default=50, bounds=(1, None), doc="Number of epochs between two steps of the step schedule."
    )
    l_rate_multi_step_gamma = FiniteNumber(
        default=0.1, bounds=(0, None), doc="Factor per milestone of the multi-step schedule."
    )
    l_rate_multi_step_milestones = param.List(
        default=None,
        item_type=int,
        allow_None=True,
        doc="Epochs, counted from the end of the warm-up, at which the multi-step schedule lowers the learning rate.",
    )
    l_rate_polynomial_gamma = FiniteNumber(default=1e-4, bounds=(0, None), doc="Exponent of the polynomial schedule.")
    l_rate_warmup = param.ClassSelector(
        class_=LRWarmUpType, default=LRWarmUpType.NoWarmUp, instantiate=False, doc="How the learning rate starts."
    )
    l_rate_warmup_epochs = param.Integer(default=0, bounds=(0, None), doc="Number of epochs of the warm-up.")
    optimizer_type = param.ClassSelector(
        class_=OptimizerType, default=OptimizerType.Adam, instantiate=False, doc="Which optimizer to use."
    )
    opt_eps = FiniteNumber(default=1e-4, bounds=(0, None), doc="Epsilon of Adam, AMSGrad and RMSprop.")
    rms_alpha = FiniteNumber(default=0.9, bounds=(0, 1), doc="Smoothing constant of RMSprop.")
    adam_betas = FractionTuple(default=(0.9, 0.999), length=2, doc="The two betas of Adam and AMSGrad.")
    momentum = FiniteNumber(default=0.6, bounds=(0, None), doc="Momentum of SGD and RMSprop.")
    weight_decay = FiniteNumber(default=1e-4, bounds=(0, None), doc="Weight decay, as an L2 penalty.")

    @property
    def min_l_rate(self) -> float:
        """The learning rate at which the cosine and polynomial schedules end."""
        return self._min_l_rate

    @min_l_rate.setter
    def min_l_rate(self, value: float) -> None:
        if value > self.l_rate:
            raise ValueError(f"l_rate must be >= min_l_rate, found: {self.l_rate}, {value}")
        self._min_l_rate = value

    def __init__(self, **params: Any) -> None:
        min_l_rate = params.pop("min_l_rate", 0.0)
        super().__init__(**params)
        self._min_l_rate = 0.0
        self.min_l_rate = min_l_rate

    def optimizer_problems(self) -> list[str]:
        """Returns what is wrong with these parameters, as sentences."""
        problems = []
        if self.min_l_rate > self.l_rate:
            problems.append(f"l_rate must be >= min_l_rate, found: {self.l_rate}, {self.min_l_rate}")
        if self.l_rate_scheduler is LRSchedulerType.MultiStep:
            problems.extend(self._milestone_problems())
        return problems

    def _milestone_problems(self) -> Iterable[str]:
        milestones = self.l_rate_multi_step_milestones
        if not milestones:
            yield "Must specify l_rate_multi_step_milestones to use the MultiStep scheduler, like 5,10."
            return
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            yield f"l_rate_multi_step_milestones must be a strictly increasing list, found: {milestones}"
        if milestones[0] <= 0:
            yield f"l_rate_multi_step_milestones cannot be negative or 0, found: {milestones}"
