"""``himl-tb``: shows TensorBoard for runs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import param

from health_ml.cli.program_flags import ProgramFlags, program_help, read_program_flags
from health_ml.errors import BackendError, RunNotFoundError, did_you_mean
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.run_store import find_run_folder, run_store_folders
from health_ml.records.reader import read_document
from health_ml.run_paths import RunPaths
from health_ml.settings import RECORD_FOLDER, RECORD_RUN_DOCUMENT

HOST = "127.0.0.1"
_STOP_SECONDS = 5.0

RunFinder = Callable[[str], Path]
"""Returns the folder of the run with an id; raises RunNotFoundError."""


class TensorBoardFlags(ProgramFlags):
    """Which runs to show, and where."""

    program = "himl-tb"
    usage = "usage: himl-tb [--run=ID[,ID]] [--FLAG=VALUE ...]"
    summary = (
        "Shows TensorBoard for runs: those that --run names, or the newest ones. It follows runs that are still going "
        "on. Ctrl-C ends it."
    )

    run = param.List(default=[], item_type=str, doc="Ids of the runs. Default: the newest runs.")
    experiment = param.String(default="", doc="Only runs of this experiment.")
    num_runs = param.Integer(default=1, bounds=(1, None), doc="How many of the newest runs, if --run names none.")
    output_to = param.ClassSelector(
        class_=Path, default=None, allow_None=True, doc="Folder of the runs. Default: 'outputs' in the current folder."
    )
    port = param.Integer(
        default=0, bounds=(0, 65535), doc="Port of this machine to show it on. 0: the first free one from 6006."
    )

    def add_problems(self, problems: list[str]) -> None:
        """Adds a sentence for each flag that has no effect, or names no folder."""
        if self.run and (self.experiment or self.param.num_runs.default != self.num_runs):
            problems.append("--run says which runs to show: --experiment and --num_runs have no effect with it.")
        if self.output_to is not None and not self.output_to.is_dir():
            problems.append(f"--output_to={self.output_to}: there is no such folder.")


def show_tensorboard(
    argv: Sequence[str],
    *,
    start_directory: Path,
    write: Callable[[str], object],
    find_run: RunFinder | None = None,
) -> int:
    """Shows TensorBoard until somebody ends it, and returns the exit code.

    :param argv: The arguments after the name of the program.
    :param start_directory: Where it was typed.
    :param write: Shows a text to the user.
    :param find_run: Returns the folder of a run that ``--run`` names. Default: the folder in the local store.
    :raises ArgumentsError: With everything that is wrong with the arguments.
    :raises RunNotFoundError: If there are no such runs, or none with event files.
    :raises BackendError: If TensorBoard cannot be started.
    """
    flags = read_program_flags(TensorBoardFlags(), argv, start_directory)
    if flags.help:
        write(program_help(flags))
        return 0
    folders = choose_folders(flags, start_directory, find_run)
    with tempfile.TemporaryDirectory(prefix="himl-tb-") as folder:
        for name, target in folders.items():
            link = Path(folder) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        write(f"{len(folders)} run{'s' * (len(folders) != 1)}: {', '.join(folders)}")
        return _run_tensorboard(Path(folder), flags.port)


def choose_folders(
    flags: TensorBoardFlags, start_directory: Path, find_run: RunFinder | None = None
) -> dict[str, Path]:
    """Returns the folders of the event files, each under the name that TensorBoard shows.

    :raises RunNotFoundError: If there are no such runs, or none with event files.
    """
    if not flags.run:
        return _newest(flags, start_directory)
    find = find_run or (lambda run_id: find_run_folder(run_id, start_directory, flags.output_to))
    found = {run_id: event_folders(find(run_id), run_id) for run_id in flags.run}
    if without := [run_id for run_id, folders in found.items() if not folders]:
        raise RunNotFoundError(
            f"There are no TensorBoard event files of {', '.join(without)}.",
            "A run writes them once it logs its first metric.",
        )
    return {name: folder for folders in found.values() for name, folder in folders.items()}


def event_folders(run_folder: Path, name: str) -> dict[str, Path]:
    """Returns the folders with event files of a run: its own, and for a fan-out those of its trials.

    :param name: Name of the run in TensorBoard; trials are shown below it.
    """
    fan_out = FanOutFolder(run_folder)
    candidates = {f"{name}/{index}": fan_out.trial_folder(index) for index in fan_out.trial_indices()}
    if not candidates:
        candidates = {name: run_folder}
    found = {name: RunPaths.below(folder, name).lightning_logs for name, folder in candidates.items()}
    return {name: folder for name, folder in found.items() if any(folder.rglob("events.out.tfevents.*"))}


def _newest(flags: TensorBoardFlags, start_directory: Path) -> dict[str, Path]:
    """Returns the folders of the newest runs that have event files."""
    stores = [flags.output_to] if flags.output_to else list(run_store_folders(start_directory))
    experiments: set[str] = set()
    folders: dict[str, Path] = {}
    count = 0
    for run in sorted(_runs(stores), key=lambda run: run.name, reverse=True):
        experiment = str(read_document(run / RECORD_FOLDER / f"{RECORD_RUN_DOCUMENT}.json").get("experiment") or "")
        experiments.add(experiment)
        if flags.experiment in ("", experiment) and (of_run := event_folders(run, run.name)):
            folders.update(of_run)
            count += 1
        if count == flags.num_runs:
            break
    if not folders:
        raise _nothing_found(flags.experiment, experiments - {""}, stores)
    return folders


def _runs(stores: Sequence[Path]) -> Iterator[Path]:
    for store in stores:
        yield from (record.parent for record in store.glob(f"*/{RECORD_FOLDER}"))


def _nothing_found(experiment: str, experiments: set[str], stores: Sequence[Path]) -> RunNotFoundError:
    searched = " and ".join(map(str, stores))
    if experiment and experiment not in experiments and experiments:
        return RunNotFoundError(
            f"There is no run of the experiment '{experiment}' in {searched}.",
            did_you_mean(experiment, sorted(experiments))
            or f"The experiments there are {', '.join(sorted(experiments))}.",
        )
    of = f" of the experiment '{experiment}'" if experiment else ""
    return RunNotFoundError(
        f"There is no run{of} with TensorBoard event files in {searched}.",
        "Type the command where the runs were started, or name their folder with --output_to.",
    )


def _run_tensorboard(folder: Path, port: int) -> int:
    """Runs TensorBoard on a folder until somebody ends it; returns the exit code."""
    if port:
        _check_port(port)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", HOST]
    command += ["--port", str(port)] if port else []
    # Where no file of the user can hide a module.
    process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL)
    try:
        with _ending_on_signals():
            code = process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(process)
    if code:
        raise BackendError(f"TensorBoard ended with exit code {code}.", "It says above why.")
    return 0


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BackendError(
                f"--port={port} cannot be used: {error.strerror}.", "Choose another one, or leave it out."
            ) from error


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Lets a request to end this process end what it waits for, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
