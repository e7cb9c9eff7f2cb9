"""Keeps metrics in memory, for tests and for code that runs right after the training."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

_EPOCH = "epoch"


class StoringLogger(Logger):
    """Stores metrics by epoch. Several values of one metric in one epoch become a list."""

    def __init__(self) -> None:
        super().__init__()
        self.results_per_epoch: dict[int, dict[str, float | list[float]]] = {}
        """Metrics of each epoch, by name."""
        self.results_without_epoch: list[dict[str, float]] = []
        """Rows of metrics that were logged without an epoch."""
        self.hyperparams: Any = None
        """What was last logged as hyperparameters."""
        self.train_diagnostics: list[Any] = []
        """A place for the diagnostics of a user's own tests."""
        self.val_diagnostics: list[Any] = []
        """A place for the diagnostics of a user's own tests."""

    @property
    def name(self) -> str:
        """An empty text: nothing is written to a folder."""
        return ""

    @property
    def version(self) -> int:
        """Always 0."""
        return 0

    @property
    def experiment(self) -> StoringLogger:
        """The logger itself."""
        return self

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Stores one row of metrics, under its entry ``epoch`` if it has one."""
        epoch = metrics.get(_EPOCH)
        if epoch is None:
            self.results_without_epoch.append(dict(metrics))
            return
        results = self.results_per_epoch.setdefault(int(epoch), {})
        for name, value in metrics.items():
            if name == _EPOCH:
                continue
            if name not in results:
                results[name] = float(value)
                continue
            before = results[name]
            if isinstance(before, list):
                before.append(float(value))
            else:
                results[name] = [before, float(value)]

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Stores the hyperparameters."""
        self.hyperparams = params

    @property
    def epochs(self) -> Iterable[int]:
        """The epochs that have metrics."""
        return self.results_per_epoch.keys()

    def extract_by_prefix(self, epoch: int, prefix_filter: str = "") -> dict[str, float | list[float]]:
        """Returns the metrics of an epoch whose names start with a prefix, with the prefix cut off.

        :raises KeyError: If the epoch has no metrics.
        """
        if epoch not in self.results_per_epoch:
            raise KeyError(f"There are no metrics of epoch {epoch}. Epochs with metrics: {sorted(self.epochs)}")
        return {
            name.removeprefix(prefix_filter): value
            for name, value in self.results_per_epoch[epoch].items()
            if name.startswith(prefix_filter)
        }

    def to_metrics_dicts(self, prefix_filter: str = "") -> dict[int, dict[str, float | list[float]]]:
        """Returns the metrics of all epochs whose names start with a prefix, with the prefix cut off."""
        return {epoch: self.extract_by_prefix(epoch, prefix_filter) for epoch in self.epochs}
