"""Which files below a folder do not travel, and which line of which ignore file says so.

Three layers, the strongest first:

1. ``.amlignore``, in any folder, with git's syntax. It adds to the others; with ``!pattern`` it takes a path back that
   they ignore.
2. Git's rules: ``.gitignore`` in any folder from the top of the repository down, then ``.git/info/exclude``. A file
   that git tracks although a pattern ignores it travels, as in a clone. The user's global ignore file is left out:
   what travels must not depend on whose machine it is.
3. The defaults of :data:`DEFAULT_PATTERNS`, and folders that are recognised by what they hold: virtual environments,
   Conda environments, run folders. Only ``.amlignore`` takes these back, and only with a pattern that means it: one
   that ends in nothing but wildcards, like ``!*/``, does not.

Within a layer the deeper file wins, and within a file the later line. Nothing below an ignored folder travels.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Collection, Container
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from health_ml.errors import SnapshotError
from health_ml.planning.ignore_patterns import IgnoreRule, Pattern, PatternList, bytes_view, read_patterns
from health_ml.settings import (
    AMLIGNORE_FILE,
    GIT_FOLDER,
    GITIGNORE_FILE,
    LOGS_FOLDER,
    MLFLOW_DATABASE,
    OUTPUTS_FOLDER,
    RECORD_FOLDER,
    RECORD_STATUS_FILE,
)

DEFAULT_SOURCE = "default"
GIT_TIMEOUT_SECONDS = 60

DEFAULT_PATTERNS: tuple[str, ...] = (
    # version control: the history is not needed to run, and any git command would change the content hash
    GIT_FOLDER,
    ".hg/",
    ".svn/",
    # what Python and its tools can make again
    "__pycache__/",
    "*.pyc",
    "*.pyo",
    "site-packages/",
    ".eggs/",
    ".hypothesis/",
    ".ipynb_checkpoints/",
    ".mypy_cache/",
    ".nox/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".tox/",
    "node_modules/",
    ".DS_Store",
    # what runs leave behind; the folders only at the top, because a package may have a module of that name
    f"/{OUTPUTS_FOLDER}/",
    f"/{LOGS_FOLDER}/",
    "/mlruns/",
    "/lightning_logs/",
    f"/{MLFLOW_DATABASE}*",
    "*.ckpt",
)
"""What never travels unless ``.amlignore`` takes it back."""


class FolderRules(NamedTuple):
    """The pattern lists that apply in one folder, the deepest first."""

    amlignore: tuple[PatternList, ...]
    git: tuple[PatternList, ...]


class Verdict(NamedTuple):
    """What the rules say about one path.

    :param rule: The rule that ignores it, or None if it travels.
    :param is_from_git: True if the rule is one of git's, which do not hold for tracked files.
    :param is_taken_back: True if ``.amlignore`` asks for the path by a pattern that means it.
    """

    rule: IgnoreRule | None
    is_from_git: bool = False
    is_taken_back: bool = False


_TRAVELS = Verdict(None)
_TAKEN_BACK = Verdict(None, is_taken_back=True)


class IgnoreRules:
    """The rules for everything below one folder.

    :param folder: The folder that is to travel, absolute.
    :param extra_patterns: Further patterns with the strength of a default, relative to the folder.
    :param heeds_git: False leaves git's rules out, except those of the folder's own files.
    """

    def __init__(self, folder: Path, *, extra_patterns: tuple[str, ...] = (), heeds_git: bool = True) -> None:
        self.folder = folder
        self.repository = find_repository(folder) if heeds_git else None
        self._defaults = _default_list((*DEFAULT_PATTERNS, *extra_patterns))
        self._above = FolderRules((), self._lists_above())

    def enter(self, rules: FolderRules | None, path: str, *, names: Container[str]) -> FolderRules:
        """Returns the rules in a folder, given those of the folder above it.

        :param rules: The rules of the folder above, None for the snapshot's folder itself.
        :param path: Path of the folder from the snapshot's folder, ending with a slash, or "".
        :param names: What the folder holds.
        :raises SnapshotError: If an ignore file cannot be read.
        """
        rules = rules or self._above
        git, amlignore = rules.git, rules.amlignore
        # Git does not follow a link of this name, so that a repository cannot read files outside of it.
        if GITIGNORE_FILE in names and not (self.folder / path / GITIGNORE_FILE).is_symlink():
            git = (*self._read(path + GITIGNORE_FILE, below=path), *git)
        if AMLIGNORE_FILE in names:
            amlignore = (*self._read(path + AMLIGNORE_FILE, below=path), *amlignore)
        return FolderRules(amlignore, git)

    def judge(self, rules: FolderRules, name: str, path: str, *, is_folder: bool, is_link: bool = False) -> Verdict:
        """Returns whether a path travels, and which rule says that it does not.

        :param rules: The rules of the folder that holds it.
        :param name: The last part of the path, in the bytes view.
        :param path: The path from the snapshot's folder, in the bytes view.
        :param is_folder: True for a folder and for a link to one.
        :param is_link: True for a link. To git it is a file, whatever it points to.
        """
        taken_back: Pattern | None = None
        for patterns in rules.amlignore:
            pattern = patterns.match(name, path, is_folder=is_folder)
            if pattern is not None:
                if not pattern.is_negated:
                    return Verdict(pattern.rule)
                taken_back = pattern
                break
        if taken_back is None:
            for patterns in rules.git:
                pattern = patterns.match(name, path, is_folder=is_folder and not is_link)
                if pattern is not None:
                    if not pattern.is_negated:
                        return Verdict(pattern.rule, is_from_git=True)
                    break
        elif not taken_back.is_catch_all:
            return _TAKEN_BACK
        pattern = self._defaults.match(name, path, is_folder=is_folder)
        return _TRAVELS if pattern is None or pattern.is_negated else Verdict(pattern.rule)

    def concern_nothing(self, rules: FolderRules, names: Collection[str], path: str) -> bool:
        """Returns True if everything directly in a folder travels, whatever it is; False says nothing.

        :param rules: The rules of the folder.
        :param names: What it holds.
        :param path: Path of the folder from the snapshot's folder, ending with a slash, or "".
        """
        if not path.isascii() or not "".join(names).isascii():  # the names are not their bytes view
            return False
        return all(
            patterns.concerns_nothing(names, path) for patterns in (*rules.amlignore, *rules.git, self._defaults)
        )

    def marker(self, path: str, names: Container[str]) -> IgnoreRule | None:
        """Returns the rule for a folder that is recognised by what it holds, or None for an ordinary folder.

        :param path: Path of the folder from the snapshot's folder, ending with a slash.
        :param names: What the folder holds.
        """
        if "pyvenv.cfg" in names:
            return IgnoreRule(DEFAULT_SOURCE, 0, "a virtual environment (it holds pyvenv.cfg)")
        if "conda-meta" in names and (self.folder / path / "conda-meta" / "history").exists():
            return IgnoreRule(DEFAULT_SOURCE, 0, "a Conda environment (it holds conda-meta/history)")
        record = Path(RECORD_FOLDER) / RECORD_STATUS_FILE
        if RECORD_FOLDER in names and (self.folder / path / record).exists():
            return IgnoreRule(DEFAULT_SOURCE, 0, f"the folder of a run (it holds {record.as_posix()})")
        return None

    def judge_path(self, path: str) -> IgnoreRule | None:
        """Returns the rule that ignores a path or one of the folders above it, or None if it travels.

        Reads the ignore files on the way; for single paths, not for whole trees.
        """
        rules: FolderRules | None = None
        above = ""
        for part in path.split("/"):
            names = _names_in(self.folder / above)
            if above and (rule := self.marker(above, names)):
                return rule
            rules = self.enter(rules, above, names=names)
            here = self.folder / above / part
            verdict = self.judge(
                rules, bytes_view(part), bytes_view(above + part), is_folder=here.is_dir(), is_link=here.is_symlink()
            )
            if verdict.rule is not None:
                return verdict.rule
            above += part + "/"
        return self.marker(above, _names_in(self.folder / above)) if (self.folder / path).is_dir() else None

    def _read(self, path: str, *, below: str) -> tuple[PatternList, ...]:
        file = self.folder / path
        if not file.is_file():
            return ()
        try:
            patterns = PatternList(read_patterns(file, source=path), below=below)
        except OSError as error:
            raise SnapshotError(
                f"The ignore file {file} cannot be read: {error.strerror}.", "Make it readable, or remove it."
            ) from error
        return (patterns,) if patterns else ()

    def _lists_above(self) -> tuple[PatternList, ...]:
        """Returns git's lists that lie above the folder: those of the folders up to the top, then info/exclude."""
        if self.repository is None:
            return ()
        top, exclude = self.repository
        lists: list[PatternList] = []
        for parent in self.folder.parents:
            if not parent.is_relative_to(top):
                break
            lists.extend(self._read_above(parent / GITIGNORE_FILE, base=parent))
        lists.extend(self._read_above(exclude, base=top))
        return tuple(lists)

    def _read_above(self, file: Path, *, base: Path) -> list[PatternList]:
        above = self.folder.relative_to(base).as_posix()
        try:
            patterns = read_patterns(file, source=_shown(file, self.folder))
        except OSError:  # most folders have none
            return []
        found = PatternList(patterns, above="" if above == "." else f"{above}/")
        return [found] if found else []


class Repository(NamedTuple):
    """A git repository: the folder at its top, and its own list of patterns."""

    top: Path
    exclude_file: Path


@lru_cache(maxsize=8)
def _default_list(texts: tuple[str, ...]) -> PatternList:
    parsed = (Pattern.parse(bytes_view(text), source=DEFAULT_SOURCE, number=0) for text in texts)
    return PatternList(pattern for pattern in parsed if pattern is not None)


def find_repository(folder: Path) -> Repository | None:
    """Returns the git repository that holds a folder, or None."""
    for candidate in (folder, *folder.parents):
        git_folder = candidate / GIT_FOLDER
        if git_folder.is_file():  # a work tree or a submodule
            text = git_folder.read_text(encoding="utf-8", errors="replace").strip()
            git_folder = candidate / text.removeprefix("gitdir:").strip()
        if (git_folder / "HEAD").is_file():
            return Repository(candidate, _common_folder(git_folder) / "info" / "exclude")
    return None


def tracked_despite_patterns(folder: Path) -> frozenset[str]:
    """Returns the paths below a folder that git tracks although an ignore file names them; none without git."""
    if find_repository(folder) is None:
        return frozenset()
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--ignored", "--exclude-standard"]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).debug("git cannot list the tracked files of %s: %s", folder, error)
        return frozenset()
    return frozenset(path.decode("utf-8", "surrogateescape") for path in answer.stdout.split(b"\0") if path)


def _common_folder(git_folder: Path) -> Path:
    """Returns the folder that the work trees of a repository share."""
    try:
        return git_folder / (git_folder / "commondir").read_text(encoding="utf-8").strip()
    except OSError:
        return git_folder


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()


def _shown(file: Path, folder: Path) -> str:
    """Returns a path relative to a folder, with as many ``..`` as it takes."""
    for depth, parent in enumerate((folder, *folder.parents)):
        if file.is_relative_to(parent):
            return "../" * depth + file.relative_to(parent).as_posix()
    return str(file)
