"""What the campaign does to runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.attempts import Attempt
from faults.trial import DDP, Scenario, Trial, is_complete
from health_ml.errors import EXIT_FAILED, EXIT_SIGNAL_BASE, EXIT_USAGE
from health_ml.records.lines import read_rows
from health_ml.records.record import RunStatus
from health_ml.settings import RECORD_ATTEMPTS_FILE, RECORD_FOLDER, RECORD_STATUS_FILE

KILLED = {EXIT_SIGNAL_BASE + signal.SIGKILL: {RunStatus.KILLED}}
RANK_SECONDS = 60.0


def stopped_by(number: signal.Signals, status: RunStatus) -> dict[int, set[RunStatus]]:
    """Returns the exit code of a signal with the statuses that are right with it.

    KILLED is right for a run that the signal reaches before it handles signals.
    """
    return {EXIT_SIGNAL_BASE + number: {status, RunStatus.KILLED}}


def interrupt(trial: Trial, *numbers: signal.Signals, allowed: dict[int, set[RunStatus]]) -> bool:
    """Starts an attempt and sends signals at a random moment; returns False if it had finished before."""
    usable = any(map(is_complete, trial.checkpoints))
    steps = trial.steps_logged()
    is_first = trial.status() is None
    starts, statuses = _lines(trial, RECORD_ATTEMPTS_FILE), _lines(trial, RECORD_STATUS_FILE)
    attempt = trial.start()
    moment = trial.dice.uniform(0.05, 1.0) * trial.duration
    attempt.wait_until(lambda: time.monotonic() - attempt.started > moment)
    for number in numbers:
        attempt.send(number)
        time.sleep(trial.dice.uniform(0, 0.02))
    code = attempt.wait()
    attempt.end_session()
    if _lines(trial, RECORD_ATTEMPTS_FILE) > starts:
        trial.check_start(steps, is_first=is_first, has_checkpoint=usable)
    return trial.check_end(code, allowed, has_record=_lines(trial, RECORD_STATUS_FILE) > statuses)


def _lines(trial: Trial, file_name: str) -> int:
    """Returns how many lines a file of the record has."""
    return len(read_rows(trial.run_folder / RECORD_FOLDER / file_name))


def again_and_again(trial: Trial, *numbers: signal.Signals, allowed: dict[int, set[RunStatus]]) -> None:
    """Interrupts a run up to three times, and continues it to its end."""
    for _ in range(trial.dice.randint(1, 3)):
        if not interrupt(trial, *numbers, allowed=allowed):
            trial.compare()
            return
    trial.finish()


def kill(trial: Trial) -> None:
    """SIGKILL, as when the machine is switched off or the memory is full."""
    again_and_again(trial, signal.SIGKILL, allowed=KILLED)


def term(trial: Trial) -> None:
    """SIGTERM."""
    again_and_again(trial, signal.SIGTERM, allowed=stopped_by(signal.SIGTERM, RunStatus.PREEMPTED))


def usr1(trial: Trial) -> None:
    """SIGUSR1, the notice of a batch system."""
    again_and_again(trial, signal.SIGUSR1, allowed=stopped_by(signal.SIGUSR1, RunStatus.PREEMPTED))


def ctrl_c(trial: Trial) -> None:
    """SIGINT."""
    again_and_again(trial, signal.SIGINT, allowed=stopped_by(signal.SIGINT, RunStatus.CANCELLED))


def twice(trial: Trial) -> None:
    """SIGTERM, and again before the run has ended."""
    again_and_again(trial, signal.SIGTERM, signal.SIGTERM, allowed=stopped_by(signal.SIGTERM, RunStatus.PREEMPTED))


def fresh(trial: Trial) -> None:
    """A process that is not forked, with any of the signals."""
    trial.is_fresh = True
    trial.duration += 5.0  # for the imports
    trial.dice.choice([kill, term, usr1, ctrl_c])(trial)


# --- damaged files ----------------------------------------------------------------------------------------------------


def damaged(trial: Trial) -> None:
    """Some checkpoints are cut off or changed while the run is interrupted: the newest good one counts."""
    if not interrupt(trial, signal.SIGKILL, allowed=KILLED):
        trial.compare()
        return
    files = trial.checkpoints
    if len(files) > 1:
        for path in trial.dice.sample(files, trial.dice.randint(1, len(files) - 1)):
            _damage(trial, path)
    trial.finish()


def all_damaged(trial: Trial) -> None:
    """All checkpoints are damaged: that is an error, and only without them the run starts from the beginning."""
    if not interrupt(trial, signal.SIGKILL, allowed=KILLED):
        trial.compare()
        return
    files = trial.checkpoints
    for path in files:
        _damage(trial, path)
    if files:
        attempt = trial.start()
        code = attempt.wait()
        trial.outcome.interruptions += 1
        if code != EXIT_FAILED:
            trial.broken("silent restarts" if code == 0 else "wrong exit codes", f"{code} without a good checkpoint")
    for path in files:
        path.unlink()
    trial.finish()


def _damage(trial: Trial, path: Path) -> None:
    data = bytearray(path.read_bytes())
    if trial.dice.random() < 0.5:
        del data[trial.dice.randrange(len(data)) :]
    else:
        while is_complete(path):  # some bytes mean nothing
            place = trial.dice.randrange(len(data))
            data[place] ^= trial.dice.randint(1, 255)
            path.write_bytes(data)
    path.write_bytes(data)


# --- the disk ---------------------------------------------------------------------------------------------------------


def full_disk(trial: Trial) -> None:
    """The disk is full at some moment; when there is room again, the run continues."""
    with _small_disk(trial) as (limit, make_room):
        attempt = trial.start(largest_file=limit)
        code = attempt.wait()
        attempt.end_session()
        failed = {RunStatus.FAILED, RunStatus.KILLED, RunStatus.RUNNING}
        is_interrupted = trial.check_end(code, {EXIT_FAILED: failed, EXIT_USAGE: failed})
        if is_interrupted and not any(word in trial.last_words() for word in ("No space left", "too large", "full")):
            trial.broken("wrong statuses", f"the disk is not named: {trial.last_words()}")
        make_room()
        trial.finish()


@contextmanager
def _small_disk(trial: Trial) -> Iterator[tuple[int | None, object]]:
    """Yields a limit for the size of files where no disk can be made, and a function that makes room."""
    trial.run_folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(trial.run_folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield trial.dice.randint(500, 40_000), lambda: None
        return
    try:
        filler = trial.run_folder / ".filler"
        filler.write_bytes(bytes((2 << 20) - trial.dice.randint(8, 90) * 4096))
        yield None, lambda: filler.unlink()
        copy = trial.folder / "copy"
        shutil.copytree(trial.run_folder, copy)
    finally:
        subprocess.run(["umount", "-l", str(trial.run_folder)], check=False)


# --- other processes --------------------------------------------------------------------------------------------------


def dead_server(trial: Trial) -> None:
    """The tracking server does not answer."""
    trial.tracking = "http://127.0.0.1:9"
    kill(trial)


def dead_rank(trial: Trial) -> None:
    """One of two processes of a distributed training is killed: the other one ends, and both are continued."""
    trial.flags = DDP
    attempt = trial.start()
    attempt.wait_until(lambda: trial.steps_logged() > 0, 90)
    time.sleep(trial.dice.uniform(0, 0.5))
    others = [pid for pid in attempt.session() if pid != attempt.pid and _is_rank(pid)]
    is_first = trial.dice.random() < 0.5
    if is_first:
        attempt.send(signal.SIGKILL)
    else:
        for pid in others:
            os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    code = attempt.wait(RANK_SECONDS)
    while attempt.session() and time.monotonic() - killed_at < RANK_SECONDS:
        time.sleep(0.1)
    if attempt.session():
        trial.broken("processes that hang", f"{len(attempt.session())} after {RANK_SECONDS:g} s")
    attempt.end_session()
    allowed = KILLED if is_first else {EXIT_FAILED: {RunStatus.FAILED}}
    if trial.check_end(code, allowed) and not _names_the_cause(trial):
        trial.broken("wrong statuses", f"nobody says which process was killed: {trial.last_words()}")
    trial.finish()


def two_processes(trial: Trial) -> None:
    """SIGTERM for the first of two processes: both stop after the same batch, and each goes on where it was."""
    trial.flags = DDP
    attempt = trial.start()
    attempt.wait_until(lambda: trial.steps_logged() > 0, 90)
    time.sleep(trial.dice.uniform(0, 0.4))
    attempt.send(signal.SIGTERM)
    code = attempt.wait(RANK_SECONDS)
    attempt.end_session()
    trial.check_end(code, stopped_by(signal.SIGTERM, RunStatus.PREEMPTED))
    trial.finish()


def _is_rank(pid: int) -> bool:
    try:
        return b"health_ml.runner" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _names_the_cause(trial: Trial) -> bool:
    text = trial.log.read_text(errors="replace")
    return "local rank 1 was ended by SIGKILL" in text or "was killed: this one ends too" in text


def second_resume(trial: Trial) -> None:
    """A second process wants to continue a run that is running: it is refused, and the first one is not disturbed."""
    first = trial.start()
    first.wait_until(lambda: trial.steps_logged() > 0)
    log = trial.log
    second: Attempt = trial.start()
    code = second.wait()
    text = trial.log.read_text(errors="replace")
    is_first_over = first.poll() is not None
    if not is_first_over and (code != EXIT_USAGE or f"Process {first.pid} on" not in text):
        trial.broken("wrong exit codes", f"{code} of a second process: {text[-300:]}")
    first.send(signal.SIGKILL)
    first.wait()
    trial.outcome.interruptions += 1
    assert log.exists()
    trial.finish()


SCENARIOS: dict[str, tuple[Scenario, int]] = {
    "killed": (kill, 30),
    "SIGTERM": (term, 22),
    "SIGUSR1": (usr1, 10),
    "Ctrl-C": (ctrl_c, 6),
    "second signal": (twice, 8),
    "damaged checkpoints": (damaged, 12),
    "no good checkpoint": (all_damaged, 4),
    "full disk": (full_disk, 8),
    "fresh processes": (fresh, 5),
    "dead server": (dead_server, 2),
    "dead rank": (dead_rank, 3),
    "two processes": (two_processes, 3),
    "second resume": (second_resume, 3),
}
"""Each scenario with its share in percent, roughly."""
