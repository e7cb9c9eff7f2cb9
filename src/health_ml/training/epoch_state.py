"""What Lightning leaves out of a checkpoint: the metrics of an epoch so far, and gradients that are accumulated.

Everything is turned into tensors and plain values, so that the safe loader reads it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from torchmetrics import Metric, MetricCollection

State = dict[str, Any]

_PLAIN_SETTINGS = (
    "fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx", "dataloader_idx",
    "metric_attribute",
)  # fmt: skip
_REDUCTIONS: Mapping[str, Any] = {
    "torch.mean": torch.mean,
    "torch.sum": torch.sum,
    "torch.max": torch.max,
    "torch.min": torch.min,
    "sum": sum,
    "max": max,
    "min": min,
}
_TENSORS = ("value", "cumulated_batch_size", "_forward_cache")
_DICTIONARIES = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


# --- metrics ----------------------------------------------------------------------------------------------------------


def get_metrics(trainer: Trainer) -> State:
    """Returns everything that the metrics of the current epoch will be computed from."""
    return {
        "results": _get_results(trainer.fit_loop.epoch_loop._results),
        "objects": {name: _get_object(metric) for name, metric in _metric_objects(trainer.lightning_module)},
        "latest": {name: _copy(getattr(trainer._logger_connector, name)) for name in _DICTIONARIES},
    }


def set_latest_metrics(trainer: Trainer, state: State) -> None:
    """Restores the last value of each metric, which schedulers and callbacks compare with."""
    for name, values in state["latest"].items():
        getattr(trainer._logger_connector, name).update(values)


def set_metrics(trainer: Trainer, state: State) -> None:
    """Restores what :func:`get_metrics` returned."""
    for name, metric in _metric_objects(trainer.lightning_module):
        if name in state["objects"]:
            _set_object(metric, state["objects"][name])
    objects = dict(trainer.lightning_module.named_modules())
    results = trainer.fit_loop.epoch_loop._results
    for key, values in state["results"].items():
        metric_object = None if values["is_tensor"] else objects.get(values["settings"]["metric_attribute"])
        if values["is_tensor"] or metric_object is not None:
            results[key] = _make_result(trainer, values, metric_object)


def _get_results(results: _ResultCollection) -> State:
    """Returns the sums from which Lightning computes means over the epoch.

    Those that a user logs with a process group of their own are left out: a group cannot be stored.
    """
    return {key: _get_result(result) for key, result in results.items() if result.meta.sync.group is None}


def _get_result(result: _ResultMetric) -> State:
    meta = result.meta
    names = [name for name, function in _REDUCTIONS.items() if function is meta.reduce_fx]
    return {
        "settings": {name: getattr(meta, name) for name in _PLAIN_SETTINGS},
        "reduction": names[0],
        "is_synced": meta.sync.should,
        "is_of_rank_zero": meta.sync.rank_zero_only,
        "is_tensor": result.is_tensor,
        "has_reset": result.has_reset,
        "updates": result._update_count,
        "tensors": {
            name: _copy(value) for name in _TENSORS if isinstance(value := getattr(result, name, None), torch.Tensor)
        },
    }


def _make_result(trainer: Trainer, values: State, metric_object: Any) -> _ResultMetric:
    meta = _Metadata(**values["settings"], reduce_fx=_REDUCTIONS[values["reduction"]])
    meta.sync = _Sync(fn=trainer.strategy.reduce, _should=values["is_synced"], rank_zero_only=values["is_of_rank_zero"])
    result = _ResultMetric(meta, values["is_tensor"])
    for name, tensor in values["tensors"].items():
        setattr(result, name, tensor.to(trainer.strategy.root_device))
    if metric_object is not None:
        result.value = metric_object
    result.has_reset = values["has_reset"]
    result._update_count = values["updates"]
    return result


def _metric_objects(model: LightningModule) -> Iterator[tuple[str, Metric]]:
    """Yields the metric objects of the model, each with its name."""
    for name, module in model.named_modules():
        if isinstance(module, MetricCollection):
            module.items(copy_state=False)  # brings those up to date that share the state of another one
        elif isinstance(module, Metric):
            yield name, module


def _get_object(metric: Metric) -> State:
    return {
        "values": {name: _copy(getattr(metric, name)) for name in metric._defaults},
        "updates": metric._update_count,
    }


def _set_object(metric: Metric, state: State) -> None:
    for name, value in state["values"].items():
        if isinstance(value, torch.Tensor):
            value = value.to(metric.device)
        elif isinstance(value, list):
            value = [item.to(metric.device) if isinstance(item, torch.Tensor) else item for item in value]
        setattr(metric, name, value)
    metric._update_count = state["updates"]
    metric._computed = None


def _copy(value: Any) -> Any:
    """Returns a copy on the CPU: the original may be changed in place before it is written."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


# --- gradients --------------------------------------------------------------------------------------------------------


def get_gradients(trainer: Trainer) -> State:
    """Returns the gradients that wait for further batches before the optimizer makes its step, by parameter."""
    if trainer.accumulate_grad_batches == 1 or not trainer.fit_loop._should_accumulate():
        return {}
    parameters = trainer.lightning_module.named_parameters()
    return {name: _copy(parameter.grad) for name, parameter in parameters if parameter.grad is not None}


def set_gradients(trainer: Trainer, gradients: State) -> None:
    """Restores what :func:`get_gradients` returned."""
    for name, parameter in trainer.lightning_module.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)
