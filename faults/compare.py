"""Compares what a run that was interrupted has left with what one has left that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from health_ml.records.reader import read_record
from health_ml.settings import CHECKPOINT_FOLDER, LAST_CHECKPOINT

Row = tuple[int | None, int | None, tuple[tuple[str, float], ...]]


def metric_rows(run_folder: Path) -> list[Row]:
    """Returns step, epoch and metrics of each row in the record of a run."""
    rows = read_record(run_folder).metrics
    return [(row.step, row.epoch, tuple(sorted(row.metrics.items()))) for row in rows]


def differences(run_folder: Path, expected: Path) -> list[str]:
    """Returns a sentence for each thing that differs: metrics, weights, optimizers, schedulers, callbacks, counters."""
    found = _different_rows(metric_rows(run_folder), metric_rows(expected))
    ours, theirs = (_training_state(folder) for folder in (run_folder, expected))
    return found + [f"{name} differs" for name in theirs if not is_equal(ours.get(name), theirs[name])]


def is_equal(left: Any, right: Any) -> bool:
    """Returns True if two values from checkpoints are the same, bit by bit."""
    import torch

    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(is_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(is_equal(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right)


def _training_state(run_folder: Path) -> dict[str, Any]:
    """Returns what last.ckpt holds about the training, without the paths of the run folder."""
    import torch

    checkpoint = torch.load(run_folder / CHECKPOINT_FOLDER / LAST_CHECKPOINT, weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step")
    return _without_paths({name: checkpoint[name] for name in names}, run_folder)


def _without_paths(value: Any, run_folder: Path) -> Any:
    if isinstance(value, dict):
        return {_without_paths(key, run_folder): _without_paths(item, run_folder) for key, item in value.items()}
    return value.replace(str(run_folder.absolute()), "") if isinstance(value, str) else value


def _different_rows(ours: list[Row], theirs: list[Row]) -> list[str]:
    missing = [row for row in theirs if row not in ours]
    surplus = [row for row in ours if row not in theirs]
    found = [f"{len(missing)} rows of metrics are missing, the first is {missing[0]}"] if missing else []
    if surplus:
        found.append(f"{len(surplus)} rows of metrics are wrong or double, the first is {surplus[0]}")
    if not found and ours != theirs:
        found.append(f"the rows of metrics are {len(ours)} instead of {len(theirs)}, or in another order")
    return found
