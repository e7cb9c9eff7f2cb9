"""The history of one metric over the epochs of a run, read from its record while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from health_ml.records.lines import read_lines
from health_ml.records.reader import parse_metrics
from health_ml.settings import RECORD_METRICS_FILE


class MetricHistory:
    """The last value of a metric in each epoch that logged it, in the order of the epochs.

    A run that was resumed repeats epochs; what it logged last counts.

    :param record_folder: Folder of the record. It need not exist yet.
    :param metric: Name of the metric.
    """

    def __init__(self, record_folder: Path, metric: str) -> None:
        self._file = record_folder / RECORD_METRICS_FILE
        self._metric = metric
        self._position = 0
        self._by_epoch: dict[int, float] = {}

    def values(self, *, before_epoch: int | None = None) -> Sequence[float]:
        """Returns one value per epoch, including what has been logged since the last call.

        :param before_epoch: Leave out this epoch and later ones.
        """
        self._read()
        epochs = sorted(epoch for epoch in self._by_epoch if before_epoch is None or epoch < before_epoch)
        return [self._by_epoch[epoch] for epoch in epochs]

    def has(self, epoch: int) -> bool:
        """True if an epoch has logged the metric."""
        self._read()
        return epoch in self._by_epoch

    def _read(self) -> None:
        lines = read_lines(self._file, self._position)
        if lines:
            self._position = lines[-1].end
        for row in parse_metrics([line.row for line in lines if line.row is not None]):
            if self._metric in row.metrics:
                self._by_epoch[row.epoch or 0] = row.metrics[self._metric]
