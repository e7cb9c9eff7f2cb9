"""What a run ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from health_ml.deep_learning_config import RunPaths
from health_ml.errors import EXIT_SIGNAL_BASE, HimlError
from health_ml.records.record import RunStatus


@dataclass(frozen=True)
class RunOutcome:
    """What a runner found out about the model.

    :param metrics: Last value of every metric of training and validation, and the test metrics.
    :param checkpoint: The checkpoint that was tested, or else the last one, or None if none was kept.
    :param messages: Sentences for the summary.
    """

    metrics: dict[str, float]
    checkpoint: Path | None = None
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    :param run_id: Id of the run.
    :param status: FINISHED if everything that was asked for was done.
    :param paths: Folders of the run.
    :param metrics: Last value of every metric, by name.
    :param checkpoint: The checkpoint that was tested, or else the last one, or None if none was kept.
    :param messages: Sentences for the summary.
    :param signal_number: The signal that ended the run, if one did.
    :param error: What failed after the run had come to its end: its results are not the expected ones.
    """

    run_id: str
    status: RunStatus
    paths: RunPaths
    metrics: dict[str, float]
    checkpoint: Path | None
    messages: tuple[str, ...] = ()
    error: HimlError | None = None
    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 0 only if everything that was asked for was done."""
        return self.status.exit_code if self.signal_number is None else EXIT_SIGNAL_BASE + self.signal_number
