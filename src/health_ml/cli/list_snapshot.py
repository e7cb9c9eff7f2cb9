"""``--list_snapshot``: what travels with a job from the current folder."""

from __future__ import annotations

from pathlib import Path

from health_ml.cli.command_line import CommandLine
from health_ml.cli.draft import read_experiment
from health_ml.cli.submit import own_folders
from health_ml.deep_learning_config import OutputParams, parameters_of
from health_ml.environment import process_environment
from health_ml.planning.file_hashes import SnapshotFile
from health_ml.planning.secret_files import find_secret_files, refused_files
from health_ml.planning.snapshot import check_size, describe_snapshot, list_tree, user_cache_folder
from health_ml.planning.tree_walk import shown_path


def list_snapshot(command: CommandLine, *, start_directory: Path) -> str:
    """Returns the files that travel with a job, and those that do not with the rule that leaves them out.

    Other flags may be there, so that it can be put behind any command; those about the snapshot are heeded.

    :raises SnapshotError: If the snapshot cannot be taken, or is larger than allowed.
    """
    draft = read_experiment(command, start_directory=start_directory)
    output = OutputParams()
    draft.take(output, parameters_of(output))
    draft.raise_problems()
    own = own_folders(start_directory, output.output_to, user_cache_folder(process_environment()))
    listing = list_tree(start_directory, extra_patterns=own)
    check_size(listing.files, max_snapshot_mb=draft.config.max_snapshot_mb)
    listed = describe_snapshot(listing).rstrip()
    files = [SnapshotFile(path, facts.st_size, 0, "") for path, facts in listing.files]
    found = find_secret_files(start_directory, files, settings=command.config_files)
    secret = refused_files(found, allowed=draft.config.allow_secret_files)
    if not secret:
        return listed
    lines = [f"  {shown_path(file.path)}: {file.reason}" for file in secret]
    return "\n".join([listed, "", "These look like secrets and stop a submission:", *lines])
