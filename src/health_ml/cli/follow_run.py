"""``--attach``, ``--status``, ``--cancel`` and ``--rerun_failed``: looks after a run that was started before."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from health_ml.backends.base import BackendContext, RunHandle
from health_ml.backends.local_layout import LocalJobFolder
from health_ml.backends.registry import ClusterName, load_backend, parse_cluster
from health_ml.cli.command_line import CommandLine
from health_ml.cli.run_store_flags import StoreFlags, read_store_flags
from health_ml.cli.submit import Write, follow
from health_ml.environment import Place
from health_ml.errors import EXIT_USAGE, BackendError, exiting_with
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.run_store import find_run_folder
from health_ml.records.fan_out_report import FanOutReport
from health_ml.records.process_identity import is_running_here
from health_ml.records.reader import read_record
from health_ml.records.record import RunRecord, RunStatus

INTERRUPTED = frozenset({RunStatus.QUEUED, RunStatus.KILLED, RunStatus.PREEMPTED, RunStatus.CANCELLED})
"""How a fan-out stands that can be taken up again where it was left."""

CANCEL_SECONDS = 60.0
_POLL_SECONDS = 0.1
_STORE_FLAGS = frozenset({"cluster", "workspace_config_path", "auth"})


def attach_to_run(command: CommandLine, place: Place, *, write: Write) -> int:
    """Follows a run until it ends, and returns the exit code of the command. An interrupted fan-out goes on.

    :raises RunNotFoundError: If there is no such run.
    :raises BackendError: If it was not submitted as a job.
    """
    flags = _flags(command, place, "--attach")
    if _is_on_this_machine(flags):
        folder = find_run_folder(command.attach, place.project_root, flags.output_to)
        if FanOutFolder(folder).exists and _status(folder) in INTERRUPTED:
            return _take_up(folder, flags, place, is_rerunning_failed=False, write=write)
    return follow(_handle(command.attach, flags, place), write, output_to=flags.output_to)


def rerun_failed(command: CommandLine, place: Place, *, write: Write) -> int:
    """Runs the trials of a fan-out again that did not finish, and returns the exit code of the command.

    :raises RunNotFoundError: If there is no such run.
    :raises BackendError: If it is no fan-out, or is still running.
    """
    flags = _flags(command, place, "--rerun_failed")
    folder = find_run_folder(command.rerun_failed, place.project_root, flags.output_to)
    fan_out = FanOutFolder(folder)
    if not fan_out.exists:
        raise BackendError(
            f"Run {command.rerun_failed} is no fan-out, so it has no trials that failed.",
            f"himl-runner --rerun={command.rerun_failed} repeats it.",
            EXIT_USAGE,
        )
    if all(trial.status is RunStatus.FINISHED for trial in _report(fan_out).trials):
        message = f"No trial of {command.rerun_failed} has failed."
        raise BackendError(message, "There is nothing to run again.", EXIT_USAGE)
    return _take_up(folder, flags, place, is_rerunning_failed=True, write=write)


def _take_up(folder: Path, flags: StoreFlags, place: Place, *, is_rerunning_failed: bool, write: Write) -> int:
    if LocalJobFolder(folder).job_file.exists():
        from health_ml.backends.local_jobs import LocalBackend

        backend = LocalBackend(place.project_root, output_to=flags.output_to)
        if is_rerunning_failed and not _status(folder).is_final:
            raise BackendError(
                f"Run {folder.name} is still running.",
                f"Wait for its end: himl-runner --attach={folder.name}.",
                EXIT_USAGE,
            )
        handle = backend.resume(folder.name, is_rerunning_failed=is_rerunning_failed)
        return follow(handle, write, output_to=flags.output_to)
    from health_ml.backends.fan_out import run_fan_out

    result = run_fan_out(folder, place=place, write=write, is_rerunning_failed=is_rerunning_failed)
    return result.exit_code


def show_status(command: CommandLine, place: Place, *, write: Write) -> int:
    """Prints how a run stands. The exit code is 0 unless the run ended badly."""
    flags = _flags(command, place, "--status")
    with exiting_with(EXIT_USAGE):  # 1 would say that the run failed
        if flags.config.cluster:
            handle = _handle(command.status, flags, place)
            status = handle.status()
            report = handle.report()
            table = ["", report.to_text()] if report is not None else []
            text = "\n".join([f"Run {handle.run_id}: {status.value}", *_rows(handle.facts()), *table])
        else:
            folder = find_run_folder(command.status, place.project_root, flags.output_to)
            status, text = _local_status(command.status, folder)
    write(text)
    return status.exit_code if status.is_final else 0


def cancel_run(command: CommandLine, place: Place, *, write: Write) -> int:
    """Ends a run and everything that it started.

    :raises RunNotFoundError: If there is no such run.
    :raises BackendError: If it was not submitted as a job, or refuses.
    """
    flags = _flags(command, place, "--cancel")
    if _is_on_this_machine(flags):
        folder = find_run_folder(command.cancel, place.project_root, flags.output_to)
        if FanOutFolder(folder).exists and not LocalJobFolder(folder).job_file.exists():
            return _cancel_fan_out(FanOutFolder(folder), write)
    handle = _handle(command.cancel, flags, place)
    before = handle.status()
    if before.is_final:
        write(f"Run {handle.run_id} has ended already: {before.value}.")
        return 0
    handle.cancel()
    status = handle.wait(0)
    if status.is_final:
        write(f"Run {handle.run_id}: {status.value}")
    else:
        write(f"Run {handle.run_id} was told to end; it is still {status.value}, because it saves what it has.")
    return 0


def _cancel_fan_out(folder: FanOutFolder, write: Write) -> int:
    """Asks the command that runs a fan-out to end it, and waits until it has."""
    from health_ml.backends.trial_lock import is_held, read_owner

    owner = read_owner(folder.lock_file)
    if not is_held(folder.lock_file) or not owner:
        return _end_orphans(folder, write)
    if not is_running_here(owner):
        raise BackendError(
            f"Fan-out {folder.run_id} runs as process {owner.get('pid')} on {owner.get('host')}.", "Cancel it there."
        )
    with suppress(ProcessLookupError):
        os.kill(int(owner["pid"]), signal.SIGINT)
    deadline = time.monotonic() + CANCEL_SECONDS
    while is_held(folder.lock_file) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    status = read_record(folder.record).status.status
    if not status.is_final:
        raise BackendError(
            f"Fan-out {folder.run_id} has not ended {CANCEL_SECONDS:g} seconds after it was cancelled.",
            f"It is process {owner['pid']}.",
        )
    write(f"Fan-out {folder.run_id}: {status.value}")
    return 0


def _is_on_this_machine(flags: StoreFlags) -> bool:
    cluster = flags.config.cluster
    return not cluster or parse_cluster(cluster) == ClusterName("local")


def _status(folder: Path) -> RunStatus:
    """Returns how a run on this machine stands; the supervisor of a job knows more than its record."""
    if LocalJobFolder(folder).job_file.exists():
        from health_ml.backends.local_jobs import LocalRunHandle

        return LocalRunHandle(folder).status()
    return read_record(folder).status.status


def _end_orphans(folder: FanOutFolder, write: Write) -> int:
    """Ends the trials of a fan-out whose scheduler was killed."""
    from health_ml.backends.trial_processes import end_trials

    view = read_record(folder.record).status
    count = end_trials(folder, CANCEL_SECONDS / 2)
    if not count:
        write(f"Fan-out {folder.run_id} is not running: {view.status.value}.")
        return 0
    record = RunRecord(folder.record, run_id=folder.run_id, attempt=view.attempt)
    record.set_status(RunStatus.CANCELLED, f"{count} trials were ended after their scheduler had been killed.")
    record.close()
    write(f"Fan-out {folder.run_id}: CANCELLED, with {count} trials that still ran.")
    return 0


def _report(folder: FanOutFolder) -> FanOutReport:
    from health_ml.backends.fan_out import read_plan
    from health_ml.backends.fan_out_results import make_report

    plan = read_plan(folder, is_complete=False)
    assert plan.search_space is not None
    return make_report(folder, plan.search_space)


def _flags(command: CommandLine, place: Place, mode: str) -> StoreFlags:
    return read_store_flags(command, start_directory=place.start_directory, mode=mode, allowed=_STORE_FLAGS)


def _handle(run_id: str, flags: StoreFlags, place: Place) -> RunHandle:
    """Returns the handle of a run: of the back end that ``--cluster`` names, else of a job on this machine."""
    with exiting_with(EXIT_USAGE):
        if not flags.config.cluster:
            folder = find_run_folder(run_id, place.project_root, flags.output_to)
            if not LocalJobFolder(folder).job_file.exists():
                raise BackendError(
                    f"Run {run_id} was not submitted as a job: it belongs to the command that started it.",
                    f"Press Ctrl-C there to end it; himl-runner --status={run_id} shows how it stands.",
                )
        name = parse_cluster(flags.config.cluster or "local")
        context = BackendContext(name.target, place.project_root, flags.output_to, flags.config, place.start_directory)
        return load_backend(name.backend).create(context).attach(run_id)


def _local_status(run_id: str, folder: Path) -> tuple[RunStatus, str]:
    view = read_record(folder)
    status, message = _status(folder), view.status.message
    facts = {"message": message} if message else {}
    facts["since"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(view.status.time))
    facts["folder"] = str(folder)
    lines = [f"Run {run_id}: {status.value}", *_rows(facts)]
    fan_out = FanOutFolder(folder)
    if fan_out.exists:
        return status, "\n".join([*lines, "", _report(fan_out).to_text()])
    if view.last_values:
        lines += ["  metrics", *(f"    {name:24}{value:.6g}" for name, value in sorted(view.last_values.items()))]
    return status, "\n".join(lines)


def _rows(facts: dict[str, str]) -> list[str]:
    return [f"  {name:<10}{text}" for name, text in facts.items()]
