"""The learning-rate schedule that the container's flags describe: a warm-up, then one of five decays, per epoch."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from health_ml.deep_learning_config import LRSchedulerType, LRWarmUpType, OptimizerParams

_STATE = ("base_lrs", "last_epoch", "_step_count", "_last_lr")


class SchedulerWithWarmUp(LRScheduler):
    """Ramps the learning rate up linearly, then lowers it; step it once per epoch.

    Every parameter group follows the same curve, scaled by its own initial learning rate. The rate is a function of
    the epoch alone, so that a resumed run continues exactly where it stopped.

    :param params: Which schedule, and its settings.
    :param optimizer: Whose parameter groups to set.
    :param num_epochs: Number of epochs of the whole training, at whose end the polynomial and cosine schedules arrive
        at the minimum.
    :param last_epoch: The last epoch that was trained, or -1 at the start.
    """

    def __init__(self, params: OptimizerParams, optimizer: Optimizer, num_epochs: int, last_epoch: int = -1) -> None:
        self._curve = LearningRateCurve(params, num_epochs)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Returns the learning rate of each parameter group in the current epoch."""
        factor = self._curve.factor(self.last_epoch)
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain numbers and lists, which the safe checkpoint loader accepts."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a state; schedule and number of epochs stay those given to the constructor.

        The rates of the current epoch are computed afresh, so that training on with more epochs follows the longer
        schedule from its first epoch. Load the optimizer's state before this one.
        """
        vars(self).update({name: state_dict[name] for name in _STATE if name in state_dict})
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class LearningRateCurve:
    """The learning rate relative to the initial one, as a function of the epoch.

    :param params: Which schedule, and its settings.
    :param num_epochs: Number of epochs of the whole training, the warm-up included.
    """

    def __init__(self, params: OptimizerParams, num_epochs: int) -> None:
        decays = {
            LRSchedulerType.Exponential: self._exponential,
            LRSchedulerType.Step: self._step,
            LRSchedulerType.MultiStep: self._multi_step,
            LRSchedulerType.Polynomial: self._polynomial,
            LRSchedulerType.Cosine: self._cosine,
        }
        if params.l_rate_scheduler is LRSchedulerType.MultiStep and not params.l_rate_multi_step_milestones:
            raise ValueError("Must specify l_rate_multi_step_milestones to use the MultiStep scheduler, like [5, 10].")
        self._params = params
        self._decay = decays[params.l_rate_scheduler]
        self._warmup_epochs = 0 if params.l_rate_warmup is LRWarmUpType.NoWarmUp else params.l_rate_warmup_epochs
        self._decay_epochs = max(num_epochs - self._warmup_epochs, 1)
        # With a learning rate of zero every factor gives the same rate.
        self._floor = params.min_l_rate / params.l_rate if params.l_rate > 0 else 0.0

    def factor(self, epoch: int) -> float:
        """Returns what to multiply the initial learning rate by in an epoch, counted from 0."""
        if epoch < self._warmup_epochs:
            return (epoch + 1) / (self._warmup_epochs + 1)
        return self._decay(epoch - self._warmup_epochs)

    def _exponential(self, epoch: int) -> float:
        return float(self._params.l_rate_exponential_gamma**epoch)

    def _step(self, epoch: int) -> float:
        return float(self._params.l_rate_step_gamma ** (epoch // self._params.l_rate_step_step_size))

    def _multi_step(self, epoch: int) -> float:
        passed = bisect_right(self._params.l_rate_multi_step_milestones or [], epoch)
        return float(self._params.l_rate_multi_step_gamma**passed)

    def _polynomial(self, epoch: int) -> float:
        remaining = 1.0 - self._progress(epoch)
        # Zero to the power of the tiny default exponent is 0; after the end the rate stays at the minimum.
        return float((1.0 - self._floor) * remaining**self._params.l_rate_polynomial_gamma + self._floor)

    def _cosine(self, epoch: int) -> float:
        return self._floor + (1.0 - self._floor) * (1.0 + math.cos(math.pi * self._progress(epoch))) / 2.0

    def _progress(self, epoch: int) -> float:
        return min(epoch / self._decay_epochs, 1.0)
