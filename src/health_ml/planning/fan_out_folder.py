"""Where a fan-out keeps its files: one value, so that its scheduler, its trials and its mirror agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from health_ml.settings import (
    BEST_CHECKPOINT,
    CHECKPOINT_FOLDER,
    CONSOLE_LOG,
    CONSOLE_LOGS_FOLDER,
    FAN_OUT_PAGE,
    FAN_OUT_TABLE,
    RECORD_FAN_OUT_LOCK_FILE,
    RECORD_FOLDER,
    RECORD_PLAN_DOCUMENT,
    RECORD_TRIAL_LOCK_FILE,
    RECORD_TRIALS_FILE,
    TRIALS_FOLDER,
)

_MOST_DIGITS = 9


@dataclass(frozen=True)
class FanOutFolder:
    """The files of one fan-out, all below its run folder."""

    run_folder: Path

    @classmethod
    def of_trial(cls, trial_folder: Path) -> FanOutFolder | None:
        """Returns the fan-out that a run folder is a trial of, or None if it is none."""
        if trial_folder.parent.name != TRIALS_FOLDER or not _is_number(trial_folder.name):
            return None
        fan_out = cls(trial_folder.parent.parent)
        return fan_out if fan_out.exists else None

    @property
    def exists(self) -> bool:
        """True if the run is a fan-out."""
        return self.trials_file.is_file()

    @property
    def run_id(self) -> str:
        """Id of the fan-out."""
        return self.run_folder.name

    @property
    def record(self) -> Path:
        """Folder of the record of the fan-out."""
        return self.run_folder / RECORD_FOLDER

    @property
    def plan_file(self) -> Path:
        """The plan: arguments of every trial without its parameters, and the search space."""
        return self.record / f"{RECORD_PLAN_DOCUMENT}.json"

    @property
    def trials_file(self) -> Path:
        """One line for each start and end of a trial."""
        return self.record / RECORD_TRIALS_FILE

    @property
    def lock_file(self) -> Path:
        """Locked by the one process that schedules the trials."""
        return self.record / RECORD_FAN_OUT_LOCK_FILE

    @property
    def table_file(self) -> Path:
        """The results for a spreadsheet."""
        return self.run_folder / FAN_OUT_TABLE

    @property
    def page_file(self) -> Path:
        """The results for a browser."""
        return self.run_folder / FAN_OUT_PAGE

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best trial."""
        return self.run_folder / CHECKPOINT_FOLDER / BEST_CHECKPOINT

    def trial_indices(self) -> list[int]:
        """Returns the numbers of the trials that have a folder, in order."""
        try:
            names = [entry.name for entry in (self.run_folder / TRIALS_FOLDER).iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if _is_number(name))

    def trial_run_id(self, index: int) -> str:
        """Returns the id of the run of a trial."""
        return f"{self.run_id}_{index}"

    def trial_folder(self, index: int) -> Path:
        """Returns the run folder of a trial."""
        return self.run_folder / TRIALS_FOLDER / str(index)

    def trial_record(self, index: int) -> Path:
        """Returns the folder of the record of a trial."""
        return self.trial_folder(index) / RECORD_FOLDER

    def trial_lock(self, index: int) -> Path:
        """Returns the file that is locked as long as the process of a trial lives."""
        return self.trial_record(index) / RECORD_TRIAL_LOCK_FILE

    def trial_log(self, index: int) -> Path:
        """Returns the file with what a trial printed, in all of its attempts."""
        return self.trial_folder(index) / CONSOLE_LOGS_FOLDER / CONSOLE_LOG


def find_trial_folder(store: Path, run_id: str) -> Path | None:
    """Returns the run folder of the trial with an id like ``<id of the fan-out>_3`` in a store of runs, or None."""
    fan_out_id, _, number = run_id.rpartition("_")
    if not fan_out_id or not _is_number(number):
        return None
    fan_out = FanOutFolder(store / fan_out_id)
    folder = fan_out.trial_folder(int(number))
    return folder if str(int(number)) == number and fan_out.exists and folder.is_dir() else None


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= _MOST_DIGITS
