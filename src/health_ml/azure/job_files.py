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

    def restore_usable(self, folder: str, outputs: Path, is_usable: Callable[[Path], bool]) -> bool:
        """Returns True after restoring a folder that can be used; looks at older attempts if the newest cannot be.

        :param is_usable: Says whether the restored folder can be used.
        """
        last = last_attempt_with(self.artifacts, folder)
        for attempt in range(-1 if last is None else last, -1, -1):
            if not self._fetch(newest_outputs(self.artifacts, last_attempt=attempt), folder, outputs):
                continue
            if is_usable(outputs / folder):
                return True
            logger.warning("What attempt %d has left in outputs/%s cannot be used.", attempt, folder)
        return False

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
