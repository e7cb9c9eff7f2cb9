"""Hyperparameters without pickled classes, and the few classes that the safe loader may meet in those of others."""

from __future__ import annotations

import logging
import pickle
import sys
from argparse import Namespace
from collections.abc import Mapping
from datetime import date
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import param
import torch

from health_ml.checkpoints.inspect import refused_classes
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.planning.secrets import mask_certain

logger = logging.getLogger(__name__)

_ATOMS = (bool, int, float, complex, str, bytes, type(None))
_TORCH_VALUES = (torch.Tensor, torch.dtype, torch.device, torch.Size)


def plain_value(value: Any) -> Any:
    """Returns the value in a form that ``torch.load`` reads back with ``weights_only=True``.

    A path or a date becomes its text, an enum member its value, a number of numpy a Python number, and an object with
    ``param`` parameters a dictionary of them; containers are converted recursively. What has no plain form is returned
    as it is.
    """
    if isinstance(value, Enum):
        return plain_value(value.value)
    if isinstance(value, (PurePath, CheckpointParser)):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, param.Parameterized):
        return {name: plain_value(item) for name, item in value.param.values().items() if name != "name"}
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
    """Returns the checkpoint with plain hyperparameters and their secrets masked; the given one stays as it is.

    Without this, one path or enum among them makes the checkpoint unreadable for the safe loader, and with it for
    ``Trainer.fit(ckpt_path=...)`` and ``load_from_checkpoint``. Warns once about each value that has no plain form.
    """
    plain = dict(checkpoint)
    for key in HYPERPARAMETER_KEYS:
        values = checkpoint.get(key)
        if not isinstance(values, Mapping):
            continue
        plain[key] = masked_values(values if is_plain(values) else plain_value(values))
        for name, value in plain[key].items():
            if not is_plain(value) and name not in _warned:
                _warned.add(name)
                logger.warning(
                    f"The hyperparameter {name!r} is a {type(value).__name__}, which makes checkpoints unreadable for "
                    f"the safe loader. Leave it out: self.save_hyperparameters(ignore=[{name!r}])."
                )
    return plain


def masked_values(values: Any, name: str = "") -> Any:
    """Returns plain values with the texts masked that are secrets; the same object if there are none."""
    if isinstance(values, Mapping):
        masked = {key: masked_values(item, str(key)) for key, item in values.items()}
        return values if all(masked[key] is item for key, item in values.items()) else masked
    if type(values) in (list, tuple):
        items = [masked_values(item, name) for item in values]
        is_same = all(item is before for item, before in zip(items, values, strict=True))
        return values if is_same else type(values)(items)
    # The model is made again from these values, so nothing that only sounds like a secret is touched.
    masked_value = mask_certain(name, values) if isinstance(values, str) else values
    return values if masked_value == values else masked_value


def harmless_classes(path: Path, error: BaseException) -> list[Any]:
    """Returns those classes that the safe loader refused in a checkpoint whose objects are plain values.

    They come with their names in the checkpoint, as ``torch.serialization.safe_globals`` wants them: paths, enums and
    namespaces of classes that are known in this process. Nothing is imported for it.

    :param path: The checkpoint.
    :param error: What the safe loader raised.
    """
    names = refused_classes(path, error)
    found = ((_class_in_memory(name), name) for name in names)
    harmless: list[Any] = [(class_, name) for class_, name in found if class_ is not None and _is_harmless(class_)]
    # Some versions of Python store the member of an enum as a call of getattr; here, it can do nothing else.
    return [*harmless, *([(_member, _GETATTR)] if _GETATTR in names else [])]


_GETATTR = "builtins.getattr"


def _member(class_: Any, name: str) -> Enum:
    """Returns the member of an enum, and nothing of anything else."""
    if not isinstance(class_, type) or not issubclass(class_, Enum) or name not in class_.__members__:
        raise pickle.UnpicklingError(f"Weights only load failed. {class_!r} has no member {name!r}.")
    return class_.__members__[name]


def _is_harmless(class_: type) -> bool:
    is_path = issubclass(class_, PurePath) and class_.__module__.partition(".")[0] == "pathlib"
    return is_path or issubclass(class_, Enum) or class_ is Namespace


def _class_in_memory(name: str) -> type | None:
    """Returns the class with a dotted name if its module has been imported, for ``package.module.Outer.Inner`` too."""
    module_name, _, last = name.rpartition(".")
    attributes = [last]
    while module_name and module_name not in sys.modules:
        module_name, _, last = module_name.rpartition(".")
        attributes.insert(0, last)
    found: Any = sys.modules.get(module_name)
    for attribute in attributes:
        found = vars(found).get(attribute) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) else None
