"""The files that travel with a job: an ordered manifest with one content hash."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from health_ml.errors import SnapshotError
from health_ml.planning.file_hashes import EXECUTABLE_MODE, PLAIN_MODE, SnapshotFile, hash_files
from health_ml.planning.ignore import DEFAULT_PATTERNS
from health_ml.planning.tree_walk import FoundFile, TreeListing, shown_path, walk_tree
from health_ml.settings import CACHE_FOLDER, ENV_XDG_CACHE_HOME, SNAPSHOT_CACHE_FOLDER, SNAPSHOT_STORE_FOLDER

MEGABYTE = 1_000_000
WARN_ABOVE_MB = 100
HEAVIEST_FOLDERS = 10
MANIFEST_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """The files that travel, in the byte order of their paths.

    :param files: The manifest.
    """

    files: tuple[SnapshotFile, ...]

    @cached_property
    def content_hash(self) -> str:
        """Hash over all paths, modes and contents, in hexadecimal digits: equal if and only if the manifests are."""
        digest = hashlib.sha256(f"health_ml snapshot {MANIFEST_VERSION}\n".encode())
        # A path cannot hold a zero byte, so that no two manifests give the same text.
        modes = {mode: f"{mode:o}" for mode in (PLAIN_MODE, EXECUTABLE_MODE)}
        lines = [f"{sha256} {modes.get(mode, mode)} {size} {path}\0" for path, size, mode, sha256 in self.files]
        digest.update("".join(lines).encode("utf-8"))
        return digest.hexdigest()

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Returns the snapshot as values that JSON knows; :meth:`from_json` gives an equal one back."""
        return {
            "version": MANIFEST_VERSION,
            "content_hash": self.content_hash,
            "files": [list(file) for file in self.files],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Snapshot:
        """Returns the snapshot that :meth:`to_json` described.

        :raises SnapshotError: If the values are not those of a snapshot, or were changed.
        """
        try:
            files = [
                SnapshotFile(str(path), int(size), int(mode), str(sha256))
                for path, size, mode, sha256 in values["files"]
            ]
            snapshot = cls(tuple(files))
            is_intact = values["version"] == MANIFEST_VERSION and values["content_hash"] == snapshot.content_hash
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError(
                f"The manifest of a snapshot is damaged: {error!r}.", "Submit the job again."
            ) from error
        if not is_intact:
            raise SnapshotError(
                "The manifest of a snapshot does not fit its content hash, or is of another version.",
                "Submit the job again.",
            )
        _check_manifest(files)
        return snapshot


def take_snapshot(
    folder: Path,
    *,
    cache_folder: Path | None = None,
    max_snapshot_mb: float | None = None,
    extra_patterns: tuple[str, ...] = (),
    heeds_git: bool = True,
) -> Snapshot:
    """Returns the files below a folder that travel with a job. Nothing is written to the folder.

    Folders without files do not travel. Above 100 MB a warning names the heaviest folders.

    :param folder: The folder, usually the one in which the command was typed.
    :param cache_folder: Where file hashes are remembered (:func:`hash_cache_folder`); None hashes every file.
    :param max_snapshot_mb: Largest size in megabytes of all files together; None for any.
    :param extra_patterns: Further patterns of what does not travel, relative to the folder.
    :param heeds_git: False for a folder that is none of the user's, whose repository, if there is one, does not count.
    :raises SnapshotError: With every path that cannot travel, or if the files are too large.
    """
    listing = list_tree(folder, extra_patterns=extra_patterns, heeds_git=heeds_git)
    check_size(listing.files, max_snapshot_mb=max_snapshot_mb)
    return Snapshot(tuple(hash_files(folder.resolve(), listing.files, cache_folder=cache_folder)))


def take_context_snapshot(folder: Path, *, cache_folder: Path | None = None) -> Snapshot:
    """Returns the files of a Dockerfile's folder: all that no rule of the user leaves out, also what no job would need.

    :raises SnapshotError: With every path that cannot travel.
    """
    everything = tuple(f"!{pattern}" for pattern in DEFAULT_PATTERNS)
    return take_snapshot(folder, cache_folder=cache_folder, extra_patterns=everything)


def list_tree(folder: Path, *, extra_patterns: tuple[str, ...] = (), heeds_git: bool = True) -> TreeListing:
    """Returns what travels of a folder and what does not, without reading a file.

    :raises SnapshotError: With every path that cannot travel.
    """
    listing = walk_tree(folder, extra_patterns=extra_patterns, heeds_git=heeds_git)
    if listing.problems:
        raise SnapshotError(
            f"The files below {folder} cannot travel as they are:\n  " + "\n  ".join(sorted(listing.problems)) + "\n",
            "Repair or remove these paths, or name them in .amlignore (same syntax as .gitignore; a link needs a "
            "pattern without a slash at its end in .gitignore).",
        )
    return listing


def check_size(files: Iterable[FoundFile], *, max_snapshot_mb: float | None) -> None:
    """Warns if the files are large.

    :raises SnapshotError: If they are larger than allowed.
    """
    files = list(files)
    megabytes = sum(facts.st_size for _, facts in files) / MEGABYTE
    is_too_large = max_snapshot_mb is not None and megabytes > max_snapshot_mb
    if not is_too_large and megabytes <= WARN_ABOVE_MB:
        return
    heaviest = "\n  ".join(f"{size / MEGABYTE:10.1f} MB  {path}" for path, size in heaviest_folders(files))
    if is_too_large:
        raise SnapshotError(
            f"The snapshot has {megabytes:.1f} MB in {len(files)} files; --max_snapshot_mb allows "
            f"{max_snapshot_mb:g} MB. The heaviest folders are\n  {heaviest}\n",
            "Name what the job does not need in .amlignore, pass data as a dataset, or raise --max_snapshot_mb. "
            "--list_snapshot shows everything that travels.",
        )
    logging.getLogger(__name__).warning(
        "The snapshot has %.1f MB in %d files. Name what the job does not need in .amlignore. The heaviest folders "
        "are\n  %s",
        megabytes,
        len(files),
        heaviest,
    )


def heaviest_folders(files: Iterable[FoundFile], count: int = HEAVIEST_FOLDERS) -> list[tuple[str, int]]:
    """Returns the folders with the largest files directly in them, and the size of these files in bytes."""
    sizes: Counter[str] = Counter()
    for path, facts in files:
        sizes[f"{path.rpartition('/')[0]}/" if "/" in path else "./"] += facts.st_size
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:count]


def describe_snapshot(listing: TreeListing) -> str:
    """Returns the text of ``--list_snapshot``: what travels with its size, and what does not with the rule."""
    total = sum(facts.st_size for _, facts in listing.files)
    lines = [f"{_files_travel(len(listing.files))} ({_readable_size(total)}):"]
    lines += [
        f"{facts.st_size:>14,} {'x' if facts.st_mode & 0o100 else ' '} {shown_path(path)}"
        for path, facts in listing.files
    ]
    lines += ["", "Heaviest folders:"] if listing.files else []
    lines += [f"{_readable_size(size):>14}   {shown_path(path)}" for path, size in heaviest_folders(listing.files)]
    lines += ["", "These paths do not travel:"] if listing.ignored else ["", "Nothing is left out."]
    width = min(60, max((len(shown_path(ignored.path)) for ignored in listing.ignored), default=0))
    lines += [f"  {shown_path(ignored.path):<{width}}  {ignored.rule}" for ignored in listing.ignored]
    return "\n".join(lines) + "\n"


def user_cache_folder(environ: Mapping[str, str]) -> Path:
    """Returns the folder for what health_ml remembers between runs, by the rules of the XDG base directories."""
    return user_folder(environ, ENV_XDG_CACHE_HOME, ".cache")


def user_folder(environ: Mapping[str, str], variable: str, default: str) -> Path:
    """Returns the folder of health_ml in one of the base directories of the user.

    :param variable: Environment variable of the base directory; relative values do not count.
    :param default: The base directory below the user's home if the variable does not name one.
    """
    configured = environ.get(variable, "")
    base = Path(configured) if os.path.isabs(configured) else Path(environ.get("HOME") or Path.home()) / default
    return base / CACHE_FOLDER


def hash_cache_folder(environ: Mapping[str, str]) -> Path:
    """Returns the folder in which file hashes are remembered."""
    return user_cache_folder(environ) / SNAPSHOT_CACHE_FOLDER


def snapshot_store_folder(environ: Mapping[str, str]) -> Path:
    """Returns the folder of the snapshot store of this user."""
    return user_cache_folder(environ) / SNAPSHOT_STORE_FOLDER


def is_sha256(text: str) -> bool:
    """True for a hash in hexadecimal digits; anything else must not become a part of a path."""
    return _SHA256.fullmatch(text) is not None


def _check_manifest(files: list[SnapshotFile]) -> None:
    """Refuses a manifest that would read or write outside of the folders that are meant."""
    for file in files:
        parts = file.path.split("/")
        if not file.path or "\0" in file.path or any(part in ("", ".", "..") for part in parts):
            raise SnapshotError(f"The manifest of a snapshot names the path {file.path!r}.", "Submit the job again.")
        if not is_sha256(file.sha256) or file.size < 0 or file.mode not in (PLAIN_MODE, EXECUTABLE_MODE):
            raise SnapshotError(
                f"The manifest of a snapshot has impossible facts about {file.path!r}.", "Submit the job again."
            )
    if len({file.path for file in files}) < len(files):
        raise SnapshotError("The manifest of a snapshot names a path twice.", "Submit the job again.")


def _files_travel(count: int) -> str:
    return "This file travels" if count == 1 else f"These {count} files travel"


def _readable_size(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def manifest_text(snapshot: Snapshot) -> str:
    """Returns the manifest as the text of a JSON file."""
    return json.dumps(snapshot.to_json(), separators=(",", ":"))
