"""Each optimizer type is built with the settings of the flags."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from health_ml.deep_learning_config import OptimizerParams, OptimizerType
from health_ml.optim.optimizers import create_optimizer

SETTINGS = {
    "l_rate": 0.3,
    "opt_eps": 1e-3,
    "rms_alpha": 0.8,
    "adam_betas": (0.7, 0.8),
    "momentum": 0.4,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize(
    ("kind", "expected_class", "expected"),
    [
        (OptimizerType.Adam, torch.optim.Adam, {"betas": (0.7, 0.8), "eps": 1e-3, "amsgrad": False}),
        (OptimizerType.AMSGrad, torch.optim.Adam, {"betas": (0.7, 0.8), "eps": 1e-3, "amsgrad": True}),
        (OptimizerType.SGD, torch.optim.SGD, {"momentum": 0.4}),
        (OptimizerType.RMSprop, torch.optim.RMSprop, {"alpha": 0.8, "eps": 1e-3, "momentum": 0.4}),
    ],
)
def test_settings_reach_the_optimizer(kind: OptimizerType, expected_class: type, expected: dict[str, Any]) -> None:
    params = OptimizerParams(optimizer_type=kind, **SETTINGS)
    optimizer = create_optimizer(params, torch.nn.Linear(1, 1).parameters())
    assert type(optimizer) is expected_class
    for name, value in {**expected, "lr": 0.3, "weight_decay": 0.01}.items():
        assert optimizer.param_groups[0][name] == value


@pytest.mark.parametrize("kind", list(OptimizerType))
def test_each_optimizer_lowers_a_loss(kind: OptimizerType) -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = create_optimizer(OptimizerParams(optimizer_type=kind, l_rate=0.01), [weight])
    for _ in range(20):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.item() < 2.9


def test_a_group_keeps_its_own_learning_rate() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.5}]
    optimizer = create_optimizer(OptimizerParams(l_rate=0.1), groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
