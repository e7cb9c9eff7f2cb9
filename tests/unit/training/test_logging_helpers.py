"""Metrics and learning rates logged once per epoch by a real training, and the evaluation mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from health_ml.training.logging_helpers import log_learning_rate, log_on_epoch, set_model_to_eval_mode
from tests.helpers.training import quiet_trainer


class Logs(LightningModule):
    """Logs what the test asks for, in each training step."""

    def __init__(self, scheduler_count: int = 1, group_count: int = 1, **logged: Any) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(group_count))
        self.scheduler_count = scheduler_count
        self.logged = logged
        self.automatic_optimization = scheduler_count == 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.logged:
            log_on_epoch(self, name="index", value=batch_idx)
            log_on_epoch(self, **self.logged)
        log_learning_rate(self)
        loss = sum(layer(batch[0]).sum() for layer in self.layers)
        assert isinstance(loss, torch.Tensor)
        return loss

    def configure_optimizers(self) -> Any:
        groups = [{"params": layer.parameters(), "lr": 0.5 / (i + 1)} for i, layer in enumerate(self.layers)]
        optimizers = [torch.optim.SGD(groups) for _ in range(self.scheduler_count)]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in optimizers]


def metrics_of_training(model: LightningModule, epochs: int = 1) -> dict[str, float]:
    trainer = quiet_trainer(max_epochs=epochs)
    trainer.fit(model, DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=1))
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_metrics_are_averaged_over_the_epoch() -> None:
    given = {"whole": 2, "fraction": 0.5, "numpy": np.float32(4), "tensor": torch.tensor(3.0), "flag": True}
    before = dict(given)
    metrics = metrics_of_training(Logs(name="single", value=7, metrics=given))
    assert metrics.items() >= {"index": 1.5, "single": 7.0, "whole": 2.0, "fraction": 0.5, "numpy": 4.0}.items()
    assert metrics.items() >= {"tensor": 3.0, "flag": 1.0}.items()
    assert given == before


def test_another_reduction() -> None:
    model = Logs(name="largest", value=1.0, reduce_fx=torch.max)
    assert metrics_of_training(model)["largest"] == 1.0


@pytest.mark.parametrize(
    "arguments", [{"name": "lonely"}, {"value": 1.0}, {"name": "a", "metrics": {"b": 1.0}}], ids=str
)
def test_name_and_value_belong_together(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="both or neither of name and value"):
        log_on_epoch(Logs(), **arguments)


def test_logging_without_a_trainer_is_refused() -> None:
    with pytest.raises(ValueError, match="no Trainer is set"):
        log_on_epoch(Logs(), name="a", value=1.0)


def test_single_learning_rate_has_the_plain_name() -> None:
    metrics = metrics_of_training(Logs(), epochs=3)
    assert metrics == {"learning_rate": pytest.approx(0.125)}


def test_learning_rates_of_several_groups_are_numbered() -> None:
    metrics = metrics_of_training(Logs(group_count=2))
    assert metrics == {"learning_rate/0/0": 0.5, "learning_rate/0/1": 0.25}


def test_learning_rates_of_several_schedulers_are_numbered() -> None:
    metrics = metrics_of_training(Logs(scheduler_count=2))
    assert metrics == {"learning_rate/0/0": 0.5, "learning_rate/1/0": 0.5}


def test_learning_rate_outside_training_is_refused() -> None:
    with pytest.raises(ValueError, match="only be used during training"):
        log_learning_rate(Logs())


def test_each_module_gets_its_own_mode_back() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, False]
    with set_model_to_eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


def test_mode_comes_back_after_a_failure() -> None:
    model = torch.nn.Dropout()
    with pytest.raises(KeyError, match="broken"), set_model_to_eval_mode(model):
        raise KeyError("broken")
    assert model.training
