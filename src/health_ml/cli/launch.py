"""Starts what is not a single run in this process: a job, a fan-out, or nothing but a plan."""

from __future__ import annotations

from health_ml.cli.command_line import CommandLine
from health_ml.cli.parse import ParsedCommand
from health_ml.cli.submit import Place, Write, show_plan, submit_job


def launch(parsed: ParsedCommand, command: CommandLine, place: Place, *, write: Write) -> int:
    """Shows the plan, submits the job, or runs the trials, and returns the exit code of the command."""
    if command.only_plans:
        return show_plan(parsed, place, is_plan_only=command.print_plan is not None, write=write)
    return submit_job(parsed, place, write=write)
