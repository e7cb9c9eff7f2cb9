"""Turns hyperparameters into values that a checkpoint can hold without pickled classes."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

_ATOMS = (bool, int, float, complex, str, bytes, type(None))
_TORCH_VALUES = (torch.Tensor, torch.dtype, torch.device, torch.Size)


def plain_value(value: Any) -> Any:
    """Returns the value in a form that ``torch.load`` reads back with ``weights_only=True``.

    A path becomes its text, an enum member its value, a number of numpy a Python number; containers are converted
    recursively. What has no plain form is returned as it is.
    """
    if isinstance(value, Enum):
        return plain_value(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Namespace):
        return plain_value(vars(value))
    if isinstance(value, Mapping):
        return {plain_value(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return _plain_collection(value)
    return value


def _plain_collection(value: list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]) -> Any:
    if isinstance(value, torch.Size):
        return value
    items = [plain_value(item) for item in value]
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(items)
    return set(items)


def is_plain(value: Any) -> bool:
    """True if ``torch.load`` reads the value back with ``weights_only=True``."""
    if type(value) in _ATOMS or isinstance(value, _TORCH_VALUES):
        return True
    if type(value) is dict:
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple, set):
        return all(is_plain(item) for item in value)
    return False


HYPERPARAMETER_KEYS = ("hyper_parameters", "datamodule_hyper_parameters")
"""Where a checkpoint of Lightning holds what ``save_hyperparameters`` collected."""

_warned: set[str] = set()


def with_plain_hyperparameters(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checkpoint with plain hyperparameters; the given one stays as it is.

    Without this, one path or enum among them makes the checkpoint unreadable for the safe loader, and with it for
    ``Trainer.fit(ckpt_path=...)`` and ``load_from_checkpoint``. Warns once about each value that has no plain form.
    """
    plain = dict(checkpoint)
    for key in HYPERPARAMETER_KEYS:
        values = checkpoint.get(key)
        if not isinstance(values, Mapping) or is_plain(values):
            continue
        plain[key] = plain_value(values)
        for name, value in plain[key].items():
            if not is_plain(value) and name not in _warned:
                _warned.add(name)
                logger.warning(
                    f"The hyperparameter {name!r} is a {type(value).__name__}, which makes checkpoints unreadable for "
                    f"the safe loader. Leave it out: self.save_hyperparameters(ignore=[{name!r}])."
                )
    return plain
