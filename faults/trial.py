"""One trial of the campaign: a run that is interrupted, continued until it has finished, and compared."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults.attempts import Attempt, Command
from faults.compare import differences, metric_rows
from health_ml.checkpoints.inspect import verify
from health_ml.errors import CheckpointError, RunNotFoundError
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.settings import CHECKPOINT_FOLDER, ENV_RUN_FOLDER, LAST_CHECKPOINT

TOKEN = "hf_" + "plantedsecret" * 3
"""A secret that every run is given, and that must be nowhere in what it leaves."""
STEPS_PER_EPOCH = 3
DDP = ("--trainer.accelerator=cpu", "--trainer.devices=2")
PROMISES = (
    "metrics lost",
    "wrong exit codes",
    "silent restarts",
    "damaged final checkpoints",
    "secrets leaked",
    "wrong statuses",
    "different results",
    "processes that hang",
)


@dataclass
class Outcome:
    """What a trial has found.

    :param kind: What was done to the run.
    :param number: Number of the trial.
    :param interruptions: How often it was interrupted.
    :param resumes: How often it was continued.
    :param epochs_lost: The most of an epoch that one interruption cost.
    :param problems: Broken promises, each with what happened.
    """

    kind: str
    number: int
    interruptions: int = 0
    resumes: int = 0
    epochs_lost: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as values of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """Returns the outcome that :meth:`to_json` wrote."""
        problems = [(name, text) for name, text in values.pop("problems")]
        return cls(**values, problems=problems)


@dataclass
class Trial:
    """A run folder and what happens in it.

    :param folder: An empty folder for everything.
    :param project: Folder with the model.
    :param reference: Run folder of the same run without interruptions.
    :param duration: How long that took, in seconds.
    :param dice: Where chance comes from.
    :param outcome: What has been found so far.
    """

    folder: Path
    project: Path
    reference: Path
    duration: float
    dice: random.Random
    outcome: Outcome
    flags: tuple[str, ...] = ()
    tracking: str = "none"
    is_fresh: bool = False
    attempts: int = 0

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.folder / "run"

    @property
    def checkpoints(self) -> list[Path]:
        """The files to continue from."""
        return sorted((self.run_folder / CHECKPOINT_FOLDER).glob("*.ckpt"))

    @property
    def log(self) -> Path:
        """What the present attempt prints."""
        return self.folder / f"attempt_{self.attempts}.log"

    def start(self, *flags: str, largest_file: int | None = None) -> Attempt:
        """Returns a new process of the run."""
        self.attempts += 1
        argv = ["--model=demanding.Demanding", f"--tracking_uri={self.tracking}", f"--api_token={TOKEN}"]
        variables = {ENV_RUN_FOLDER: str(self.run_folder), "AZURE_CLIENT_SECRET": TOKEN}
        return Attempt(
            Command(
                [*argv, "--pause=0.01", *self.flags, *flags], self.project, variables, self.log,
                is_fresh=self.is_fresh, largest_file=largest_file,
            )
        )  # fmt: skip

    def broken(self, promise: str, text: str) -> None:
        """Notes a broken promise."""
        assert promise in PROMISES
        self.outcome.problems.append((promise, f"attempt {self.attempts}: {text}"))

    # --- checks -------------------------------------------------------------------------------------------------------

    def check_end(self, code: int | None, allowed: dict[int, set[RunStatus]], *, has_record: bool = True) -> bool:
        """Returns True if an attempt was interrupted, False if it had finished before.

        :param code: Its exit code.
        :param allowed: The statuses that the record may have with each exit code that is right.
        :param has_record: Whether the attempt came so far that it has written to the record.
        """
        status = self.status()
        if status is RunStatus.FINISHED and code in (0, *allowed):  # maybe interrupted when nothing was left to do
            return False
        self.outcome.interruptions += 1
        if code is None:
            self.broken("processes that hang", "the process did not end")
        elif code not in allowed:
            self.broken(
                "wrong exit codes", f"{code} with status {status}, expected {sorted(allowed)}: {self.last_words()}"
            )
        elif has_record and status is not None and status not in allowed[code]:
            self.broken("wrong statuses", f"{status.value} with exit code {code}")
        return True

    def status(self) -> RunStatus | None:
        """Returns the status in the record, None if there is none yet."""
        try:
            return read_record(self.run_folder).status.status
        except RunNotFoundError:
            return None

    def finish(self) -> None:
        """Continues the run until it has finished, and compares it with the reference."""
        self.check_continuation(self.start())
        if self.status() is not RunStatus.FINISHED:
            self.broken("wrong statuses", f"{self.status()} at the end: {self.last_words()}")
            return
        self.compare()

    def check_continuation(self, attempt: Attempt) -> None:
        """Waits for an attempt that nobody interrupts."""
        usable = any(map(is_complete, self.checkpoints))
        steps = self.steps_logged()
        is_first = self.status() is None
        code = attempt.wait()
        attempt.end_session()
        if code != 0:
            self.broken("wrong exit codes", f"{code} of a run that nobody interrupted: {self.last_words()}")
            return
        self.check_start(steps, is_first=is_first, has_checkpoint=usable)

    def check_start(self, steps: int, *, is_first: bool, has_checkpoint: bool) -> None:
        """Looks at where the newest attempt that has started to train has started.

        :param steps: Optimizer steps that were logged before.
        """
        if is_first:
            return
        self.outcome.resumes += 1
        starts = read_record(self.run_folder).attempts
        if not has_checkpoint or not starts:
            return
        resumed = starts[-1].get("step") or 0
        if starts[-1].get("checkpoint") is None:
            self.broken("silent restarts", f"started from zero after {steps} steps")
        else:
            self.outcome.epochs_lost = max(self.outcome.epochs_lost, (steps - resumed) / STEPS_PER_EPOCH)

    def steps_logged(self) -> int:
        """Returns how many optimizer steps the record knows of."""
        try:
            rows = metric_rows(self.run_folder)
        except RunNotFoundError:
            return 0
        return max(
            (step + 1 for step, _, row in rows if step is not None and row[0][0].startswith("train/")), default=0
        )

    def compare(self) -> None:
        """Compares the run with the reference, and looks for secrets."""
        for text in differences(self.run_folder, self.reference):
            self.broken("metrics lost" if "rows" in text else "different results", text)
        for path in self.checkpoints:
            if not is_complete(path) and path.name == LAST_CHECKPOINT:
                self.broken("damaged final checkpoints", path.name)
        if not (self.run_folder / CHECKPOINT_FOLDER / LAST_CHECKPOINT).is_file():
            self.broken("damaged final checkpoints", "there is none")
        for path in self.folder.rglob("*"):
            if path.is_file() and TOKEN.encode() in path.read_bytes():
                self.broken("secrets leaked", str(path.relative_to(self.folder)))

    def last_words(self) -> str:
        """Returns the end of what the present attempt has printed."""
        return self.log.read_text(errors="replace").strip()[-600:] if self.log.exists() else ""


def is_complete(path: Path) -> bool:
    """True for a checkpoint that can be continued from."""
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


Scenario = Callable[[Trial], None]
