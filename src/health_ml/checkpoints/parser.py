"""What a user may write as ``--src_checkpoint``: a file, an http(s) URL, or a run id with an optional path.

This module is imported with the declarations of the flags, so it loads neither torch nor requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from health_ml.environment import process_environment
from health_ml.errors import ArgumentsError, CheckpointError
from health_ml.settings import (
    CHECKPOINT_FOLDER,
    CHECKPOINT_SUFFIX,
    ENV_PROJECT_ROOT,
    ENV_START_DIRECTORY,
    LAST_CHECKPOINT,
)

ACCEPTED_FORMS = (
    "Accepted are a file, an http(s) URL, a run id (its checkpoints/last.ckpt), 'run_id:file.ckpt' (below the run's "
    "checkpoints folder) and 'run_id:folder/file.ckpt'."
)

_RUN_ID = re.compile(r"[\w-]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_MASK = "***"
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


class CheckpointParser:
    """A checkpoint as the user wrote it: a local file, an http(s) URL, or ``run_id[:path/in/the/run.ckpt]``.

    A name that contains a separator or a dot is a file, whether it exists or not: a missing file is never mistaken
    for a run id. A bare name is a file if there is one of that name, else a run id. Relative paths count from where
    the user typed the command, also after the working directory has changed.

    :param checkpoint: The text. May be empty, which stands for no checkpoint.
    :raises ArgumentsError: If the text can be none of these. It is a ValueError too.
    """

    METAVAR = "CHECKPOINT"
    """What stands for a value in the help of the command line."""

    def __init__(self, checkpoint: str = "") -> None:
        self.checkpoint = str(checkpoint).strip()
        self.start_directory = Path(process_environment().get(ENV_START_DIRECTORY) or Path.cwd())
        self._remote_path: str | None = None
        self._scheme = _scheme_of(self.checkpoint)
        if self.checkpoint and not self.is_url and _is_run_form(self.checkpoint) and not self.is_local_file:
            self._remote_path = _remote_path_of(self.checkpoint)

    @property
    def is_url(self) -> bool:
        """True if the checkpoint is downloaded by http or https."""
        return bool(self._scheme)

    @property
    def is_local_file(self) -> bool:
        """True if the checkpoint is a file that exists."""
        return is_file(self.local_path())

    @property
    def is_aml_run_id(self) -> bool:
        """True if the checkpoint belongs to a run, of the local store or of another one."""
        return self._remote_path is not None

    @property
    def run_id(self) -> str:
        """Id of the run that the checkpoint belongs to; empty if the checkpoint is a file or a URL."""
        return self.checkpoint.split(":", maxsplit=1)[0] if self.is_aml_run_id else ""

    @property
    def remote_path(self) -> str:
        """Path of the checkpoint in the folder of its run; empty if the checkpoint is a file or a URL."""
        return self._remote_path or ""

    def local_path(self, start_directory: Path | None = None) -> Path | None:
        """Returns the absolute path that the text stands for if it is read as a file, or None for a URL or nothing.

        :param start_directory: Where relative paths start. Default: where the user typed the command.
        """
        if not self.checkpoint or self.is_url:
            return None
        try:
            path = Path(self.checkpoint).expanduser()
        except RuntimeError:  # "~name" of a user that does not exist
            path = Path(self.checkpoint)
        return (start_directory or self.start_directory).absolute() / path

    def validate(self) -> None:
        """Checks that there is something to fetch.

        :raises ArgumentsError: If the text is empty.
        :raises CheckpointError: If the text is a path and no file is there, naming the absolute path.
        """
        if not self.checkpoint:
            raise ArgumentsError("The checkpoint is empty.", ACCEPTED_FORMS)
        if not (self.is_url or self.is_aml_run_id or self.is_local_file):
            raise missing_file_error(self)

    def get_or_download_checkpoint(self, download_folder: Path) -> Path:
        """Returns the absolute path of the checkpoint file, downloaded into the given folder if it is not local.

        A run id is looked up in the local store of the folder where the user typed the command, then in AzureML.

        :raises HimlError: If there is no such checkpoint or it cannot be fetched.
        """
        from health_ml.checkpoints.fetch import known_stores, resolve_checkpoint  # fetch imports this module

        return resolve_checkpoint(
            self,
            start_directory=self.start_directory,
            project_root=Path(process_environment().get(ENV_PROJECT_ROOT) or self.start_directory),
            download_folder=Path(download_folder),
            other_stores=known_stores(start_directory=self.start_directory) if self.is_aml_run_id else (),
        )

    def __bool__(self) -> bool:
        return bool(self.checkpoint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckpointParser) and self.checkpoint == other.checkpoint

    def __hash__(self) -> int:
        return hash((CheckpointParser, self.checkpoint))

    def __str__(self) -> str:
        """Returns the text with the secrets of a URL masked; the text itself is :attr:`checkpoint`."""
        return mask_url(self.checkpoint) if self.is_url else self.checkpoint

    def __repr__(self) -> str:
        return f"CheckpointParser({str(self)!r})"


def is_file(path: Path | None) -> bool:
    """Returns True for a file that exists, and False for a path that no file can have: longer than systems allow."""
    return path is not None and _is(path, Path.is_file)


def _is(path: Path, has_kind: Callable[[Path], bool]) -> bool:
    try:
        return has_kind(path)
    except OSError:
        return False


def missing_file_error(parser: CheckpointParser, start_directory: Path | None = None) -> CheckpointError:
    """Returns the error for a checkpoint that is written as a path where no file is."""
    path = parser.local_path(start_directory)
    if path is not None and _is(path, Path.is_dir):
        inside = sorted(file.name for file in path.glob(f"*{CHECKPOINT_SUFFIX}"))[:5]
        choices = f" The folder holds {', '.join(inside)}." if inside else ""
        return CheckpointError(f"The checkpoint {path} is a folder, not a file.{choices}", ACCEPTED_FORMS)
    return CheckpointError(f"There is no checkpoint file {path}.", ACCEPTED_FORMS)


def mask_url(url: str) -> str:
    """Returns the URL with user name, password and the values of its query replaced by ``***``."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return _MASK
    netloc = f"{_MASK}@{host}" if "@" in parts.netloc else host
    pairs = [pair.partition("=") for pair in parts.query.split("&")] if parts.query else []
    query = "&".join(f"{name}={_MASK}" if equals else _MASK for name, equals, _ in pairs)
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def _scheme_of(text: str) -> str:
    """Returns ``http`` or ``https`` for a URL, or an empty string for everything that is no URL."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ArgumentsError(f"The checkpoint {text!r} contains control characters.", ACCEPTED_FORMS)
    match = _SCHEME.match(text)
    if match is None:
        return ""
    scheme = match.group().lower()
    if scheme not in ("http", "https"):
        raise ArgumentsError(
            f"The checkpoint {mask_url(text)!r} starts with '{scheme}://', which cannot be fetched.",
            f"{_alternative(scheme, text)}{ACCEPTED_FORMS}",
        )
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ArgumentsError(f"The checkpoint {mask_url(text)!r} is no URL: {error}.", ACCEPTED_FORMS) from error
    if not host:
        raise ArgumentsError(f"The URL {mask_url(text)!r} names no host.", ACCEPTED_FORMS)
    if scheme == "http" and parts.password and host not in _THIS_MACHINE:
        raise ArgumentsError(
            f"The URL {mask_url(text)!r} would send its password unencrypted.",
            f"Use https, or download the file first. {ACCEPTED_FORMS}",
        )
    if not parts.path.rpartition("/")[2]:
        raise ArgumentsError(f"The URL {mask_url(text)!r} ends with a folder, not with a file.", ACCEPTED_FORMS)
    return scheme


def _alternative(scheme: str, text: str) -> str:
    if scheme == "file":
        return f"Write the path alone: {text.split('://', maxsplit=1)[1]}. "
    return "Download the file with the tool of that service first, then give its path. "


def _is_run_form(text: str) -> bool:
    """True for ``name`` and ``name:anything``, where the name has neither separators nor dots."""
    if _WINDOWS_PATH.match(text):
        raise ArgumentsError(f"The checkpoint {text!r} is a Windows path.", ACCEPTED_FORMS)
    if text.startswith(":"):
        raise ArgumentsError(f"The checkpoint {text!r} has no run id before the colon.", ACCEPTED_FORMS)
    return _RUN_ID.fullmatch(text.split(":", maxsplit=1)[0]) is not None


def _remote_path_of(text: str) -> str:
    """Returns the path in the run that ``run_id[:path]`` stands for."""
    _, colon, path = text.partition(":")
    if not colon:
        return f"{CHECKPOINT_FOLDER}/{LAST_CHECKPOINT}"
    if problem := _problem_of(path):
        raise ArgumentsError(f"The checkpoint {text!r} {problem}.", ACCEPTED_FORMS)
    return path if "/" in path else f"{CHECKPOINT_FOLDER}/{path}"


def _problem_of(path: str) -> str:
    if not path.strip():
        return "names no file after the colon"
    if path.startswith("/") or "\\" in path or PurePosixPath(path).is_absolute():
        return "has an absolute path or a backslash after the colon; the path counts from the folder of the run"
    parts = path.split("/")
    if "" in parts:
        return "has an empty part in its path"
    if "." in parts or ".." in parts:
        return "has '.' or '..' in its path, which would leave the folder of the run"
    return ""
