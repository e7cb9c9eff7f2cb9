"""Epoch and step of a checkpoint of 500 MB: ``read_progress`` against ``torch.load``, both with warm file caches."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Row
from health_ml.checkpoints.inspect import CheckpointProgress, read_progress

TENSORS = 500
FLOATS_PER_TENSOR = 250_000
EPOCH, STEP = 12, 34_567


def write_checkpoint(path: Path, tensors: int = TENSORS) -> None:
    """Writes a checkpoint with the parts that the Lightning Trainer writes, in the same order."""
    weights = {f"layers.{index}.weight": torch.rand(FLOATS_PER_TENSOR) for index in range(tensors)}
    content = {
        "epoch": EPOCH,
        "global_step": STEP,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-3, "params": list(range(tensors))}]}],
        "lr_schedulers": [],
    }
    torch.save(content, path)


def seconds(action: Callable[[], object], repetitions: int) -> float:
    """Returns the median duration of an action."""
    durations = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        action()
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations)


def main(tensors: int = TENSORS) -> list[Row]:
    """Returns one row: the time for epoch and step, and how many times as long loading takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        write_checkpoint(path, tensors)
        megabytes = path.stat().st_size / 1e6
        assert read_progress(path) == CheckpointProgress(EPOCH, STEP)
        loading = seconds(lambda: torch.load(path, map_location="cpu", weights_only=True), 3)
        reading = seconds(lambda: read_progress(path), 51)
    name = f"epoch and step of {megabytes:.0f} MB"
    return [Row(name, reading * 1e3, loading * 1e3, loading / reading, "value < 5 and ratio >= 100", "ms")]
