"""From a command line that describes a run to what comes of it: the run, a job, several runs, or only a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from health_ml.cli.ahead import Start, started_ahead
from health_ml.cli.command_line import CommandLine
from health_ml.cli.console import configure_logging, render_summary
from health_ml.cli.draft import Draft, read_experiment
from health_ml.cli.parse import ParsedCommand, complete
from health_ml.environment import Place, RunEnvironment
from health_ml.errors import EXIT_USAGE, exiting_with

if TYPE_CHECKING:
    from health_ml.records.mirror import WaitingMirror
    from health_ml.training.result import RunResult


def run_experiment(
    arguments: Sequence[str],
    command: CommandLine,
    place: Place,
    *,
    environment: RunEnvironment,
    on_result: Callable[[RunResult], None] | None,
    write: Callable[[str], object],
) -> int:
    """Does what a command line with a model asks for, and returns the exit code.

    :param arguments: The command line as it was given.
    :param command: The same, with the flags of the runner itself read.
    :param environment: Where this process runs.
    :param on_result: Called with the result of a run that came to an end without an error.
    :param write: Shows a text to the user.
    :raises HimlError: If something is wrong with what was given, or if the run failed.
    """
    draft = read_experiment(command, start_directory=place.start_directory)
    # Before the model is imported, because Lightning brings its own handler where there is none.
    configure_logging(draft.config.log_level, environment.local_rank)
    if command.is_print_config:
        from health_ml.cli.show_config import render_config

        write(render_config(complete(draft, arguments, environment=environment)))
        return 0
    start = Start.of(draft.config, environment, only_plans=command.only_plans)
    with started_ahead(draft, place, start=start, environment=environment) as ahead:
        parsed = _complete(draft, arguments, place, start=start, environment=environment)
        if start is not Start.HERE or parsed.search_space is not None:
            from health_ml.cli.launch import launch

            return launch(parsed, command, place, start=start, ahead=ahead, environment=environment, write=write)
        result = _run_here(parsed, place, mirror=ahead.mirror, environment=environment)
    if environment.is_global_rank_zero:
        write(render_summary(result, is_in_azureml=environment.is_in_azureml))
    if result.error is not None:
        raise result.error
    if on_result is not None:
        on_result(result)
    return result.exit_code


def _complete(
    draft: Draft, arguments: Sequence[str], place: Place, *, start: Start, environment: RunEnvironment
) -> ParsedCommand:
    """Returns the checked command line, with log messages, and the store of the record, as it asks for them."""
    with exiting_with(EXIT_USAGE):
        parsed = complete(draft, arguments, environment=environment)
    configure_logging(parsed.experiment_config.log_level, environment.local_rank)
    if parsed.container.log_from_vm and start is Start.HERE and environment.is_alone:
        from health_ml.cli.log_from_vm import log_to_workspace

        log_to_workspace(parsed, place)
    return parsed


def _run_here(
    parsed: ParsedCommand, place: Place, *, mirror: WaitingMirror | None, environment: RunEnvironment
) -> RunResult:
    from health_ml.backends.in_process import run_in_process
    from health_ml.cli.submit import plan_for_record

    return run_in_process(
        parsed.experiment_config,
        parsed.container,
        environment=environment,
        project_root=place.project_root,
        argv=parsed.argv,
        sources=parsed.sources,
        waiting_mirror=mirror,
        plan=plan_for_record(parsed, place),
    )
