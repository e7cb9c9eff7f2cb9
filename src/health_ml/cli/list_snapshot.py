"""``--list_snapshot``: what travels with a job from the current folder."""

from __future__ import annotations

from pathlib import Path

from health_ml.cli.command_line import CommandLine
from health_ml.cli.draft import read_experiment
from health_ml.planning.snapshot import describe_snapshot


def list_snapshot(command: CommandLine, *, start_directory: Path) -> str:
    """Returns the files that travel with a job, and those that do not with the rule that leaves them out.

    Other flags may be there, so that it can be put behind any command.

    :raises SnapshotError: If the snapshot cannot be taken.
    """
    draft = read_experiment(command, start_directory=start_directory)
    draft.raise_problems()
    return describe_snapshot(start_directory).rstrip()
