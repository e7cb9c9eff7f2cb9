"""``--sync=<run id>``: carries the record of a run over to its mirrors."""

from __future__ import annotations

from pathlib import Path

from health_ml.cli.command_line import CommandLine
from health_ml.cli.run_store_flags import read_store_flags
from health_ml.errors import BackendError, RunNotFoundError
from health_ml.planning.run_store import find_run_folder


def sync_run(command: CommandLine, *, start_directory: Path) -> str:
    """Returns what to tell the user after the mirrors of a run have caught up with its record.

    :raises ArgumentsError: If flags were given that have no effect on it.
    :raises RunNotFoundError: If there is no such run.
    :raises BackendError: If the mirrors could not catch up.
    """
    flags = read_store_flags(
        command, start_directory=start_directory, mode="--sync", allowed=frozenset({"tracking_uri"})
    )
    from health_ml.records.mirror_state import CATCH_UP
    from health_ml.records.sync import sync  # loads what only this needs

    folder = find_run_folder(command.sync, start_directory, flags.output_to)
    if flags.output_to is not None and not folder.is_relative_to(flags.output_to):
        raise RunNotFoundError(
            f"There is no run '{command.sync}' in --output_to={flags.output_to}.",
            f"There is one in {folder.parent}: leave out --output_to if you mean that one.",
        )
    state = sync(folder, tracking_uri=flags.config.tracking_uri, project_root=start_directory)
    if not state.is_complete:
        message, _, _ = state.message.partition(CATCH_UP)  # that would be this command
        raise BackendError(message.strip(), "Type the command again when that has changed.")
    return state.message
