"""What code ran: the state of the git repository and the versions of the installed packages."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from health_ml.environment import process_environment
from health_ml.planning.secrets import mask_text

logger = logging.getLogger(__name__)

MAX_PATCH_BYTES = 5_000_000
"""A longer patch is cut at the last file that fits."""
MAX_UNTRACKED = 1000
GIT_TIMEOUT_SECONDS = 10.0

# Configuration that would start other programs, or wait for somebody, stays out.
_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false")
_GIT_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat", "LC_ALL": "C"}


@dataclass(frozen=True)
class GitState:
    """The state of a git working tree.

    :param root: Top folder of the working tree.
    :param commit: Full hash of the commit that is checked out, or None in a repository without one.
    :param branch: Name of the branch, or None if no branch is checked out.
    :param is_dirty: True if a tracked file was changed: then the patch is needed too.
    :param remote: URL of ``origin`` without credentials, or None.
    :param untracked: Paths of untracked files (folders end in a slash), which the patch does not contain.
    :param patch: What ``git apply`` needs to get from the commit to the tracked files as they are.
    :param notes: What is missing above, as sentences.
    """

    root: Path
    commit: str | None
    branch: str | None
    is_dirty: bool
    remote: str | None
    untracked: tuple[str, ...]
    patch: str
    notes: tuple[str, ...] = ()

    def as_document(self) -> dict[str, Any]:
        """Returns everything but the patch, which is a file of its own."""
        document = asdict(self)
        del document["patch"]
        return {**document, "root": str(self.root), "patch_bytes": len(self.patch.encode(errors="replace"))}


def read_git_state(folder: Path, *, is_expected: bool = True) -> GitState | None:
    """Returns the state of the git working tree that a folder is in.

    Returns None without git, outside a repository, or if git refuses or hangs; the log says which.
    Takes no lock and changes nothing.

    :param is_expected: False where nobody misses git or the repository: then the log does not speak of it.
    """
    top = _run_git(folder, "rev-parse", "--show-toplevel", missing_level=logging.INFO if is_expected else logging.DEBUG)
    if top is None:
        return None
    root = Path(_text(top).rstrip("\n"))
    status = _run_git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=normal", "-z")
    if status is None:
        return None
    commit, branch, has_changes, untracked = _parse_status(status)
    patch, notes = _read_patch(root) if has_changes and commit else ("", [])
    if has_changes and not commit:
        notes.append("The repository has no commit yet, so there is no patch against one.")
    if len(untracked) > MAX_UNTRACKED:
        notes.append(f"Only the first {MAX_UNTRACKED} of {len(untracked)} untracked files are listed.")
    for note in notes:
        logger.warning("%s", note)
    remote = _run_git(root, "config", "--get", "remote.origin.url", may_fail=True)
    return GitState(
        root=root,
        commit=commit,
        branch=branch,
        is_dirty=has_changes,
        remote=mask_text(_text(remote).strip()) if remote else None,
        untracked=tuple(untracked[:MAX_UNTRACKED]),
        patch=patch,
        notes=tuple(notes),
    )


def package_versions() -> dict[str, str]:
    """Returns the version of Python and of every installed package, by normalised name, sorted.

    Reads the names of the ``.dist-info`` folders only, which takes a few milliseconds where reading the metadata of
    each package takes some hundred.
    """
    versions: dict[str, str] = {}
    for entry in dict.fromkeys(sys.path):
        for name, version in _packages_in(Path(entry or ".")):
            versions.setdefault(name, version)
    return {"python": platform.python_version(), **dict(sorted(versions.items()))}


def _packages_in(folder: Path) -> list[tuple[str, str]]:
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []
    found = []
    for file_name in names:
        stem, suffix = os.path.splitext(file_name)
        if suffix in (".dist-info", ".egg-info"):
            name, _, version = stem.partition("-")
            version = version.split("-py")[0] or _version_in_metadata(folder / file_name)
            if version:
                found.append((re.sub(r"[-_.]+", "-", name).lower(), version))
    return found


def _version_in_metadata(metadata: Path) -> str:
    """Returns the version in the ``PKG-INFO`` of a package whose folder name does not tell it, or an empty text."""
    try:
        with (metadata / "PKG-INFO").open(encoding="utf-8", errors="replace") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("Version:")), "")
    except OSError:
        return ""


def _run_git(folder: Path, *arguments: str, may_fail: bool = False, missing_level: int = logging.INFO) -> bytes | None:
    """Returns what git printed, or None if it failed, is missing or did not end in time.

    :param may_fail: True if it need not be said that it failed.
    :param missing_level: How to say that there is no git, or no repository.
    """
    try:
        finished = subprocess.run(
            [*_GIT, "-C", str(folder), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_SECONDS,
            check=False,
            env={**process_environment(), **_GIT_ENVIRONMENT},
        )
    except FileNotFoundError:
        logger.log(missing_level, "git is not installed: the state of the code is not recorded.")
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("git %s failed, the state of the code is not recorded: %s", arguments[0], error)
        return None
    if finished.returncode == 0:
        return finished.stdout
    reason = _text(finished.stderr).strip()
    if "not a git repository" in reason:
        logger.log(missing_level, "%s is not in a git repository: the state of the code is not recorded.", folder)
    elif not may_fail:
        logger.warning("git %s failed, the state of the code is not recorded: %s", arguments[0], reason)
    return None


def _parse_status(status: bytes) -> tuple[str | None, str | None, bool, list[str]]:
    """Returns commit, branch, whether tracked files changed, and untracked paths.

    The format is that of ``git status --porcelain=v2 -z``.
    """
    commit: str | None = None
    branch: str | None = None
    has_changes = False
    untracked = []
    for field in _text(status).split("\0"):
        if field.startswith("# branch.oid "):
            commit = field.removeprefix("# branch.oid ")
        elif field.startswith("# branch.head "):
            branch = field.removeprefix("# branch.head ")
        elif field.startswith("? "):
            untracked.append(field.removeprefix("? "))
        elif field[:2] in ("1 ", "2 ", "u "):
            has_changes = True
    return (
        None if commit == "(initial)" else commit,
        None if branch == "(detached)" else branch,
        has_changes,
        untracked,
    )


def _read_patch(root: Path) -> tuple[str, list[str]]:
    arguments = ["diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv"]
    raw = _run_git(root, *arguments)
    if raw is None:
        return "", ["The patch of the uncommitted changes could not be read: the record lacks it."]
    if len(raw) <= MAX_PATCH_BYTES:
        return _text(raw), []
    end = max(raw.rfind(b"\ndiff --git ", 0, MAX_PATCH_BYTES), -1) + 1
    return _text(raw[:end]), [
        f"The patch of the uncommitted changes has {len(raw):,} bytes: the record holds only the files in its first "
        f"{end:,} bytes. Commit your changes to make the run reproducible."
    ]


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")
