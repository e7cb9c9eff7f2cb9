"""``himl-download``: fetches files of runs in AzureML to this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import param

from health_ml.cli.program_flags import ProgramFlags, program_help, read_program_flags
from health_ml.errors import EXIT_USAGE, ArgumentsError, exiting_with
from health_ml.experiment_config import AzureMLParams, ExperimentConfig
from health_ml.settings import DOWNLOADED_RUN_FILE

DEFAULT_FOLDER = Path("outputs")


class DownloadFlags(ProgramFlags):
    """What to download, and where to."""

    program = "himl-download"
    usage = "usage: himl-download --run=ID[,ID] [--FLAG=VALUE ...]"
    summary = (
        "Downloads files of runs in AzureML, several at once. What is here already is not downloaded again, and what "
        "was interrupted continues. With several runs, for the trials of a search, and without --output_dir, each run "
        "gets a folder of its own."
    )

    run = param.List(default=[], item_type=str, doc="Ids of the runs, which are the names of the jobs.")
    output_dir = param.ClassSelector(class_=Path, default=DEFAULT_FOLDER, doc="Folder to download to.")
    files_to_download = param.String(
        default="*",
        doc="Pattern of paths in the run: '*' for all, 'outputs/*', 'user_logs/*'; or of paths in its outputs folder, "
        "like 'checkpoints/*.ckpt', which stands for the newest version of each if the run was restarted. A search "
        "also has its results, fan_out.csv and fan_out.html.",
    )
    workspace_config_path = ExperimentConfig.param.workspace_config_path
    auth = AzureMLParams.param.auth

    def add_problems(self, problems: list[str]) -> None:
        """Adds a sentence if no run is named."""
        if not self.run and not self.help and not problems:
            problems.append("--run is missing: which run is it about?")


def download(
    argv: Sequence[str], *, start_directory: Path, environ: Mapping[str, str], write: Callable[[str], object]
) -> int:
    """Downloads what a command line asks for, and returns the exit code.

    :param argv: The arguments after the name of the program.
    :param start_directory: Where it was typed.
    :param environ: The environment variables of this process.
    :param write: Shows a text to the user.
    :raises ArgumentsError: With everything that is wrong with the arguments.
    :raises HimlError: If there is no such run, or a file cannot be downloaded.
    """
    flags = read_program_flags(DownloadFlags(), argv, start_directory)
    if flags.help:
        write(program_help(flags))
        return 0
    from health_ml.azure.account import AzureMLAccount
    from health_ml.azure.client import find_workspace
    from health_ml.azure.downloads import download_from_run
    from health_ml.azure.history import RunHistory
    from health_ml.azure.searches import write_tables

    with exiting_with(EXIT_USAGE):
        workspace = find_workspace(
            config_path=flags.workspace_config_path, start_directory=start_directory, environ=environ
        )
    account = AzureMLAccount(workspace, environ=environ, auth=flags.auth.value if flags.auth else None)
    target = start_directory / flags.output_dir
    with RunHistory.of_workspace(workspace.arm_id, account.credential) as history:
        for run_id in flags.run:
            has_own = len(flags.run) > 1 or flags.output_dir == DEFAULT_FOLDER
            folder = target / run_id if has_own else target
            _check_owner(folder, run_id)
            files = download_from_run(history, run_id, flags.files_to_download, folder)
            files += write_tables(history, history.run(run_id), flags.files_to_download, folder)
            if not files:
                raise ArgumentsError(
                    f"The run {run_id} has no file that matches --files_to_download={flags.files_to_download}.",
                    "Patterns are about paths like outputs/checkpoints/last.ckpt or user_logs/std_log.txt.",
                )
            (folder / DOWNLOADED_RUN_FILE).write_text(f"{run_id}\n", encoding="utf-8")
            noun = "file" if len(files) == 1 else "files"
            write(f"{run_id}: {len(files)} {noun} in {folder}")
    return 0


def _check_owner(folder: Path, run_id: str) -> None:
    """Raises an error if a folder has the files of another run, which have the same names."""
    try:
        owner = (folder / DOWNLOADED_RUN_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return
    if owner != run_id:
        raise ArgumentsError(
            f"{folder} has the files of run {owner}, and those of {run_id} have the same names.",
            "Give another --output_dir, or leave it out: then each run gets a folder of its own.",
        )
