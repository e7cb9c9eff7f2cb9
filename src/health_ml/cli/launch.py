"""Starts what is not a single run in this process: a job, several runs, or nothing but a plan."""

from __future__ import annotations

from health_ml.backends.fan_out import WarmProcesses
from health_ml.cli.command_line import CommandLine
from health_ml.cli.early import EarlyBackend
from health_ml.cli.fan_out_here import run_trials
from health_ml.cli.parse import ParsedCommand
from health_ml.cli.submit import Write, show_plan, submit_job
from health_ml.environment import Place


def launch(
    parsed: ParsedCommand,
    command: CommandLine,
    place: Place,
    *,
    is_job: bool,
    warm: WarmProcesses | None,
    early: EarlyBackend | None,
    write: Write,
) -> int:
    """Shows the plan, submits the job, or runs the trials, and returns the exit code of the command.

    :param is_job: True if the command names a cluster.
    :param warm: Processes for trials that were started before.
    :param early: The back end of the job, if it was made before.
    """
    if command.only_plans:
        return show_plan(parsed, place, is_plan_only=command.print_plan is not None, write=write)
    if is_job:
        return submit_job(parsed, place, write=write, early=early)
    return run_trials(parsed, place, warm=warm, write=write)
