"""The programs: ``himl-runner``, ``himl-tb`` and ``himl-download`` start here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from health_ml.cli.process import end_process_with, kept_console, print_text, run_guarded

if TYPE_CHECKING:
    from health_ml.cli.command_line import CommandLine
    from health_ml.environment import Place, RunEnvironment
    from health_ml.training.result import RunResult

# What a program needs is imported in its functions: param cannot be imported where there is no current folder.

COMPLETE_WORDS = "--complete_words"
"""First argument of the call that a completion script makes; the words of the command line follow."""


def main(argv: Sequence[str] | None = None, *, on_result: Callable[[RunResult], None] | None = None) -> int:
    """Runs a command line and returns the exit code of the process.

    Called from Python, it leaves environment variables, working directory, ``sys.path`` and logging as they were.

    :param argv: The arguments after the name of the program. Default: those of this process.
    :param on_result: Called with the result of a run that came to an end without an error.
    """
    with kept_console():
        return run_guarded(lambda arguments, folder: _run(arguments, folder, on_result), argv)


def tensorboard_main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line of ``himl-tb`` and returns the exit code of the process.

    :param argv: The arguments after the name of the program. Default: those of this process.
    """
    return run_guarded(_show_tensorboard, argv)


def download_main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line of ``himl-download`` and returns the exit code of the process.

    :param argv: The arguments after the name of the program. Default: those of this process.
    """
    return run_guarded(_download, argv)


def console_entry_point() -> None:
    """Runs the command line of this process and ends the process with its exit code."""
    end_process_with(main)


def tensorboard_entry_point() -> None:
    """Runs ``himl-tb`` and ends the process with its exit code."""
    end_process_with(tensorboard_main)


def download_entry_point() -> None:
    """Runs ``himl-download`` and ends the process with its exit code."""
    end_process_with(download_main)


def _show_tensorboard(arguments: list[str], current_directory: Path) -> int:
    from health_ml.cli.tensorboard import show_tensorboard

    return show_tensorboard(arguments, start_directory=current_directory, write=print_text)


def _download(arguments: list[str], current_directory: Path) -> int:
    from health_ml.cli.console import configure_logging
    from health_ml.cli.download import download
    from health_ml.environment import process_environment

    configure_logging(None, 0)
    return download(arguments, start_directory=current_directory, environ=process_environment(), write=print_text)


def _run(arguments: list[str], current_directory: Path, on_result: Callable[[RunResult], None] | None) -> int:
    from health_ml.cli.command_line import read_command_line
    from health_ml.planning.secrets import remember_secret_arguments

    remember_secret_arguments(arguments)
    if arguments[:1] == [COMPLETE_WORDS]:
        from health_ml.cli.completion import candidates

        return print_text("\n".join(candidates(arguments[1:], folder=current_directory)))
    command = read_command_line(arguments)
    if command.is_version:
        from health_ml.version import __version__

        return print_text(f"himl-runner {__version__}")
    if command.completion is not None:
        from health_ml.cli.completion import completion_script

        return print_text(completion_script(command.completion))
    from health_ml.cli.surroundings import check_surroundings
    from health_ml.environment import Place, RunEnvironment, process_environment

    environment = RunEnvironment.from_env(process_environment())
    check_surroundings(environment)
    place = Place.of(environment, current_directory)
    code = _do_without_run(command, place)
    if code is not None:
        return code
    if command.rerun:
        return _rerun(command, place, environment=environment, on_result=on_result)
    from health_ml.cli.experiment import run_experiment

    return run_experiment(arguments, command, place, environment=environment, on_result=on_result, write=print_text)


def _do_without_run(command: CommandLine, place: Place) -> int | None:
    """Does what is about no run or one that there is, and returns the exit code; None if a run is to be described."""
    if command.is_help:
        from health_ml.cli.help import help_text

        return print_text(help_text(command, start_directory=place.start_directory))
    if command.sync:
        from health_ml.cli.sync_run import sync_run

        return print_text(sync_run(command, start_directory=place.start_directory))
    if command.list_snapshot:
        from health_ml.cli.list_snapshot import list_snapshot

        return print_text(list_snapshot(command, start_directory=place.start_directory))
    if not (command.attach or command.rerun_failed or command.cancel or command.status):
        return None
    from health_ml.cli import follow_run

    if command.attach:
        return follow_run.attach_to_run(command, place, write=print_text)
    if command.rerun_failed:
        return follow_run.rerun_failed(command, place, write=print_text)
    if command.cancel:
        return follow_run.cancel_run(command, place, write=print_text)
    return follow_run.show_status(command, place, write=print_text)


def _rerun(
    command: CommandLine, place: Place, *, environment: RunEnvironment, on_result: Callable[[RunResult], None] | None
) -> int:
    """Repeats a run from its record: a job as a job, any other run in this process."""
    from health_ml.cli.command_line import read_command_line
    from health_ml.cli.experiment import run_experiment
    from health_ml.cli.rerun import read_repetition
    from health_ml.cli.submit import resubmit_job

    repetition = read_repetition(command, place)
    if repetition.is_job:
        return resubmit_job(repetition, place, command=command, write=print_text)
    if repetition.plan.search_space is not None:
        from health_ml.cli.fan_out_here import rerun_trials

        return rerun_trials(repetition, place, command=command, write=print_text)
    arguments = list(repetition.plan.argv)
    again = replace(read_command_line(arguments), is_dry_run=command.is_dry_run, print_plan=command.print_plan)
    return run_experiment(arguments, again, place, environment=environment, on_result=on_result, write=print_text)


if __name__ == "__main__":
    console_entry_point()
