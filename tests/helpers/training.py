"""Trains with nothing but Lightning."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer


def quiet_trainer(**arguments: Any) -> Trainer:
    """Returns a Trainer on the CPU that shows and keeps nothing, unless the arguments say otherwise."""
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    return Trainer(**{"accelerator": "cpu", **quiet, **arguments})
