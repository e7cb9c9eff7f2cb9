"""Downloads files of runs: outputs, checkpoints and logs, by glob pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from health_ml.azure.history import Artifact, RunFacts, RunHistory
from health_ml.azure.transfer import BlobDownloader, RemoteFile

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

_OUTPUT = re.compile(r"outputs/(?:retry_(\d+)/)?(.+)", re.DOTALL)


class OutputPath(NamedTuple):
    """Where a file of the outputs folder is.

    :param attempt: Which start of the run wrote it: the service collects what a restarted run writes in ``retry_001``
        and so on.
    :param path: Its path in the outputs folder.
    """

    attempt: int
    path: str


def download_files(client: MLClient, run_id: str, pattern: str, target: Path) -> list[Path]:
    """Returns the files of a run that match a glob pattern, downloaded below the target folder.

    The pattern is about the path in the run, like ``outputs/checkpoints/last.ckpt`` or ``user_logs/*``, or in its
    outputs folder: ``checkpoints/*.ckpt`` stands for the newest version of each, if the run was restarted. Of a sweep,
    each trial gets a folder of its own, named after its id. What an earlier call has downloaded is not downloaded
    again.

    :raises RunNotFoundError: If there is no such run.
    :raises ServiceError: If a file cannot be downloaded completely; another call continues.
    :raises OutputError: If the target folder cannot be written.
    """
    with RunHistory.of_client(client) as history:
        return download_from_run(history, run_id, pattern, target)


def download_from_run(history: RunHistory, run_id: str, pattern: str, target: Path) -> list[Path]:
    """Returns the files of a run that match a pattern, downloaded below the target folder: see above."""
    run = history.run(run_id)
    files = matching_files(history, run, pattern)
    for child in history.children(run):
        files += [
            RemoteFile(f"{child.run_id}/{file.name}", file.url) for file in matching_files(history, child, pattern)
        ]
    with BlobDownloader() as downloader:
        return sorted(downloader.fetch(files, target.absolute()))


def matching_files(history: RunHistory, run: RunFacts, pattern: str) -> list[RemoteFile]:
    """Returns the files of one run that match a glob pattern, each under one name."""
    artifacts = history.artifacts(run)
    found = {artifact.path: artifact.url for artifact in artifacts if fnmatchcase(artifact.path, pattern)}
    if not found:
        found = {
            path: artifact.url for path, artifact in newest_outputs(artifacts).items() if fnmatchcase(path, pattern)
        }
    return [RemoteFile(name, url) for name, url in found.items()]


class StoredFiles:
    """The files of a run, by their paths in the run, like ``outputs/checkpoints/last.ckpt``.

    :param history: The runs of the workspace.
    :param run: The run.
    """

    def __init__(self, history: RunHistory, run: RunFacts) -> None:
        self._history = history
        self._run = run

    @cached_property
    def _addresses(self) -> dict[str, str]:
        return {artifact.path: artifact.url for artifact in self._history.artifacts(self._run)}

    def names(self) -> list[str]:
        """Returns the paths of all files, as the service knew them when they were first asked for."""
        return list(self._addresses)

    def download(self, name: str, target: Path) -> None:
        """Writes one of the files to a path whose folder exists.

        :raises ServiceError: If it cannot be downloaded completely.
        """
        with BlobDownloader() as downloader:
            downloader.fetch([RemoteFile(target.name, self._addresses[name])], target.parent)


def output_path(path: str) -> OutputPath | None:
    """Returns where a file of a run is in its outputs folder, or None for a file outside of it."""
    match = _OUTPUT.fullmatch(path)
    return OutputPath(int(match[1] or 0), match[2]) if match else None


def newest_outputs(artifacts: Iterable[Artifact], *, last_attempt: int | None = None) -> dict[str, Artifact]:
    """Returns the outputs of a run by their path in the outputs folder, each as the newest attempt has written it.

    :param last_attempt: Leave out what later attempts have written.
    """
    newest: dict[str, tuple[int, Artifact]] = {}
    for artifact in artifacts:
        place = output_path(artifact.path)
        if place is None or (last_attempt is not None and place.attempt > last_attempt):
            continue
        if place.path not in newest or newest[place.path][0] < place.attempt:
            newest[place.path] = place.attempt, artifact
    return {path: artifact for path, (_, artifact) in sorted(newest.items())}
