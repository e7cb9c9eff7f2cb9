"""Logs load and memory of the GPUs."""

from __future__ import annotations

import csv
import logging
import shutil
import subprocess
import time
from typing import Any

from pytorch_lightning import Callback, Trainer

logger = logging.getLogger(__name__)

_QUERY = {
    "utilization.gpu": "utilization [%]",
    "memory.used": "memory_used [MB]",
    "memory.free": "memory_free [MB]",
    "temperature.gpu": "temperature [C]",
}
"""What nvidia-smi calls a value, and the name of its metric."""

_TIMEOUT_SECONDS = 10.0


def parse_gpu_table(text: str) -> dict[str, float]:
    """Returns the metrics ``gpu/<index>/<name>`` in the output of nvidia-smi; values that a GPU lacks are left out."""
    metrics: dict[str, float] = {}
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(_QUERY) + 1:
            continue
        for name, value in zip(_QUERY.values(), row[1:], strict=True):
            try:
                metrics[f"gpu/{row[0]}/{name}"] = float(value)
            except ValueError:  # "[N/A]"
                continue
    return metrics


def query_gpus(program: str) -> dict[str, float]:
    """Returns load and memory of every GPU of this machine.

    :raises OSError: If the program does not start.
    :raises subprocess.SubprocessError: If it fails or hangs.
    """
    command = [program, f"--query-gpu=index,{','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
    return parse_gpu_table(finished.stdout)


class GpuStatsCallback(Callback):
    """Logs load, memory and temperature of all GPUs of the first machine, as nvidia-smi reports them.

    :param seconds_between: Ask at most so often; each time takes some 50 ms.
    """

    def __init__(self, *, seconds_between: float = 10.0) -> None:
        super().__init__()
        self.seconds_between = seconds_between
        self._program = shutil.which("nvidia-smi")
        self._last = float("-inf")
        if self._program is None:
            logger.warning(
                "--monitor_gpu has nothing to monitor: this machine has no program nvidia-smi, and so no NVIDIA GPU "
                "that can be asked."
            )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the values if enough time has passed."""
        self._log_if_due(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the values if enough time has passed."""
        self._log_if_due(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the values if enough time has passed."""
        self._log_if_due(trainer)

    def _log_if_due(self, trainer: Trainer) -> None:
        if self._program is None or not trainer.is_global_zero:
            return
        now = time.monotonic()
        if now - self._last < self.seconds_between:
            return
        self._last = now
        try:
            metrics = query_gpus(self._program)
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning(f"--monitor_gpu stops: nvidia-smi failed ({error}).")
            self._program = None
            return
        for run_logger in trainer.loggers:
            run_logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=trainer.global_step)
