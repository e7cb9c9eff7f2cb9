"""What a model calls to log its metrics once per epoch, and to evaluate itself in the middle of training."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule


def log_on_epoch(
    module: LightningModule,
    name: str | None = None,
    value: Any | None = None,
    metrics: Mapping[str, Any] | None = None,
    reduce_fx: Callable[..., Any] = torch.mean,
    sync_dist: bool | None = None,
) -> None:
    """Logs metrics at the end of the epoch: one as a name and a value, several as a mapping, or both.

    Plain numbers become tensors, so that they can be reduced over several processes.

    :param module: The model that logs.
    :param name: Name of a single metric; needs a value.
    :param value: Value of a single metric; needs a name.
    :param metrics: Names and values. The mapping is not changed.
    :param reduce_fx: How to reduce the values of all steps of the epoch.
    :param sync_dist: Whether to average over all processes. Default: if there are several. Set it to False for a
        metric that exists in one process only.
    :raises ValueError: If only one of name and value is given, or the model is not being run by a Trainer.
    """
    if (name is None) != (value is None):
        raise ValueError(f"Give both or neither of name and value, not name={name!r} and value={value!r}.")
    if module._trainer is None:
        raise ValueError("Metrics can only be logged while a Trainer runs the model: no Trainer is set for it.")
    values = dict(metrics or {})
    if name is not None:
        values[name] = value
    tensors = {key: _as_tensor(number, module.device) for key, number in values.items()}
    module.log_dict(
        tensors,
        on_epoch=True,
        on_step=False,
        sync_dist=module.trainer.world_size > 1 if sync_dist is None else sync_dist,
        reduce_fx=reduce_fx,
    )


def _as_tensor(value: Any, device: torch.device) -> Any:
    if isinstance(value, numbers.Real):
        return torch.tensor(float(value), dtype=torch.float, device=device)
    return value


def log_learning_rate(module: LightningModule, name: str = "learning_rate") -> None:
    """Logs the learning rates at the end of the epoch.

    A single rate is logged under the given name. With several schedulers, or several parameter groups, the name gets
    the index of the scheduler and that of the group: ``learning_rate/0/1``.

    :param module: The model, while it is trained.
    :param name: Name of the metric.
    :raises ValueError: Outside training, or if the model has no learning-rate scheduler.
    """
    schedulers = module.lr_schedulers() if module._trainer is not None else None
    if schedulers is None:
        raise ValueError(
            "Learning rate logging can only be used during training, for a model with a learning-rate scheduler."
        )
    listed: list[Any] = schedulers if isinstance(schedulers, list) else [schedulers]
    rates = [scheduler.get_last_lr() for scheduler in listed]
    if not isinstance(schedulers, list) and len(rates[0]) == 1:
        logged = {name: rates[0][0]}
    else:
        logged = {f"{name}/{i}/{j}": rate for i, group in enumerate(rates) for j, rate in enumerate(group)}
    log_on_epoch(module, metrics=logged)


@contextmanager
def set_model_to_eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and each of its modules back into its own mode at the end.

    Modules that were in evaluation mode before, like a frozen encoder, stay in it.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
