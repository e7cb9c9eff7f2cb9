"""What earlier attempts of a job have left: a job that AzureML starts again finds an empty disk."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from health_ml.azure.downloads import newest_outputs, output_path
from health_ml.azure.history import Artifact, RunFacts, RunHistory
from health_ml.azure.transfer import BlobDownloader, RemoteFile

logger = logging.getLogger(__name__)

_MARKER = ".himl_restored"
"""File in the job's folder, outside of what the service collects: another process has done this already."""


def last_attempt_with(artifacts: list[Artifact], folder: str) -> int | None:
    """Returns the last attempt of a run that has left files in a folder of its outputs, or None."""
    places = [output_path(artifact.path) for artifact in artifacts]
    found = [place.attempt for place in places if place is not None and place.path.startswith(f"{folder}/")]
    return max(found, default=None)


class FormerAttempts:
    """The files of the earlier attempts of a run.

    :param history: The runs of the workspace.
    :param run: The run.
    """

    def __init__(self, history: RunHistory, run: RunFacts) -> None:
        self.artifacts = [artifact for artifact in history.artifacts(run, "outputs/") if output_path(artifact.path)]

    def count(self, folder: str) -> int:
        """Returns how many attempts there were, as far as their files in a folder of the outputs tell."""
        last = last_attempt_with(self.artifacts, folder)
        return 0 if last is None else last + 1

    def restore(self, folder: str, outputs: Path) -> list[Path]:
        """Returns the files of a folder of the outputs, each as the newest attempt has left it, on this disk."""
        return self._fetch(newest_outputs(self.artifacts), folder, outputs)

    def restore_complete(self, folder: str, outputs: Path, is_complete: Callable[[Path], bool]) -> list[Path]:
        """Returns the files of a folder of the outputs on this disk, each in its newest version that is complete.

        A version that was being collected when the nodes were taken away may lack its end.

        :param is_complete: Says whether a file is complete. One without any complete version stays as it is.
        """
        restored = self.restore(folder, outputs)
        damaged = {path for path in restored if not is_complete(path)}
        for attempt in range((last_attempt_with(self.artifacts, folder) or 0) - 1, -1, -1):
            names = {path.relative_to(outputs).as_posix() for path in damaged}
            older = newest_outputs(self.artifacts, last_attempt=attempt)
            found = self._fetch({name: older[name] for name in names & set(older)}, folder, outputs)
            damaged -= {path for path in found if is_complete(path)}
        for path in sorted(damaged):
            logger.warning("No attempt has left a complete %s.", path.name)
        return restored

    def _fetch(self, newest: dict[str, Artifact], folder: str, outputs: Path) -> list[Path]:
        files = [
            RemoteFile(path, artifact.url)
            for path, artifact in newest.items()
            if path.startswith(f"{folder}/") and not path.rpartition("/")[2].startswith(".")
        ]
        with BlobDownloader() as downloader:
            return downloader.fetch(files, outputs)


@contextmanager
def once(folder: Path) -> Iterator[bool]:
    """Gives True to the first process of a node that gets here, and False to the others when that one is done.

    :param folder: Folder of the job.
    """
    with (folder / f"{_MARKER}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marker = folder / _MARKER
        if marker.exists():
            yield False
            return
        yield True
        marker.touch()
