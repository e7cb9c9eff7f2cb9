"""``--cluster``, ``--dry_run`` and ``--print_plan``: from a checked command line to a submitted job."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from health_ml.backends.base import Backend, BackendContext, Request, RunHandle
from health_ml.backends.registry import load_backend, parse_cluster
from health_ml.cli.command_line import read_command_line
from health_ml.cli.job_needs import named_software, read_compute, read_software
from health_ml.cli.parse import ParsedCommand
from health_ml.cli.patience import sigterm_like_ctrl_c
from health_ml.cli.planner import plan_job, travelling_state, travels_with
from health_ml.environment import Place, paused_garbage_collection, process_environment
from health_ml.errors import EXIT_USAGE, HimlError, PlanError, SnapshotError, exiting_with
from health_ml.planning.large_grids import split_plan
from health_ml.planning.plan import JobPlan
from health_ml.planning.provenance import GitState, read_git_state
from health_ml.planning.secret_files import check_secret_files
from health_ml.planning.shell_words import quoted
from health_ml.planning.snapshot import Snapshot, hash_cache_folder, take_snapshot, user_cache_folder
from health_ml.records.encoding import encode_value
from health_ml.settings import MLFLOW_DATABASE, MLFLOW_DATABASE_LOCK, OUTPUTS_FOLDER

if TYPE_CHECKING:
    from health_ml.cli.command_line import CommandLine
    from health_ml.cli.early import EarlyBackend
    from health_ml.cli.rerun import Repetition

logger = logging.getLogger(__name__)

Write = Callable[[str], object]


def submit_job(parsed: ParsedCommand, place: Place, *, write: Write, early: EarlyBackend | None = None) -> int:
    """Submits the job that a command line asks for, and returns the exit code of the command.

    :param early: The back end, if it was made before the model was imported.

    :raises HimlError: If the job was refused; nothing is left behind then.
    """
    with exiting_with(EXIT_USAGE), paused_garbage_collection():
        fits = early is not None and early.fits(parsed.experiment_config)
        backend = early.backend if early is not None and fits else _backend(parsed, place)
        plan, git_state = _plan_with_snapshot(parsed, place, backend, is_stored=True)
        plans = split_plan(plan, backend.max_trials)
        _tell_trials(plan, len(plans))
        handles = _submit_all(backend, [backend.render(part) for part in plans], git_state)
    for handle in handles:
        write(submitted_text(handle, backend, output_to=parsed.container.output_to))
    if not parsed.experiment_config.wait_for_completion:
        return 0
    return max(follow(handle, write, output_to=parsed.container.output_to) for handle in handles)


def _tell_trials(plan: JobPlan, jobs: int) -> None:
    """Says how much a fan-out is, before it costs anything."""
    if plan.search_space is not None:
        where = f" in {jobs} jobs" if jobs > 1 else ""
        logger.info(
            "%d trials%s of %s.", plan.search_space.trial_count, where, ", ".join(plan.search_space.parameter_names)
        )


def _submit_all(backend: Backend, requests: Sequence[Request], git_state: GitState | None) -> list[RunHandle]:
    """Returns the handles of all jobs, or ends those that were submitted if one of them is refused."""
    handles: list[RunHandle] = []
    try:
        for request in requests:
            handles.append(backend.submit(request, git_state=git_state))
    except BaseException:
        for handle in handles:
            try:
                handle.cancel()
            except HimlError as error:  # the user has to know, and the other error is the more important one
                logger.error("Run %s was submitted and could not be cancelled: %s", handle.run_id, error.message)
        raise
    return handles


def show_plan(parsed: ParsedCommand, place: Place, *, is_plan_only: bool, write: Write) -> int:
    """Prints what would run: the plan, and with ``--dry_run`` what the back end would be asked for. Starts nothing."""
    if parsed.experiment_config.cluster:
        backend = _backend(parsed, place)
        plan, _ = _plan_with_snapshot(parsed, place, backend, is_stored=False)
        requests = [backend.render(part) for part in split_plan(plan, backend.max_trials)]
    else:
        from health_ml.backends.checks import check_before_start  # imports Lightning, as the model does

        check_before_start(
            parsed.experiment_config,
            parsed.container,
            start_directory=place.start_directory,
            project_root=place.project_root,
        )
        requests = [request_here(plan_here(parsed, place))]
    for request in requests:
        show_request(request, is_plan_only=is_plan_only, write=write)
    return 0


def show_request(request: Request, *, is_plan_only: bool, write: Write) -> int:
    """Prints a request and its plan with secrets masked, or only the plan as JSON, and returns the exit code 0."""
    plan = request.plan
    shown = json.dumps(encode_value(plan.to_json()), indent=2, ensure_ascii=False)
    about_request = f"\n\nWhat would be asked for:\n{request.to_text()}"
    write(shown if is_plan_only else f"The plan (hash {plan.plan_hash[:12]}):\n{shown}{about_request}")
    return 0


def request_here(plan: JobPlan) -> Request:
    """Returns what stands for the request of a back end where a plan runs in this process or its children."""
    return Request("this process", plan, {"command": ["himl-runner", *plan.argv]})


def resubmit_job(repetition: Repetition, place: Place, *, command: CommandLine, write: Write) -> int:
    """Submits the job of an earlier run again, from the snapshot that it ran from, or shows its plan.

    :raises HimlError: If the job was refused, or its snapshot is gone; nothing is left behind then.
    """
    plan, flags = repetition.plan, repetition.flags
    backend = load_backend("local").create(BackendContext("", place.project_root, flags.output_to, flags.config))
    request = backend.render(plan)
    if command.only_plans:
        return show_request(request, is_plan_only=command.print_plan is not None, write=write)
    handle = backend.submit(request, git_state=repetition.git_state)
    write(submitted_text(handle, backend, output_to=flags.output_to))
    return follow(handle, write, output_to=flags.output_to) if flags.config.wait_for_completion else 0


def plan_here(parsed: ParsedCommand, place: Place) -> JobPlan:
    """Returns the plan of what runs in this process or its children, from the user's own files.

    The state of the code is a document of its own in the record, which is written while the training starts.

    :raises SnapshotError: If the code is not clean although that is required.
    :raises PlanError: If a value of the command line cannot be written as a flag.
    """
    if parsed.experiment_config.require_clean:
        _git_state(parsed, place)
    return plan_job(parsed, start_directory=place.start_directory, environ=process_environment())


def plan_for_record(parsed: ParsedCommand, place: Place) -> JobPlan | None:
    """Returns the plan of a run in this process, for its record; None if it cannot be repeated from a plan."""
    try:
        return plan_here(parsed, place)
    except PlanError as error:
        logger.info("The run cannot be repeated with --rerun: %s", error)
        return None


def check_clean(state: GitState | None, place: Place) -> None:
    """Raises an error unless everything is committed; what runs leave behind does not count.

    :raises SnapshotError: Naming what is not.
    """
    if state is None:
        raise SnapshotError(
            f"--require_clean: {place.start_directory} is not in a git repository, or git is missing.",
            "Make it one with git init, or leave out --require_clean.",
        )
    problems = ["tracked files have changes that are not committed"] if state.is_dirty else []
    own = {place.project_root.resolve() / name for name in (OUTPUTS_FOLDER, MLFLOW_DATABASE, MLFLOW_DATABASE_LOCK)}
    untracked = [path for path in state.untracked if (state.root.resolve() / path) not in own]
    if untracked:
        shown = ", ".join(untracked[:10]) + (", …" if len(untracked) > 10 else "")
        problems.append(f"there are untracked files: {shown}")
    if problems:
        raise SnapshotError(
            f"--require_clean: the repository {state.root} is not clean: {'; '.join(problems)}.",
            "Commit them, name them in .gitignore, or leave out --require_clean.",
        )


def check_travelling(regression_test_folder: Path | None, snapshot: Snapshot, folder: Path) -> None:
    """Raises an error unless the expected results are among the files that travel.

    :raises SnapshotError: If they are elsewhere, or left out.
    """
    path = regression_test_folder
    if path is None:
        return
    absolute = folder / path
    if not absolute.is_relative_to(folder) or not travels_with(snapshot, folder)(absolute.relative_to(folder)):
        raise SnapshotError(
            f"--regression_test_folder={path} does not travel with the job.",
            f"Put it below {folder}; --list_snapshot shows what travels, and which rule leaves it out.",
        )


def submitted_text(handle: RunHandle, backend: Backend, *, output_to: Path | None) -> str:
    """Returns what the user has to know about a job that was just submitted."""
    store = _finding_flags(handle, output_to)
    rows = [("follow", "attach"), ("status", "status"), ("cancel", "cancel")]
    lines = [f"Submitted run {handle.run_id} to {backend.name}."]
    lines += [f"  {name:<10}{text}" for name, text in handle.facts().items()]
    lines += [f"  {name:<10}himl-runner --{flag}={quoted(handle.run_id)}{store}" for name, flag in rows]
    return "\n".join(lines)


def _finding_flags(handle: RunHandle, output_to: Path | None) -> str:
    """Returns the flags without which another command does not find a run."""
    flags = [*handle.finding_flags, *([f"--output_to={output_to}"] if output_to else [])]
    return "".join(f" {quoted(flag)}" for flag in flags)


def follow(handle: RunHandle, write: Write, *, output_to: Path | None = None) -> int:
    """Prints the logs of a run until it has ended, and returns the exit code of the command.

    :param output_to: The store of the run, for what is said about it.
    """
    try:
        with sigterm_like_ctrl_c():
            handle.stream(write)
            status = handle.wait()
    except KeyboardInterrupt:
        store = _finding_flags(handle, output_to)
        write(
            f"\nRun {handle.run_id} goes on. himl-runner --attach={handle.run_id}{store} follows it, "
            f"himl-runner --cancel={handle.run_id}{store} ends it."
        )
        raise
    report = handle.report()
    if report is not None:
        write(f"\n{report.to_text()}")
    write(f"\nRun {handle.run_id}: {status.value}")
    for name, text in handle.facts().items():
        write(f"  {name:<10}{text}")
    return status.exit_code


def _backend(parsed: ParsedCommand, place: Place) -> Backend:
    config, container = parsed.experiment_config, parsed.container
    name = parse_cluster(config.cluster)
    backend_class = load_backend(name.backend)
    if backend_class.is_on_this_machine:
        from health_ml.backends.checks import check_before_start  # imports Lightning, as the model does

        check_before_start(config, container, start_directory=place.start_directory, project_root=place.project_root)
    context = BackendContext(name.target, place.project_root, container.output_to, config, place.start_directory)
    return backend_class.create(context)


def _plan_with_snapshot(
    parsed: ParsedCommand, place: Place, backend: Backend, *, is_stored: bool
) -> tuple[JobPlan, GitState | None]:
    """Returns the plan of a job and the state of the code that travels with it."""
    config = parsed.experiment_config
    environ = process_environment()
    folder = place.start_directory
    git_state = _git_state(parsed, place, is_expected=is_stored)
    software = (
        read_software(config, start_directory=folder, cache_folder=hash_cache_folder(environ))
        if backend.needs_software
        else named_software(config)
    )
    snapshot = take_snapshot(
        folder,
        cache_folder=hash_cache_folder(environ),
        max_snapshot_mb=config.max_snapshot_mb,
        extra_patterns=own_folders(folder, parsed.container.output_to, user_cache_folder(environ)),
    )
    config_files = read_command_line(parsed.argv).config_files
    check_secret_files(folder, snapshot.files, allowed=config.allow_secret_files, settings=config_files)
    if not backend.is_on_this_machine:
        check_travelling(parsed.container.regression_test_folder, snapshot, folder)
    if git_state is not None:
        git_state = travelling_state(git_state, snapshot, folder)
    plan = plan_job(
        parsed,
        start_directory=folder,
        environ=environ,
        snapshot=snapshot,
        git_state=git_state,
        software=software,
        compute=read_compute(config),
    )
    for part in split_plan(plan, backend.max_trials):
        backend.render(part)  # what the back end cannot do is said before anything is copied
    if is_stored:
        backend.keep_code(snapshot, folder)
    return plan, git_state


def own_folders(folder: Path, *places: Path | None) -> tuple[str, ...]:
    """Returns ignore patterns for those of the given folders that lie below a folder: what this program writes."""
    inside = [
        place.relative_to(folder).as_posix() for place in places if place is not None and place.is_relative_to(folder)
    ]
    return tuple(f"/{path}/" for path in inside if path != ".")


def _git_state(parsed: ParsedCommand, place: Place, *, is_expected: bool = True) -> GitState | None:
    state = read_git_state(place.start_directory, is_expected=is_expected)
    if parsed.experiment_config.require_clean:
        check_clean(state, place)
    return state
