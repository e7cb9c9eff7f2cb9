"""What a user may write as ``--src_checkpoint``: a file, an http(s) URL, or a run id with an optional path."""

from __future__ import annotations

from pathlib import Path


class CheckpointParser:
    """A checkpoint as the user wrote it.

    :param checkpoint: A local path, an http(s) URL, or ``run_id[:path/in/the/run.ckpt]``. May be empty.
    """

    def __init__(self, checkpoint: str = "") -> None:
        self.checkpoint = checkpoint

    def __repr__(self) -> str:
        return f"CheckpointParser({self.checkpoint!r})"

    def __str__(self) -> str:
        return self.checkpoint

    def __bool__(self) -> bool:
        return bool(self.checkpoint)

    def get_or_download_checkpoint(self, download_folder: Path) -> Path:
        """Returns the checkpoint as a local file, fetched into the given folder if it is not local."""
        return Path(self.checkpoint)
