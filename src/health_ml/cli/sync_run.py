"""``--sync=<run id>``: carries the record of a run over to its mirrors."""

from __future__ import annotations

from pathlib import Path

from health_ml.cli.command_line import CommandLine
from health_ml.cli.draft import read_experiment
from health_ml.cli.unknown import flags_without_effect
from health_ml.deep_learning_config import OutputParams, parameters_of
from health_ml.errors import BackendError
from health_ml.planning.run_store import find_run_folder


def sync_run(command: CommandLine, *, start_directory: Path) -> str:
    """Returns what to tell the user after the mirrors of a run have caught up with its record.

    :raises ArgumentsError: If flags were given that have no effect on it.
    :raises RunNotFoundError: If there is no such run.
    :raises BackendError: If the mirrors could not catch up.
    """
    draft = read_experiment(command, start_directory=start_directory)
    output = OutputParams()
    draft.take(output, parameters_of(output))
    draft.problems += flags_without_effect(
        {*draft.names_from_user(), *(given.name for given in draft.pending)} - {"tracking_uri", "output_to"},
        mode="--sync",
    )
    draft.raise_problems()
    from health_ml.records.sync import sync  # loads what only this needs

    folder = find_run_folder(command.sync, start_directory, output.output_to)
    state = sync(folder, tracking_uri=draft.config.tracking_uri, project_root=start_directory)
    if not state.is_complete:
        raise BackendError(state.message)
    return state.message
