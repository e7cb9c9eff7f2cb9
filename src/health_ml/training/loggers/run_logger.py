"""Hands metrics and hyperparameters from Lightning to the record of the run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers import TensorBoardLogger

from health_ml.training.plain_values import masked_values, plain_value

if TYPE_CHECKING:
    from health_ml.records.record import RunRecord

_EPOCH = "epoch"


class LazyWriter:
    """Stands for a SummaryWriter that is made when it is used for the first time.

    Lightning touches ``experiment`` before each run; loading TensorBoard then would cost every run a second.

    :param create: Returns the real writer.
    """

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._create(), name)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """The class of the real writer, so that ``isinstance`` says what users expect."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter


class RunLogger(TensorBoardLogger):
    """The first logger of every run: scalars go to the record, images and the like straight to TensorBoard.

    The mirror carries the scalars on to TensorBoard and MLflow from a process of its own, so that logging costs the
    training next to nothing. ``self.logger.experiment`` is a real SummaryWriter, made on first use.

    :param folder: Folder for the TensorBoard event files and ``hparams.yaml``.
    :param record: Where scalars go; None: this is a plain TensorBoardLogger, for use without the runner.
    """

    def __init__(self, folder: Path, *, record: RunRecord | None = None) -> None:
        super().__init__(save_dir=str(folder), name="", version="", default_hp_metric=False)
        self.record = record
        self._lazy_writer = LazyWriter(self._real_writer)

    @property
    def experiment(self) -> Any:
        """The SummaryWriter for images, texts, histograms and the like; it does nothing in the other processes."""
        if self.record is None:
            return super().experiment
        return self._lazy_writer

    def _real_writer(self) -> Any:
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Writes one row of metrics. An entry ``epoch`` becomes the epoch of the row."""
        if self.record is None:
            super().log_metrics(dict(metrics), step)
            return
        row = dict(metrics)
        epoch = row.pop(_EPOCH, None)
        for name, value in metrics.items():
            if type(value) is not float and name != _EPOCH:
                row = _as_numbers(row)
                break
        if row:
            self.record.log_metrics(row, step=step, epoch=None if epoch is None else int(epoch))

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Writes hyperparameters to the record and to ``hparams.yaml``."""
        if self.record is None:
            super().log_hyperparams(params, metrics, step)
            return
        values = vars(params) if isinstance(params, Namespace) else params
        plain = masked_values(plain_value(dict(values or {})))
        self.hparams.update(plain)
        if plain:
            self.record.log_hyperparameters(plain)
            self._write_hyperparameters()
        if metrics:
            self.log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Does nothing if there is a record: Lightning calls this after every row, and the row is on the disk."""
        if self.record is None:
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the SummaryWriter if somebody used it."""
        super().finalize(status)

    def _write_hyperparameters(self) -> None:
        folder = Path(self.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_hparams_to_yaml(str(folder / self.NAME_HPARAMS_FILE), self.hparams)


def _as_numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the metrics as numbers; a dictionary of metrics becomes one entry for each."""
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            numbers.update(_as_numbers(value, f"{prefix}{name}/"))
        else:
            numbers[f"{prefix}{name}"] = float(value)
    return numbers
