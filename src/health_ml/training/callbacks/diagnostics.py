"""Logs each stage that a run reaches, to find out where it hangs or what it does twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, Trainer

logger = logging.getLogger(__name__)

_NOT_STAGES = ("on_save_checkpoint", "on_load_checkpoint")


def _hook_names() -> list[str]:
    return [
        name
        for name in dir(Callback)
        if name in ("setup", "teardown") or (name.startswith("on_") and name not in _NOT_STAGES)
    ]


def _logging_hook(name: str) -> Callable[..., None]:
    def hook(self: Any, trainer: Trainer, pl_module: Any, *arguments: Any, **named: Any) -> None:
        details = [f"{key} {value}" for key, value in named.items() if isinstance(value, (int, str))]
        details += [repr(value) for value in arguments if isinstance(value, (int, str, BaseException))]
        text = f" ({', '.join(details)})" if details else ""
        logger.info(
            f"Rank {trainer.global_rank}, epoch {trainer.current_epoch}, step {trainer.global_step}: {name}{text}"
        )

    hook.__name__ = name
    hook.__doc__ = "Logs that this hook was reached."
    return hook


class TrainingDiagnosticsCallback(Callback):
    """Logs every hook of Lightning that is reached, with rank, epoch, step and batch index."""


for _name in _hook_names():
    setattr(TrainingDiagnosticsCallback, _name, _logging_hook(_name))


TrainingDiagnoticsCallback = TrainingDiagnosticsCallback
"""The name that hi-ml has for it."""
