"""The learning rate in every epoch: known values, several parameter groups, exact resume, odd settings."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from health_ml.deep_learning_config import LRSchedulerType, LRWarmUpType, OptimizerParams
from health_ml.lightning_container import LightningModuleWithOptimizer
from health_ml.optim.lr_scheduler import SchedulerWithWarmUp

LINEAR = {"l_rate_warmup": LRWarmUpType.Linear, "l_rate_warmup_epochs": 2}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """The scheduler must not step before the optimizer, nor use what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def settings(**overrides: Any) -> OptimizerParams:
    defaults = {"l_rate": 1.0, "min_l_rate": 0.1, "l_rate_exponential_gamma": 0.5, "l_rate_polynomial_gamma": 1.0}
    return OptimizerParams(**{**defaults, "l_rate_step_gamma": 0.5, "l_rate_multi_step_gamma": 0.5, **overrides})


def two_groups(first: float = 1.0, second: float = 0.2) -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": [weights[0]], "lr": first}, {"params": [weights[1]], "lr": second}])


def advance(optimizer: torch.optim.Optimizer, scheduler: SchedulerWithWarmUp, epochs: int) -> list[list[float]]:
    """Returns the learning rates of each epoch, and leaves the scheduler at the one after the last."""
    rates = []
    for _ in range(epochs):
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert scheduler.get_last_lr() == rates[-1]
        optimizer.step()
        scheduler.step()
    return rates


GOLDEN = [
    (LRSchedulerType.Polynomial, True, [0.3333, 0.6667, 1.0, 0.775, 0.55, 0.325]),
    (LRSchedulerType.Polynomial, False, [1.0, 0.85, 0.7, 0.55, 0.4, 0.25]),
    (LRSchedulerType.Cosine, False, [1.0, 0.9397, 0.775, 0.55, 0.325, 0.1603]),
    (LRSchedulerType.Exponential, True, [0.3333, 0.6667, 1.0, 0.5, 0.25, 0.125]),
    (LRSchedulerType.Step, True, [0.3333, 0.6667, 1.0, 1.0, 0.5, 0.5]),
    (LRSchedulerType.MultiStep, True, [0.3333, 0.6667, 1.0, 0.5, 0.5, 0.25]),
]


@pytest.mark.parametrize(("kind", "has_warmup", "expected"), GOLDEN)
def test_known_learning_rates(kind: LRSchedulerType, has_warmup: bool, expected: list[float]) -> None:
    params = settings(
        l_rate_scheduler=kind,
        l_rate_step_step_size=2,
        l_rate_multi_step_milestones=[1, 3],
        **(LINEAR if has_warmup else {}),
    )
    optimizer = two_groups()
    rates = advance(optimizer, SchedulerWithWarmUp(params, optimizer, num_epochs=6), 6)
    assert [first for first, _ in rates] == pytest.approx(expected, abs=1e-4)
    assert [second for _, second in rates] == pytest.approx([0.2 * rate for rate in expected], abs=1e-4)


@pytest.mark.parametrize("kind", list(LRSchedulerType))
def test_resumed_schedule_equals_the_unbroken_one(kind: LRSchedulerType) -> None:
    params = settings(l_rate_scheduler=kind, l_rate_multi_step_milestones=[1, 3], **LINEAR)
    unbroken = two_groups()
    expected = advance(unbroken, SchedulerWithWarmUp(params, unbroken, num_epochs=8), 8)
    for stop in range(1, 8):
        first = two_groups()
        scheduler = SchedulerWithWarmUp(params, first, num_epochs=8)
        advance(first, scheduler, stop)
        file = io.BytesIO()
        torch.save({"optimizer": first.state_dict(), "scheduler": scheduler.state_dict()}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        second = two_groups()
        resumed = SchedulerWithWarmUp(params, second, num_epochs=8)
        second.load_state_dict(state["optimizer"])
        resumed.load_state_dict(state["scheduler"])
        assert advance(second, resumed, 8 - stop) == expected[stop:]


def test_more_epochs_after_a_resume_follow_the_longer_schedule() -> None:
    params = settings(l_rate_scheduler=LRSchedulerType.Polynomial)
    short = two_groups()
    finished = SchedulerWithWarmUp(params, short, num_epochs=4)
    advance(short, finished, 4)
    longer = two_groups()
    resumed = SchedulerWithWarmUp(params, longer, num_epochs=8)
    resumed.load_state_dict(finished.state_dict())
    rates = advance(longer, resumed, 4)
    assert [first for first, _ in rates] == pytest.approx([0.9 * (1 - epoch / 8) + 0.1 for epoch in range(4, 8)])


@pytest.mark.parametrize("kind", [LRSchedulerType.Polynomial, LRSchedulerType.Cosine])
def test_rate_stays_at_the_minimum_after_the_last_epoch(kind: LRSchedulerType) -> None:
    optimizer = two_groups()
    scheduler = SchedulerWithWarmUp(settings(l_rate_scheduler=kind), optimizer, num_epochs=3)
    advance(optimizer, scheduler, 5)
    assert scheduler.get_last_lr() == pytest.approx([0.1, 0.02])


@pytest.mark.parametrize("kind", [LRSchedulerType.Polynomial, LRSchedulerType.Cosine])
def test_learning_rate_of_zero_stays_zero(kind: LRSchedulerType) -> None:
    optimizer = two_groups(0.0, 0.0)
    params = OptimizerParams(l_rate=0.0, l_rate_scheduler=kind)
    assert advance(optimizer, SchedulerWithWarmUp(params, optimizer, num_epochs=3), 3) == [[0.0, 0.0]] * 3


def test_warmup_longer_than_the_training_keeps_rising() -> None:
    optimizer = two_groups()
    params = settings(l_rate_warmup=LRWarmUpType.Linear, l_rate_warmup_epochs=9)
    rates = advance(optimizer, SchedulerWithWarmUp(params, optimizer, num_epochs=3), 3)
    assert [first for first, _ in rates] == pytest.approx([0.1, 0.2, 0.3])


def test_warmup_epochs_without_warmup_have_no_effect() -> None:
    optimizer = two_groups()
    params = settings(l_rate_warmup_epochs=3, l_rate_scheduler=LRSchedulerType.Exponential)
    rates = advance(optimizer, SchedulerWithWarmUp(params, optimizer, num_epochs=3), 3)
    assert [first for first, _ in rates] == [1.0, 0.5, 0.25]


def test_multi_step_without_milestones_is_refused() -> None:
    optimizer = two_groups()
    params = settings(l_rate_scheduler=LRSchedulerType.MultiStep)
    with pytest.raises(ValueError, match="Must specify l_rate_multi_step_milestones"):
        SchedulerWithWarmUp(params, optimizer, num_epochs=3)


def test_module_with_optimizer_uses_both() -> None:
    model = LightningModuleWithOptimizer()
    model.layer = torch.nn.Linear(1, 1)
    model.optimizer_params.l_rate = 0.25
    (optimizer,), (scheduler,) = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert isinstance(scheduler, SchedulerWithWarmUp)
    assert scheduler.get_last_lr() == [0.25]
