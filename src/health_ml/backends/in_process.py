"""Runs an experiment in this process, and leaves a true record of it whatever happens."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_ml.backends.azureml_job import JobFacts, enter_job, show_display_name
from health_ml.backends.checks import check_before_start
from health_ml.backends.final_checks import problem_of_results
from health_ml.backends.local_data import provide_datasets
from health_ml.backends.run_facts import ProvenanceThread, RunDocument, current_attempt, run_facts, write_config
from health_ml.backends.run_folder import create_run_paths, own_checkpoints
from health_ml.backends.run_lock import run_lock
from health_ml.backends.run_owner import check_run_folder
from health_ml.deep_learning_config import RunPaths
from health_ml.environment import RunEnvironment, environment_variables, process_environment, restored_environment
from health_ml.errors import EXIT_FAILED, EXIT_USAGE, ContainerError, HimlError, OutputError, exiting_with
from health_ml.experiment_config import DebugDDPOptions, ExperimentConfig, RunnerMode
from health_ml.lightning_container import LightningContainer
from health_ml.planning.dataset_inputs import input_variables, output_folders
from health_ml.planning.plan import JobPlan
from health_ml.planning.secrets import mask_arguments
from health_ml.records.record import RunRecord, RunStatus
from health_ml.settings import (
    ENV_EXPERIMENT_NAME,
    ENV_TORCH_DISTRIBUTED_DEBUG,
    LAST_CHECKPOINT,
    RECORD_PLAN_DOCUMENT,
)
from health_ml.training.distributed import child_environment
from health_ml.training.effective import check_effective
from health_ml.training.parent_watch import ending_with_parent
from health_ml.training.quiet import quiet_libraries
from health_ml.training.result import RunOutcome, RunResult
from health_ml.training.scheduled_events import scheduled_events
from health_ml.training.signals import RunInterrupted, SignalGuard
from health_ml.training.user_code import describe_exception, premature_end, user_code

if TYPE_CHECKING:
    from health_ml.records.mirror import WaitingMirror
    from health_ml.records.mirror_handle import MirrorHandle
    from health_ml.training.rank_launcher import RankFailure
    from health_ml.training.runner_base import RunnerBase

logger = logging.getLogger(__name__)

MIRROR_SECONDS_IN_JOB = 240.0
MIRROR_SECONDS = 60.0
"""How long the end of a run waits for its mirror; a server that is down does not hold up the user longer."""


def run_in_process(
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    environment: RunEnvironment,
    project_root: Path,
    argv: Sequence[str],
    sources: Mapping[str, str],
    waiting_mirror: WaitingMirror | None = None,
    plan: JobPlan | None = None,
) -> RunResult:
    """Runs the experiment that the container describes, and returns how it ended.

    :param environment: Where this process runs.
    :param project_root: The folder for outputs and the default MLflow store.
    :param argv: The command line, for the record and for the other processes of a distributed training.
    :param sources: Where the value of each parameter comes from, for the record.
    :param waiting_mirror: A process that is ready to become the mirror of the record.
    :param plan: What the record says about how to repeat the run, unless whoever started it has said that already.
    :raises HimlError: If something is wrong with the input, or with the user's code; the record says FAILED then.
    """
    project_root = project_root.absolute()
    container.num_nodes = experiment_config.num_nodes
    container.runner_mode = experiment_config.mode
    start_directory = environment.start_directory or project_root
    with exiting_with(EXIT_USAGE):
        check_run_folder(experiment_config, container, environment=environment, start_directory=start_directory)
        provide_datasets(
            experiment_config,
            container,
            environment=environment,
            start_directory=start_directory,
            environ=process_environment(),
        )
        check_before_start(
            experiment_config,
            container,
            start_directory=start_directory,
            project_root=project_root,
            is_new_run=environment.run_folder is None and not environment.is_in_azureml,
            own_checkpoints=own_checkpoints(environment, start_directory),
        )
        paths = create_run_paths(
            container.model_name, environment=environment, project_root=project_root, output_to=container.output_to
        )
    container.set_run_paths(paths)
    container.set_output_dataset_folders(
        output_folders(container.output_datasets, process_environment(), paths.outputs)
    )
    job = enter_job(environment, paths, process_environment()) if environment.is_in_azureml else None
    environment = replace(environment, attempt=job.attempt) if job else environment
    with ExitStack() as stack:
        if environment.is_global_rank_zero:
            stack.enter_context(run_lock(paths.record))
            environment = replace(environment, attempt=current_attempt(paths.record, environment))
        run = _Run(experiment_config, container, environment, project_root, argv, waiting_mirror, plan, job)
        stack.enter_context(restored_environment())
        stack.enter_context(run.variables())
        stack.enter_context(quiet_libraries())
        return run.with_record(sources) if environment.is_global_rank_zero else run.without_record()


class _Run:
    """One run: what all of its steps need to know."""

    def __init__(
        self,
        experiment_config: ExperimentConfig,
        container: LightningContainer,
        environment: RunEnvironment,
        project_root: Path,
        argv: Sequence[str],
        waiting_mirror: WaitingMirror | None,
        plan: JobPlan | None,
        job: JobFacts | None = None,
    ) -> None:
        self.config = experiment_config
        self.container = container
        self.environment = environment
        self.project_root = project_root
        self.argv = argv
        self.waiting_mirror = waiting_mirror
        self.plan = plan
        self.job = job
        self.paths: RunPaths = container.run_paths

    @property
    def start_directory(self) -> Path:
        """Where the user typed the command."""
        return self.environment.start_directory or self.project_root

    @property
    def experiment(self) -> str:
        """Name of the experiment in tracking services."""
        return process_environment().get(ENV_EXPERIMENT_NAME) or self.container.effective_experiment_name

    def facts(self) -> dict[str, Any]:
        """Returns what the record says about the run when it starts."""
        return run_facts(
            self.config,
            self.container,
            environment=self.environment,
            run_id=self.paths.run_id,
            experiment=self.experiment,
            argv=self.argv,
        )

    def tags(self) -> dict[str, str]:
        """Returns what to search for in tracking services, the container's own tags included."""
        with user_code(self.container, "get_additional_aml_run_tags", "It has to return a dictionary."):
            additional = dict(self.container.get_additional_aml_run_tags())
        return {
            **(self.job.tags(self.experiment) if self.job else {}),
            "model_name": self.container.model_name,
            "execution_mode": self.config.mode.value,
            "tag": self.container.tag,
            "commandline_args": shlex.join(mask_arguments(self.argv)),
            "effective_random_seed": str(self.container.get_effective_random_seed()),
            **{str(name): str(value) for name, value in additional.items()},
        }

    def start_mirror(self, record: RunRecord) -> MirrorHandle:
        """Starts the process that copies the record to TensorBoard and MLflow."""
        from health_ml.records.mirror import start_mirror  # only the first process needs it

        return start_mirror(
            record.folder,
            tracking_uri=self.config.tracking_uri,
            experiment=self.experiment,
            run_name=self.container.tag or self.paths.run_id,
            tensorboard_folder=self.paths.lightning_logs,
            project_root=self.project_root,
            waiting=self.waiting_mirror,
        )

    def show_display_name(self) -> None:
        """Tells AzureML which fold or seed this trial is, if it is one."""
        name = self.job.display_name(self.container) if self.job else ""
        if self.job is not None and self.job.run is not None and name:
            show_display_name(name, self.job.run, process_environment())

    @contextmanager
    def variables(self) -> Iterator[None]:
        """Sets the environment variables of the container, and those that the other processes of the run need."""
        with user_code(self.container, "get_additional_environment_variables", "It has to return a dictionary."):
            values: dict[str, str | None] = {
                str(name): str(value) for name, value in self.container.get_additional_environment_variables().items()
            }
        values.update(self.environment.launch_variables(self.config.num_nodes))
        values.update(child_environment(self.paths, self.environment, start_directory=self.start_directory))
        if self.container.azure_datasets:
            values.update(input_variables(self.container.local_datasets))
        if impossible := [name for name in values if not name or set(name) & {"=", "\0"}]:
            raise ContainerError(
                f"{type(self.container).__name__}.get_additional_environment_variables returned "
                f"{', '.join(map(repr, impossible))}, which cannot be the name of an environment variable.",
                "Names are not empty and contain no '='.",
            )
        with environment_variables(values), self._debugging_of_processes():
            yield

    @contextmanager
    def _debugging_of_processes(self) -> Iterator[None]:
        """Sets how much torch reports about distributed training; it reads the variable once, when it is imported."""
        if self.config.debug_ddp is DebugDDPOptions.OFF:
            yield
            return
        from torch.distributed import set_debug_level_from_env  # type: ignore[attr-defined]

        try:
            with environment_variables({ENV_TORCH_DISTRIBUTED_DEBUG: self.config.debug_ddp.value}):
                set_debug_level_from_env()
                yield
        finally:
            set_debug_level_from_env()

    def interrupted(
        self, interruption: RunInterrupted, metrics: dict[str, float], messages: Sequence[str]
    ) -> RunResult:
        """Returns what there is of a run that a signal ended."""
        last = self.paths.checkpoints / LAST_CHECKPOINT
        outcome = RunOutcome(metrics, checkpoint=last if last.is_file() else None, messages=tuple(messages))
        return replace(self.result(interruption.status, outcome), signal_number=interruption.signal_number)

    def without_record(self) -> RunResult:
        """Runs as one of the processes that help the first one; that one writes down how the run went."""
        guard = SignalGuard()
        try:
            with guard.installed(), scheduled_events(self.environment, guard), ending_with_parent(self.environment):
                outcome = self.runner(None, guard).run()
        except RunInterrupted as interruption:
            return self.interrupted(interruption, {}, ())
        except SystemExit as error:
            raise premature_end(error, self.container) from error
        return self.result(RunStatus.FINISHED, outcome)

    def with_record(self, sources: Mapping[str, str]) -> RunResult:
        """Runs as the first process, which writes the record."""
        record = RunRecord.create(self.paths.record, run_id=self.paths.run_id, attempt=self.environment.attempt)
        try:
            return _RecordedRun(self, record).execute(sources)
        finally:
            record.close()

    def runner(self, record: RunRecord | None, guard: SignalGuard) -> RunnerBase:
        # Lightning takes seconds to import, and the checks before this point do not need it.
        from health_ml.training.eval_runner import EvalRunner
        from health_ml.training.training_runner import TrainingRunner

        runner_class = EvalRunner if self.config.mode is RunnerMode.EVAL_FULL else TrainingRunner
        return runner_class(
            self.config,
            self.container,
            environment=self.environment,
            record=record,
            project_root=self.project_root,
            argv=self.argv,
            guard=guard,
        )

    def result(self, status: RunStatus, outcome: RunOutcome) -> RunResult:
        return RunResult(
            run_id=self.paths.run_id,
            status=status,
            paths=self.paths,
            metrics=outcome.metrics,
            checkpoint=outcome.checkpoint,
            messages=outcome.messages,
        )


class _RecordedRun:
    """A run in its first process: opens record and mirror, runs, and closes them with what really happened."""

    def __init__(self, run: _Run, record: RunRecord) -> None:
        self._run = run
        self._record = record
        self._guard = SignalGuard(on_forced_exit=self._note_forced_exit)
        self._document: RunDocument | None = None
        self._provenance: ProvenanceThread | None = None
        self._mirror: MirrorHandle | None = None
        self._runner: RunnerBase | None = None

    def execute(self, sources: Mapping[str, str]) -> RunResult:
        """Runs, and returns how it ended."""
        environment = self._run.environment
        with ExitStack() as stack:
            stack.enter_context(self._guard.installed())
            stack.enter_context(scheduled_events(environment, self._guard))
            stack.enter_context(ending_with_parent(environment))
            stack.enter_context(exiting_with(EXIT_FAILED))
            try:
                self._open(sources)
                runner = self._runner = self._run.runner(self._record, self._guard)
                runner.on_rank_failed = self._note_failed_rank
                runner.on_model_created = lambda: check_effective(self._run.container, sources)
                outcome = runner.run()
                problem = problem_of_results(
                    self._run.container, self._run.paths.outputs, outcome.metrics, job=self._run.job
                )
                self._guard.start_deferring()
            except RunInterrupted as interruption:
                messages = self._close(interruption.status, str(interruption))
                metrics = self._runner.metrics if self._runner is not None else {}
                return self._run.interrupted(interruption, metrics, messages)
            except BaseException as error:
                self._close_after(error)
                if isinstance(error, SystemExit):
                    raise premature_end(error, self._run.container) from error
                raise
            status = RunStatus.FAILED if problem else RunStatus.FINISHED
            message = describe_exception(problem) if problem else " ".join(outcome.messages)
            messages = self._close(status, message, checkpoint=outcome.checkpoint)
            result = self._run.result(status, replace(outcome, messages=(*outcome.messages, *messages)))
            return replace(result, error=problem)

    def _open(self, sources: Mapping[str, str]) -> None:
        run, record = self._run, self._record
        self._document = RunDocument(record, run.facts())
        # A job runs from a copy of the code, whose state was recorded when it was submitted.
        code = run.start_directory if run.environment.project_root is None else None
        self._provenance = ProvenanceThread(record, self._document, code, is_copy=run.job is not None).start()
        if run.plan is not None and not (record.folder / f"{RECORD_PLAN_DOCUMENT}.json").exists():
            record.write_document(RECORD_PLAN_DOCUMENT, run.plan.to_json())
        if run.environment.fan_out_folder is None:  # else the mirror of the fan-out carries its trials too
            self._mirror = run.start_mirror(record)
        run.show_display_name()
        write_config(record, run.config, run.container, sources=sources, tags=run.tags())

    def _close_after(self, error: BaseException) -> None:
        """Closes the record of a run that failed; a second error on the way must not hide the first one."""
        try:
            for message in self._close(RunStatus.FAILED, describe_exception(error)):
                logger.warning(message)
        except (HimlError, OSError) as second:
            logger.error(f"The record of the run could not be closed: {second}")

    def _close(self, status: RunStatus, message: str, *, checkpoint: Path | None = None) -> tuple[str, ...]:
        """Writes how the run ended and lets the mirror catch up; returns what to tell the user."""
        self._guard.start_deferring()
        if self._provenance is not None:
            self._provenance.join()
        error = self._note_end(checkpoint)
        is_incomplete = error is not None and status is RunStatus.FINISHED
        self._record.set_status(RunStatus.FAILED if is_incomplete else status, str(error) if is_incomplete else message)
        messages = self._finish_mirror()
        if error is None:
            return messages
        if is_incomplete:
            raise error
        return (*messages, str(error))

    def _note_end(self, checkpoint: Path | None) -> OutputError | None:
        """Writes when and with which checkpoint the run has ended; how it ended is to be written even if that fails."""
        try:
            if self._document is not None:
                self._document.update({"ended": time.time(), "checkpoint": self._in_run_folder(checkpoint)})
        except OutputError as error:
            return error
        return None

    def _finish_mirror(self) -> tuple[str, ...]:
        """Lets the mirror catch up; returns what to tell the user."""
        if self._mirror is None:
            return ()
        in_job = {"silent_seconds": MIRROR_SECONDS_IN_JOB} if self._run.job else {}
        state = self._mirror.finish(MIRROR_SECONDS_IN_JOB if in_job else MIRROR_SECONDS, **in_job)
        return () if state.is_complete else (state.message,)

    def _in_run_folder(self, checkpoint: Path | None) -> str | None:
        """Returns the path of a checkpoint in the run folder, which may be moved later."""
        folder = self._run.paths.outputs
        return str(checkpoint.relative_to(folder)) if checkpoint and checkpoint.is_relative_to(folder) else None

    def _note_forced_exit(self, interruption: RunInterrupted) -> None:
        self._record.set_status(interruption.status, f"{interruption} It was asked twice, so it exited at once.")

    def _note_failed_rank(self, failure: RankFailure) -> None:
        logger.error(str(failure))
        self._record.set_status(RunStatus.FAILED, str(failure))
