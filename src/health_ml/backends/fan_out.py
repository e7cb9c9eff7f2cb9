"""Runs a fan-out on this machine: a new one, one whose scheduler was killed, or the failed trials of one that ended."""

from __future__ import annotations

import fcntl
import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from health_ml.backends.fan_out_resources import Slots, share_out
from health_ml.backends.fan_out_results import make_report, write_results
from health_ml.backends.fan_out_scheduler import Scheduler
from health_ml.backends.run_facts import ProvenanceThread, RunDocument, machine_facts
from health_ml.backends.trial_lock import read_owner, write_owner
from health_ml.backends.trial_processes import TrialServer, kill_trials, living_trials
from health_ml.environment import Place, RunEnvironment, process_environment
from health_ml.errors import BackendError, PlanError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan
from health_ml.planning.secrets import MASK
from health_ml.records.fan_out_report import FanOutReport
from health_ml.records.mirror import WaitingMirror, start_mirror
from health_ml.records.mirror_handle import MirrorHandle
from health_ml.records.process_identity import process_identity
from health_ml.records.reader import read_document, read_record
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.trial_log import TrialLog
from health_ml.settings import LIGHTNING_LOGS_FOLDER, LOGS_FOLDER, RECORD_PLAN_DOCUMENT
from health_ml.training.signals import RunInterrupted, SignalGuard

logger = logging.getLogger(__name__)

MIRROR_SECONDS = 60.0

Write = Callable[[str], object]


@dataclass(frozen=True)
class FanOutResult:
    """How a fan-out ended.

    :param run_id: Id of the fan-out.
    :param run_folder: Its folder.
    :param status: FINISHED only if all trials did.
    :param message: What was not done, or an empty text.
    :param report: The results of the trials.
    """

    run_id: str
    run_folder: Path
    status: RunStatus
    message: str
    report: FanOutReport

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 0 only if all trials finished."""
        return self.status.exit_code


@dataclass(frozen=True)
class WarmProcesses:
    """Processes that were started before the plan was known, because what they load takes seconds.

    :param server: Starts the trials; used if it has the environment that the plan asks for.
    :param mirror: Becomes the mirror of the fan-out.
    """

    server: TrialServer | None = None
    mirror: WaitingMirror | None = None


def check_fan_out(plan: JobPlan) -> Slots:
    """Returns how many trials of a plan this machine runs at the same time, and what each gets.

    :raises PlanError: If the plan varies nothing, or asks for more GPUs or machines than there are.
    """
    if plan.search_space is None:
        raise PlanError("The plan varies nothing, so there are no trials.", "Add --sweep or --different_seeds.")
    check_one_node(plan)
    return share_out(plan.search_space, plan.trials, {**process_environment(), **plan.environment})


def check_one_node(plan: JobPlan) -> None:
    """Raises an error if the trials are to run on several machines.

    :raises PlanError: If so.
    """
    if plan.num_nodes > 1:
        raise PlanError(
            f"--num_nodes={plan.num_nodes}: the trials of a fan-out run on this machine, each as one node.",
            "Leave out --num_nodes, or submit the fan-out to a cluster.",
        )


def create_fan_out(plan: JobPlan, run_folder: Path) -> FanOutFolder:
    """Returns the files of a new fan-out, whose record holds the plan and no trials yet. Nothing is started.

    :param plan: The arguments are those of a trial without its parameters.
    :param run_folder: Folder of the run; its name is the id of the fan-out. Its record may exist already.
    :raises PlanError: If the plan cannot be run on this machine.
    """
    check_fan_out(plan)
    folder = FanOutFolder(run_folder.absolute())
    record = RunRecord.create(folder.record, run_id=folder.run_id)
    record.set_status(RunStatus.QUEUED)
    record.write_document(RECORD_PLAN_DOCUMENT, plan.to_json())
    record.close()
    folder.trials_file.touch()
    return folder


def read_plan(folder: FanOutFolder, *, is_complete: bool = True) -> JobPlan:
    """Returns the plan of a fan-out.

    :param is_complete: False if the caller has the secrets that the record does not keep.
    :raises BackendError: If the run is no fan-out, or its plan had a secret, which the record does not keep.
    :raises PlanError: If the plan cannot be read.
    """
    if not folder.exists:
        raise BackendError(f"The run in {folder.run_folder} is no fan-out.", "Give the id of a fan-out.")
    plan = JobPlan.from_json(read_document(folder.plan_file))
    masked = [argument for argument in plan.argv if MASK in argument]
    masked += [name for name, value in plan.environment_variables if MASK in value]
    if masked and is_complete:
        raise BackendError(
            f"The plan of {folder.run_id} has secrets, which the record does not keep: {', '.join(masked)}.",
            "Start the fan-out again with the same command.",
        )
    return plan


def run_fan_out(
    run_folder: Path,
    *,
    place: Place,
    write: Write,
    plan: JobPlan | None = None,
    is_rerunning_failed: bool = False,
    warm: WarmProcesses | None = None,
) -> FanOutResult:
    """Returns how a fan-out ended after running all of its trials that have not ended yet.

    Works alike for a new fan-out and for one whose scheduler was killed or interrupted: trials that have ended are
    not repeated, those whose process lives are followed to their end, and the others continue from their checkpoints.

    :param run_folder: Folder of a run that :func:`create_fan_out` has prepared.
    :param place: Where the trials run.
    :param write: Gets lines about the progress, and the table of the results at the end.
    :param plan: The plan, if it is at hand: the record does not keep secrets.
    :param is_rerunning_failed: True to run the failed trials again.
    :param warm: Processes that were started before.
    :raises BackendError: If the run is no fan-out, or another process is running it.
    :raises PlanError: If this machine cannot run it.
    """
    warm = warm or WarmProcesses()
    folder = FanOutFolder(run_folder.absolute())
    plan = plan or read_plan(folder)
    slots = check_fan_out(plan)
    with _fan_out_lock(folder), ExitStack() as stack:
        run = _FanOut(folder, plan, slots=slots, place=place, write=write)
        stack.callback(run.record.close)
        return run.execute(warm, is_rerunning_failed=is_rerunning_failed)


class _FanOut:
    """One scheduler's work on a fan-out, with its record."""

    def __init__(self, folder: FanOutFolder, plan: JobPlan, *, slots: Slots, place: Place, write: Write) -> None:
        self.folder = folder
        self.plan = plan
        self.slots = slots
        self.place = place
        self.write = write
        self.attempt = _next_attempt(folder)
        self.record = RunRecord.create(folder.record, run_id=folder.run_id, attempt=self.attempt)
        self.log = TrialLog(folder, self.record)
        self.scheduler = Scheduler(folder, plan, place=place, slots=slots, log=self.log, write=write)
        assert plan.search_space is not None
        self.space = plan.search_space

    def execute(self, warm: WarmProcesses, *, is_rerunning_failed: bool) -> FanOutResult:
        """Runs, closes the record with what really happened, and returns it."""
        guard = SignalGuard(on_forced_exit=self._note_forced_exit)
        with guard.installed(), guard.deferring():
            document = RunDocument(self.record, self._facts())
            code = self.place.start_directory if self.place.start_directory == self.place.project_root else None
            provenance = ProvenanceThread(self.record, document, code).start()
            mirror = self._start_mirror(warm.mirror)
            try:
                self._write_tags()
                self._run_trials(warm.server, guard, is_rerunning_failed=is_rerunning_failed)
                status, message = self._verdict(guard)
            except BaseException as error:
                for trial in living_trials(self.folder):
                    trial.send_signal(signal.SIGTERM)  # they save what they have, and can be taken up
                self._close(RunStatus.FAILED, str(error), provenance=provenance, document=document, mirror=mirror)
                raise
            report = make_report(self.folder, self.space)
            write_results(self.folder, report, self.record)
            self._close(status, message, provenance=provenance, document=document, mirror=mirror)
        self._show(report, status, message)
        return FanOutResult(self.folder.run_id, self.folder.run_folder, status, message, report)

    def _run_trials(self, warm: TrialServer | None, guard: SignalGuard, *, is_rerunning_failed: bool) -> None:
        self.scheduler.take_up(is_rerunning_failed=is_rerunning_failed)
        count = self.space.trial_count
        self.write(
            f"Fan-out {self.folder.run_id}: {count} trial{'s' * (count != 1)} ({', '.join(self.space.sources)}), "
            f"{self.slots.count} at a time{self.slots.describe()}, {self.scheduler.left} to start."
        )
        if not self.scheduler.left:
            self.scheduler.run(None, guard)
            return
        environment = {**self.plan.environment, **self.slots.shared_environment}
        if warm is not None and warm.serves(self.place.start_directory, environment):
            server = warm
        else:
            server = TrialServer(self.plan.model, folder=self.place.start_directory, environment=environment)
        try:
            self.scheduler.run(server, guard)
        finally:
            if server is not warm:
                server.close()
        if server.obstacle:
            logger.warning(f"Each trial had to load everything by itself, because {server.obstacle}.")

    def _verdict(self, guard: SignalGuard) -> tuple[RunStatus, str]:
        """Returns how the fan-out ended, and why if not all trials finished."""
        states = self.log.states
        unfinished = [
            f"{index} ({state.end.status.value if state.end else 'not ended'})"
            for index, state in sorted(states.items())
            if state.end is None or state.end.status is not RunStatus.FINISHED
        ]
        parts = [self.scheduler.stop_reason]
        if unfinished:
            parts.append(f"{len(unfinished)} of {len(states)} trials did not finish: {', '.join(unfinished)}.")
        if self.scheduler.left:
            parts.append(f"{self.scheduler.left} were not started.")
        message = " ".join(part for part in parts if part)
        if guard.received is not None and (unfinished or self.scheduler.left):
            interruption = RunInterrupted(guard.received)
            return interruption.status, f"{interruption} {message}"
        return (RunStatus.FAILED, message) if message else (RunStatus.FINISHED, "")

    def _show(self, report: FanOutReport, status: RunStatus, message: str) -> None:
        self.write(f"\n{report.to_text()}\n" if report.trials else "\nNo trial has been started.\n")
        self.write(f"Fan-out {self.folder.run_id}: {status.value}. {message}".rstrip())
        self.write(f"  Results: {self.folder.page_file} and {self.folder.table_file.name}")
        if status in (RunStatus.CANCELLED, RunStatus.PREEMPTED):
            self.write(f"  Go on:   himl-runner --attach={self.folder.run_id}")
        elif status is RunStatus.FAILED:
            self.write(f"  Run what failed again: himl-runner --rerun_failed={self.folder.run_id}")

    # --- record -------------------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, object]:
        typed = dict(self.plan.tags).get("commandline_args")  # the plan's own arguments are those of a trial
        return {
            "run_id": self.folder.run_id,
            "kind": "fan_out",
            "model": self.plan.model_name,
            "experiment": self.plan.experiment,
            "command_line": ["himl-runner", *(self.plan.argv if typed is None else shlex.split(typed))],
            "started": time.time(),
            "attempt": self.attempt,
            **machine_facts(),
        }

    def _write_tags(self) -> None:
        self.record.log_tags({"model_name": self.plan.model_name, **dict(self.plan.tags)})
        self.record.log_hyperparameters({"search_space": self.space.to_json()})

    def _start_mirror(self, waiting: WaitingMirror | None) -> MirrorHandle:
        return start_mirror(
            self.folder.record,
            tracking_uri=self.plan.trials.tracking_uri,
            experiment=self.plan.experiment or self.plan.model_name,
            run_name=self.plan.display_name or self.folder.run_id,
            tensorboard_folder=self.folder.run_folder / LOGS_FOLDER / LIGHTNING_LOGS_FOLDER,
            project_root=self.place.project_root,
            waiting=waiting,
        )

    def _close(
        self,
        status: RunStatus,
        message: str,
        *,
        provenance: ProvenanceThread,
        document: RunDocument,
        mirror: MirrorHandle,
    ) -> None:
        provenance.join()
        document.update({"ended": time.time()})
        self.record.set_status(status, message)
        state = mirror.finish(MIRROR_SECONDS)
        if not state.is_complete:
            self.write(state.message)

    def _note_forced_exit(self, interruption: RunInterrupted) -> None:
        kill_trials(self.folder)
        self.record.set_status(interruption.status, f"{interruption} It was asked twice, so it exited at once.")


def _next_attempt(folder: FanOutFolder) -> int:
    """Returns the number of this attempt: 0 if nothing has run so far."""
    given = RunEnvironment.from_env(process_environment())
    before = read_record(folder.record).status
    own = before.attempt if before.status is RunStatus.QUEUED else before.attempt + 1
    return max(own, given.attempt) if given.run_id == folder.run_id else own


@contextmanager
def _fan_out_lock(folder: FanOutFolder) -> Iterator[None]:
    """Makes this process the only one that schedules the trials.

    :raises BackendError: If another one does.
    """
    with folder.lock_file.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = read_owner(folder.lock_file)
            raise BackendError(
                f"The fan-out {folder.run_id} is run by process {owner.get('pid')} on {owner.get('host')}.",
                "Wait until that has ended, or end it.",
            ) from error
        file.truncate(0)
        write_owner(file.fileno(), process_identity())
        yield
