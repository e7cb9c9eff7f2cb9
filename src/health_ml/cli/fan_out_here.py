"""Several runs from one command, on this machine and in the foreground."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import param

from health_ml.backends.fan_out import WarmProcesses, check_fan_out, create_fan_out, run_fan_out
from health_ml.backends.fan_out_resources import Slots, share_out
from health_ml.backends.run_folder import new_run_folder
from health_ml.backends.trial_processes import TrialServer
from health_ml.cli.ahead import waiting_mirror
from health_ml.cli.command_line import CommandLine
from health_ml.cli.draft import Draft
from health_ml.cli.given import Given
from health_ml.cli.parse import ParsedCommand
from health_ml.cli.rerun import Repetition
from health_ml.cli.submit import Write, plan_here, request_here, show_request
from health_ml.environment import Place, process_environment
from health_ml.errors import HimlError
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.plan import JobPlan, PlannedTrials
from health_ml.settings import OUTPUTS_FOLDER


def run_trials(parsed: ParsedCommand, place: Place, *, warm: WarmProcesses | None, write: Write) -> int:
    """Runs all trials, and returns the exit code of the command: 0 only if all of them finished.

    :raises HimlError: If something is wrong that can be known before the first trial starts; nothing is left then.
    """
    # Loads Lightning: the processes that every trial needs have to be on their way before that.
    from health_ml.backends.checks import check_before_start

    container = parsed.container
    check_before_start(
        parsed.experiment_config, container, start_directory=place.start_directory, project_root=place.project_root
    )
    return _run_plan(plan_here(parsed, place), place, output_to=container.output_to, warm=warm, write=write)


def rerun_trials(repetition: Repetition, place: Place, *, command: CommandLine, write: Write) -> int:
    """Runs all trials of an earlier fan-out again, as a new one, or shows its plan, and returns the exit code."""
    if command.only_plans:
        return show_request(request_here(repetition.plan), is_plan_only=command.print_plan is not None, write=write)
    return _run_plan(repetition.plan, place, output_to=repetition.flags.output_to, warm=None, write=write)


def _run_plan(plan: JobPlan, place: Place, *, output_to: Path | None, warm: WarmProcesses | None, write: Write) -> int:
    check_fan_out(plan)
    parent = output_to or place.project_root / OUTPUTS_FOLDER
    run_folder = new_run_folder(parent, plan.model_name)
    try:
        create_fan_out(plan, run_folder)
    except BaseException:
        shutil.rmtree(run_folder, ignore_errors=True)
        raise
    return run_fan_out(run_folder, place=place, write=write, plan=plan, warm=warm).exit_code


@contextmanager
def warm_processes(draft: Draft, place: Place) -> Iterator[WarmProcesses | None]:
    """Starts what the trials will need while the model is imported here, as far as it can be told from the flags.

    Loading takes seconds, in this process to check the command, and in the server of the trials to run them.
    """
    slots = _expected_slots(draft)
    if slots is None:
        yield None
        return
    server = TrialServer(draft.config.model, folder=place.start_directory, environment=slots.shared_environment)
    try:
        with waiting_mirror(draft, place.project_root) as mirror:
            yield WarmProcesses(server, mirror)
    finally:
        server.close()


def _expected_slots(draft: Draft) -> Slots | None:
    """Returns the places for the trials that the flags alone ask for, or None if they do not say."""
    if not draft.config.model or draft.problems or not draft.asks_for_several:
        return None
    given = {item.name: item for item in draft.pending}
    config = draft.config
    try:
        space = build_search_space(
            FanOutOptions(
                different_seeds=_number(given["different_seeds"], 0) if "different_seeds" in given else 0,
                crossval_count=_number(given["crossval_count"], 1) if "crossval_count" in given else 1,
                crossval_index=0 if "crossval_index" in given else None,
                sweep=config.sweep,
                fan_out=config.fan_out or None,
                settings={
                    "max_concurrent": config.max_concurrent_trials,
                    "max_trials": config.max_trials,
                    "sampling": config.sampling,
                    "primary_metric": config.primary_metric or None,
                },
            )
        )
        return share_out(space, PlannedTrials(), process_environment()) if space is not None else None
    except (HimlError, ValueError):
        return None  # what is wrong is said once the model is known


def _number(given: Given, default: int) -> int:
    """Returns the whole number that a flag or an entry of a config file says."""
    return int(given.text_for(param.Integer()) or default)
