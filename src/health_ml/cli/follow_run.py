"""``--attach``, ``--status`` and ``--cancel``: looks after a run that was started before, also by another process."""

from __future__ import annotations

import time
from pathlib import Path

from health_ml.backends.base import BackendContext, RunHandle
from health_ml.backends.local_layout import LocalJobFolder
from health_ml.backends.registry import load_backend, parse_cluster
from health_ml.cli.command_line import CommandLine
from health_ml.cli.run_store_flags import StoreFlags, read_store_flags
from health_ml.cli.submit import EXIT_CODES, Place, Write, follow
from health_ml.errors import EXIT_FAILED, BackendError
from health_ml.planning.run_store import find_run_folder
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus

_STORE_FLAGS = frozenset({"cluster", "workspace_config_path"})


def attach_to_run(command: CommandLine, place: Place, *, write: Write) -> int:
    """Follows a run until it ends, and returns the exit code of the command.

    :raises RunNotFoundError: If there is no such run.
    :raises BackendError: If it was not submitted as a job.
    """
    flags = _flags(command, place, "--attach")
    handle = _handle(command.attach, flags, place)
    return follow(handle, write)


def show_status(command: CommandLine, place: Place, *, write: Write) -> int:
    """Prints how a run stands. The exit code is 0 unless the run ended badly."""
    flags = _flags(command, place, "--status")
    if flags.config.cluster:
        handle = _handle(command.status, flags, place)
        status = handle.status()
        write("\n".join([f"Run {handle.run_id}: {status.value}", *_rows(handle.facts())]))
    else:
        folder = find_run_folder(command.status, place.project_root, flags.output_to)
        status, text = _local_status(command.status, folder)
        write(text)
    return EXIT_CODES.get(status, EXIT_FAILED) if status.is_final else 0


def cancel_run(command: CommandLine, place: Place, *, write: Write) -> int:
    """Ends a run and everything that it started.

    :raises RunNotFoundError: If there is no such run.
    :raises BackendError: If it was not submitted as a job, or does not end.
    """
    flags = _flags(command, place, "--cancel")
    handle = _handle(command.cancel, flags, place)
    before = handle.status()
    if before.is_final:
        write(f"Run {handle.run_id} has ended already: {before.value}.")
        return 0
    handle.cancel()
    write(f"Run {handle.run_id}: {handle.wait(0).value}")
    return 0


def _flags(command: CommandLine, place: Place, mode: str) -> StoreFlags:
    return read_store_flags(command, start_directory=place.start_directory, mode=mode, allowed=_STORE_FLAGS)


def _handle(run_id: str, flags: StoreFlags, place: Place) -> RunHandle:
    """Returns the handle of a run: of the back end that ``--cluster`` names, else of a job on this machine."""
    if not flags.config.cluster:
        folder = find_run_folder(run_id, place.project_root, flags.output_to)
        if not LocalJobFolder(folder).job_file.exists():
            raise BackendError(
                f"Run {run_id} was not submitted as a job: it belongs to the command that started it.",
                f"Press Ctrl-C there to end it; himl-runner --status={run_id} shows how it stands.",
            )
    name = parse_cluster(flags.config.cluster or "local")
    context = BackendContext(name.target, place.project_root, flags.output_to, flags.config)
    return load_backend(name.backend).create(context).attach(run_id)


def _local_status(run_id: str, folder: Path) -> tuple[RunStatus, str]:
    view = read_record(folder)
    status, message = view.status.status, view.status.message
    if LocalJobFolder(folder).job_file.exists():
        from health_ml.backends.local_jobs import LocalRunHandle

        status = LocalRunHandle(folder).status()
    facts = {"message": message} if message else {}
    facts["since"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(view.status.time))
    facts["folder"] = str(folder)
    lines = [f"Run {run_id}: {status.value}", *_rows(facts)]
    if view.last_values:
        lines += ["  metrics", *(f"    {name:24}{value:.6g}" for name, value in sorted(view.last_values.items()))]
    return status, "\n".join(lines)


def _rows(facts: dict[str, str]) -> list[str]:
    return [f"  {name:<10}{text}" for name, text in facts.items()]
