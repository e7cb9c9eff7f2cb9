"""Shows how far the run is: a live bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import logging
import math
import time
from datetime import datetime, timezone
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar

_SECONDS_BETWEEN_LINES = 30.0
_LEAST_SECONDS_BETWEEN_LINES = 1.0
_PARTS_PER_STAGE = 10


class LiveProgressBar(TQDMProgressBar):
    """A bar that is redrawn in place, without the version number of the logger."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns what the bar shows beside itself: the metrics that were logged with ``prog_bar=True``."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class AzureMLProgressBar(ProgressBar):
    """Prints a line every so many batches, which reads well in a log file.

    :param refresh_rate: Print every so many batches and after the last one of an epoch; 0 prints nothing.
    :param print_timestamp: Start each line with the time in UTC.
    :param write_to_logging_info: Write to the log instead of the standard output.
    """

    PROGRESS_STAGE_TRAIN = "Training"
    PROGRESS_STAGE_VAL = "Validation"
    PROGRESS_STAGE_TEST = "Testing"
    PROGRESS_STAGE_PREDICT = "Prediction"

    def __init__(
        self, refresh_rate: int = 50, print_timestamp: bool = True, write_to_logging_info: bool = False
    ) -> None:
        super().__init__()
        self.print_timestamp = print_timestamp
        self.write_to_logging_info = write_to_logging_info
        self.stage = ""
        self.stage_start_time = 0.0
        self.total_num_batches: int | float = 0
        self._refresh_rate = refresh_rate
        self._is_on = True
        self._batches_before = 0

    @property
    def refresh_rate(self) -> int:
        """Number of batches between two lines."""
        return self._refresh_rate

    @property
    def is_enabled(self) -> bool:
        """True if the bar prints."""
        return self._is_on and self._refresh_rate > 0

    @property
    def is_disabled(self) -> bool:
        """True if the bar prints nothing."""
        return not self.is_enabled

    def disable(self) -> None:
        """Stops printing. Lightning calls this in every process but the first."""
        self._is_on = False

    def enable(self) -> None:
        """Prints again."""
        self._is_on = True

    # --- stages -------------------------------------------------------------------------------------------------------

    def start_stage(self, stage: str, total_num_batches: int | float) -> None:
        """Starts to count the batches of a stage from zero."""
        self.stage = stage
        self.total_num_batches = total_num_batches
        self.stage_start_time = time.monotonic()
        self._batches_before = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the stage."""
        self.start_stage(self.PROGRESS_STAGE_TRAIN, self.total_train_batches)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the stage."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._start_evaluation(self.PROGRESS_STAGE_VAL, batches)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the stage."""
        self._start_evaluation(self.PROGRESS_STAGE_TEST, trainer.num_test_batches)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the stage."""
        self._start_evaluation(self.PROGRESS_STAGE_PREDICT, trainer.num_predict_batches)

    def _start_evaluation(self, stage: str, batches: int | float | list[int | float]) -> None:
        """Starts a stage that may have several loaders, whose batches count as one sequence."""
        self._training = (self.stage, self.total_num_batches, self.stage_start_time)
        self.start_stage(stage, sum(batches) if isinstance(batches, list) else batches)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to the training, which validation can interrupt in the middle of an epoch."""
        if self._training[0] == self.PROGRESS_STAGE_TRAIN:
            self.stage, self.total_num_batches, self.stage_start_time = self._training

    # --- batches ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line if it is due."""
        self.update_progress(batch_idx + 1)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Prints a line if it is due."""
        self._count_batch()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Prints a line if it is due."""
        self._count_batch()

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Prints a line if it is due."""
        self._count_batch()

    def _count_batch(self) -> None:
        self._batches_before += 1
        self.update_progress(self._batches_before)

    def update_progress(self, batches_processed: int) -> None:
        """Prints a line if it is due after so many batches of the stage."""
        if self.is_enabled and self.is_due(batches_processed):
            self._print(self.line(batches_processed))

    def is_due(self, batches_processed: int) -> bool:
        """True if a line has to be printed after so many batches of the stage."""
        return batches_processed % self._refresh_rate == 0 or batches_processed == self.total_num_batches

    def line(self, batches_processed: int) -> str:
        """Returns the text for so many batches of the stage."""
        elapsed = time.monotonic() - self.stage_start_time
        total = self.total_num_batches
        since = f"{_minutes(elapsed)} since epoch start"
        if math.isinf(total) or not total:
            return f"{self._title()}: {batches_processed:4} batches completed, {since}"
        fraction = min(1.0, batches_processed / total)
        return (
            f"{self._title()}: {batches_processed:4}/{int(total)} ({int(100 * fraction):3}%) completed. {since}, "
            f"estimated total epoch time ~ {_minutes(elapsed / fraction)}"
        )

    def _title(self) -> str:
        if self.stage == self.PROGRESS_STAGE_TRAIN:
            return f"{self.stage} epoch {self.trainer.current_epoch} (step {self.trainer.global_step})"
        if self.stage == self.PROGRESS_STAGE_VAL:
            return f"{self.stage} epoch {self.trainer.current_epoch}"
        return self.stage

    def _print(self, message: str) -> None:
        if self.print_timestamp:
            message = f"{datetime.now(timezone.utc):%Y-%m-%dT%H%M%SZ} {message}"
        if self.write_to_logging_info:
            logging.getLogger(__name__).info(message)
        else:
            print(message, flush=True)


class LineProgressBar(AzureMLProgressBar):
    """Prints a line per 10 % of an epoch or per 30 seconds, and one at the end of each training epoch.

    Short epochs do not flood the log: other lines keep a second's distance to the one before.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=1, print_timestamp=True)
        self._part = 0
        self._last_line = time.monotonic()

    def start_stage(self, stage: str, total_num_batches: int | float) -> None:
        """Starts to count the batches of a stage from zero."""
        super().start_stage(stage, total_num_batches)
        self._part = 0

    def is_due(self, batches_processed: int) -> bool:
        """True if 10 % more or 30 seconds have passed, or the training epoch is over."""
        now = time.monotonic()
        since = now - self._last_line
        total = self.total_num_batches
        part = 0 if math.isinf(total) or not total else int(_PARTS_PER_STAGE * batches_processed / total)
        is_end = self.stage == self.PROGRESS_STAGE_TRAIN and batches_processed == total
        has_new_part = part > self._part and since >= _LEAST_SECONDS_BETWEEN_LINES
        if not (is_end or has_new_part or since >= _SECONDS_BETWEEN_LINES):
            return False
        self._part = part
        self._last_line = now
        return True


def _minutes(seconds: float) -> str:
    """Returns minutes and seconds, like 02:05."""
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"
