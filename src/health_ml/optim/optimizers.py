"""Builds the optimizer that the container's flags describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from health_ml.deep_learning_config import OptimizerParams, OptimizerType

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT


def create_optimizer(params: OptimizerParams, parameters: ParamsT) -> torch.optim.Optimizer:
    """Returns the optimizer that ``params.optimizer_type`` names, with the settings of ``params``.

    :param params: Kind and settings of the optimizer.
    :param parameters: What to optimize: parameters, or dictionaries for several groups. A group's own settings win.
    """
    kind = params.optimizer_type
    first_beta, second_beta = params.adam_betas
    if kind in (OptimizerType.Adam, OptimizerType.AMSGrad):
        return torch.optim.Adam(
            parameters,
            lr=params.l_rate,
            betas=(first_beta, second_beta),
            eps=params.opt_eps,
            weight_decay=params.weight_decay,
            amsgrad=kind is OptimizerType.AMSGrad,
        )
    if kind is OptimizerType.SGD:
        return torch.optim.SGD(parameters, lr=params.l_rate, momentum=params.momentum, weight_decay=params.weight_decay)
    if kind is OptimizerType.RMSprop:
        return torch.optim.RMSprop(
            parameters,
            lr=params.l_rate,
            alpha=params.rms_alpha,
            eps=params.opt_eps,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
        )
    raise ValueError(f"Unknown optimizer type {kind!r}: choose one of {', '.join(OptimizerType.__members__)}.")
