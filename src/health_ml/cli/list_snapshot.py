"""``--list_snapshot``: what travels with a job from the current folder."""

from __future__ import annotations

from pathlib import Path

from health_ml.cli.command_line import CommandLine
from health_ml.cli.draft import read_experiment
from health_ml.planning.secret_files import find_secret_files
from health_ml.planning.snapshot import SnapshotFile, describe_snapshot, list_tree
from health_ml.planning.tree_walk import shown_path


def list_snapshot(command: CommandLine, *, start_directory: Path) -> str:
    """Returns the files that travel with a job, and those that do not with the rule that leaves them out.

    Other flags may be there, so that it can be put behind any command.

    :raises SnapshotError: If the snapshot cannot be taken.
    """
    draft = read_experiment(command, start_directory=start_directory)
    draft.raise_problems()
    listed = describe_snapshot(start_directory).rstrip()
    files = [SnapshotFile(file.path, file.facts.st_size, 0, "") for file in list_tree(start_directory).files]
    secret = find_secret_files(start_directory, files)
    if not secret:
        return listed
    lines = [f"  {shown_path(file.path)}: {file.reason}" for file in secret]
    return "\n".join([listed, "", "These look like secrets and stop a submission:", *lines])
