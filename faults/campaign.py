"""Runs trials side by side, adds up what they have found, and prints the table."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults import demanding
from faults.attempts import fork, load_everything
from faults.crowd import check_runs_at_once, check_store_at_once
from faults.scenarios import SCENARIOS
from faults.trial import DDP, PROMISES, Outcome, Trial

AUTOSAVE_EPOCHS = 1
"""How much of a training a kill may cost: ``--autosave_every_n_val_epochs``."""


@dataclass
class Report:
    """What a campaign has found.

    :param outcomes: One for each trial.
    :param seconds: How long it took.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def interruptions(self) -> int:
        """How often a run was interrupted."""
        return sum(outcome.interruptions for outcome in self.outcomes)

    @property
    def epochs_lost(self) -> float:
        """The most of an epoch that one interruption cost."""
        return max((outcome.epochs_lost for outcome in self.outcomes), default=0.0)

    @property
    def broken(self) -> Counter[str]:
        """How often each promise was broken."""
        return Counter(promise for outcome in self.outcomes for promise, _ in outcome.problems)

    @property
    def is_kept(self) -> bool:
        """True if every promise was kept."""
        return not self.broken and self.epochs_lost <= AUTOSAVE_EPOCHS


class Campaign:
    """A number of trials.

    :param folder: An empty folder for everything.
    :param seed: Seed of everything that is random.
    :param processes: Trials at the same time.
    :param only: Name of the only scenario; empty: all.
    """

    def __init__(self, folder: Path, *, seed: int, processes: int, only: str = "") -> None:
        self._folder = folder
        self._seed = seed
        self._processes = processes
        self._only = only
        self._project = folder / "project"
        self._references: dict[bool, tuple[Path, float]] = {}

    def run(self, interruptions: int, *, starts: int) -> Report:
        """Returns what came out after at least so many interruptions, each run continued to its end."""
        started = time.monotonic()
        self._project.mkdir()
        shutil.copy(Path(demanding.__file__), self._project / "demanding.py")
        sys.path.insert(0, str(self._project))
        load_everything()
        report = Report()
        if not self._only:
            check_runs_at_once(self._folder / "at_once", self._project, starts, report.outcomes)
            check_store_at_once(self._folder / "store", report.outcomes)
        self._references = {False: self._reference("reference")}
        self._run_trials(report, interruptions)
        report.seconds = time.monotonic() - started
        return report

    def _run_trials(self, report: Report, interruptions: int) -> None:
        kinds = self._kinds()
        running: dict[int, tuple[Path, Outcome]] = {}
        number = 0
        while running or report.interruptions < interruptions:
            is_enough = report.interruptions + len(running) >= interruptions
            if len(running) < self._processes and not is_enough:
                kind = next(kinds)
                folder = self._folder / f"trial_{number:03}"
                running[self._start(kind, number, folder)] = folder, Outcome(kind, number)
                number += 1
                continue
            pid, status = os.wait()
            folder, empty = running.pop(pid)
            outcome = _read(folder, empty, status)
            report.outcomes.append(outcome)
            _announce(report, outcome)
            if not outcome.problems:
                shutil.rmtree(folder)

    def _kinds(self) -> Iterator[str]:
        """Yields the scenarios for ever, in a random order, as often as their shares say; each comes soon."""
        dice = random.Random(self._seed)
        if self._only:
            while True:
                yield self._only
        yield from dice.sample(list(SCENARIOS), len(SCENARIOS))
        while True:
            names = [name for name, (_, share) in SCENARIOS.items() for _ in range(share)]
            yield from dice.sample(names, len(names))

    def _start(self, kind: str, number: int, folder: Path) -> int:
        """Returns the id of a process that does a trial and writes what it has found."""
        is_distributed = kind in ("dead rank", "two processes")
        if is_distributed not in self._references:
            self._references[is_distributed] = self._reference("reference_of_two", *DDP)
        reference, duration = self._references[is_distributed]
        dice = random.Random(f"{self._seed} {number}")
        trial = Trial(folder, self._project, reference, duration, dice, Outcome(kind, number))
        return fork(lambda: _run_trial(trial))

    def _reference(self, name: str, *flags: str) -> tuple[Path, float]:
        """Returns the run folder of a run that nobody interrupts, and its duration."""
        trial = Trial(self._folder / name, self._project, Path(), 0.0, random.Random(), Outcome(name, -1), flags)
        attempt = trial.start()
        if attempt.wait(120) != 0:
            raise RuntimeError(f"The run that nobody interrupts failed: {trial.last_words()}")
        return trial.run_folder, time.monotonic() - attempt.started


def _run_trial(trial: Trial) -> int:
    trial.folder.mkdir()
    scenario, _ = SCENARIOS[trial.outcome.kind]
    try:
        scenario(trial)
    except Exception:
        trial.broken("different results", traceback.format_exc())
    (trial.folder / "outcome.json").write_text(json.dumps(trial.outcome.to_json()))
    return 0


def _read(folder: Path, empty: Outcome, status: int) -> Outcome:
    try:
        return Outcome.from_json(json.loads((folder / "outcome.json").read_text()))
    except (OSError, ValueError):
        empty.problems.append(("different results", f"the trial has left no result (status {status})"))
        return empty


def _announce(report: Report, outcome: Outcome) -> None:
    for promise, text in outcome.problems:
        print(f"trial {outcome.number} ({outcome.kind}): {promise}: {text}", file=sys.stderr)
    print(f"\r{report.interruptions} interruptions ", end="", file=sys.stderr, flush=True)


def render(report: Report) -> str:
    """Returns the table of a campaign."""
    kinds = Counter[str]()
    for outcome in report.outcomes:
        kinds[outcome.kind] += outcome.interruptions
    broken = report.broken
    lines = ["", "| scenario | interruptions |", "| --- | --- |"]
    lines += [f"| {kind} | {count} |" for kind, count in sorted(kinds.items()) if count]
    lines += ["", "| promise | result | wanted |", "| --- | --- | --- |"]
    lines += [
        f"| interruptions | {report.interruptions} | |",
        f"| resumes | {sum(outcome.resumes for outcome in report.outcomes)} | |",
        f"| epochs lost by one interruption, at most | {report.epochs_lost:.2f} | {AUTOSAVE_EPOCHS} |",
    ]
    lines += [f"| {promise} | {broken[promise]} | 0 |" for promise in PROMISES]
    return "\n".join([*lines, "", f"{len(report.outcomes)} trials in {report.seconds:.0f} s."])
