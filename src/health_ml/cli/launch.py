"""Starts what is not a single run in this process: a job, several runs, or nothing but a plan."""

from __future__ import annotations

from health_ml.cli.ahead import Ahead, Start
from health_ml.cli.command_line import CommandLine
from health_ml.cli.fan_out_here import run_trials
from health_ml.cli.parse import ParsedCommand
from health_ml.cli.submit import Write, show_plan, submit_job
from health_ml.environment import Place, RunEnvironment
from health_ml.errors import EXIT_USAGE, PlanError, exiting_with
from health_ml.settings import OUTPUTS_FOLDER


def launch(
    parsed: ParsedCommand,
    command: CommandLine,
    place: Place,
    *,
    start: Start,
    ahead: Ahead,
    environment: RunEnvironment,
    write: Write,
) -> int:
    """Shows the plan, submits the job, runs the trials, or a run that is interrupted; returns the exit code.

    :param start: Which of them.
    :param ahead: What was started before the model was imported.
    :param environment: Where this process runs.
    :raises PlanError: If trials are to be interrupted.
    """
    preemption = parsed.experiment_config.simulate_preemption
    if preemption and parsed.search_space is not None:
        raise PlanError(
            f"--simulate_preemption={preemption} has no effect on the trials of a fan-out.",
            "Leave it out, or test the interruption with a single run.",
        )
    if start is Start.NEVER:
        return show_plan(parsed, place, is_plan_only=command.print_plan is not None, write=write)
    if start is Start.AS_JOB:
        return submit_job(parsed, place, write=write, early=ahead.backend)
    if start is Start.INTERRUPTED:
        return _interrupt(parsed, place, environment=environment, write=write)
    return run_trials(parsed, place, warm=ahead.processes, write=write)


def _interrupt(parsed: ParsedCommand, place: Place, *, environment: RunEnvironment, write: Write) -> int:
    from health_ml.backends.checks import check_before_start  # imports Lightning, as the model does
    from health_ml.backends.run_folder import new_run_folder, own_checkpoints
    from health_ml.backends.run_owner import check_run_folder
    from health_ml.backends.simulated_preemption import InterruptedRun

    container, config = parsed.container, parsed.experiment_config
    with exiting_with(EXIT_USAGE):
        check_run_folder(config, container, environment=environment, start_directory=place.start_directory)
        check_before_start(
            config,
            container,
            start_directory=place.start_directory,
            project_root=place.project_root,
            own_checkpoints=own_checkpoints(environment, place.start_directory),
        )
        if environment.run_folder is not None:
            run_folder = (place.start_directory / environment.run_folder).absolute()
        else:
            run_folder = new_run_folder(
                container.output_to or place.project_root / OUTPUTS_FOLDER, container.model_name
            )
    return InterruptedRun(
        run_folder, config.simulate_preemption, parsed.argv, place=place, environment=environment, write=write
    ).run()
