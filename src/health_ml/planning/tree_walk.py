"""Walks a folder once, never enters what is ignored, and lists what travels, what does not and why, and what cannot."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from health_ml.errors import SnapshotError
from health_ml.planning.ignore import DEFAULT_SOURCE, FolderRules, IgnoreRules, Verdict, tracked_despite_patterns
from health_ml.planning.ignore_patterns import IgnoreRule, bytes_view
from health_ml.planning.shell_words import quoted
from health_ml.settings import AMLIGNORE_FILE

FoundFile = tuple[str, os.stat_result]
"""A file that travels: its path from the snapshot's folder, with slashes, and what the file system says about it; for a
link, about what it points to. A plain tuple, because there may be very many."""


class IgnoredPath(NamedTuple):
    """A path that does not travel.

    :param path: Path from the snapshot's folder; that of a folder ends with a slash.
    :param rule: The rule that says so.
    """

    path: str
    rule: IgnoreRule


@dataclass
class TreeListing:
    """What a walk found.

    :param files: Files that travel, in the order of their paths.
    :param ignored: Files and folders that do not travel. What lies in an ignored folder is not listed.
    :param problems: Sentences on what can neither travel nor be left out without asking.
    """

    files: list[FoundFile] = field(default_factory=list)
    ignored: list[IgnoredPath] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Place(NamedTuple):
    """A folder to walk: its path in the tree, its real path, the real paths that links have led away from."""

    path: str
    real: str
    rules: FolderRules | None
    left: tuple[str, ...]
    is_taken_back: bool


def walk_tree(folder: Path, *, extra_patterns: tuple[str, ...] = (), heeds_git: bool = True) -> TreeListing:
    """Returns what travels of a folder and what does not.

    :param folder: The folder.
    :param extra_patterns: Further default patterns, relative to the folder.
    :param heeds_git: False for a folder that is none of the user's, whose repository, if there is one, does not count.
    :raises SnapshotError: If the folder or one of its ignore files cannot be read.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise SnapshotError(f"{folder} is not a folder.", "Start himl-runner in the folder that holds your code.")
    return _Walk(root, IgnoreRules(root, extra_patterns=extra_patterns, heeds_git=heeds_git)).run()


class _Walk:
    def __init__(self, root: Path, rules: IgnoreRules) -> None:
        self._root = str(root)
        self._base = os.path.join(self._root, "")
        self._rules = rules
        self._listing = TreeListing()
        self._todo = [_Place("", self._root, None, (), False)]
        self._ignored_by_git: dict[str, IgnoreRule] = {}

    def run(self) -> TreeListing:
        self._visit_all()
        self._add_tracked_files()
        self._visit_all()
        # The order of code points, which is that of the bytes in UTF-8: it does not depend on how a language sorts.
        self._listing.files.sort(key=itemgetter(0))
        self._listing.ignored.sort()
        return self._listing

    @cached_property
    def _tracked(self) -> frozenset[str]:
        return tracked_despite_patterns(Path(self._root))

    def _visit_all(self) -> None:
        while self._todo:
            self._visit(self._todo.pop())

    def _visit(self, place: _Place) -> None:
        try:
            with os.scandir(self._base + place.path) as scan:
                entries = {entry.name: entry for entry in scan}
        except OSError as error:
            self._problem(place.path, f"cannot be listed: {error.strerror}")
            return
        marker = self._rules.marker(place.path, entries) if place.path and not place.is_taken_back else None
        if marker is not None:
            self._listing.ignored.append(IgnoredPath(place.path, marker))
            return
        rules = self._rules.enter(place.rules, place.path, names=entries)
        place = place._replace(rules=rules)
        if self._rules.concern_nothing(rules, entries, place.path):
            entries = self._add_files(place.path, entries)
        for name, entry in entries.items():
            self._judge(place, rules, name, entry)

    def _add_files(self, folder: str, entries: dict[str, os.DirEntry[str]]) -> dict[str, os.DirEntry[str]]:
        """Adds the files of a folder of which every file travels, and returns what else it holds.

        Nearly all files of a large tree are found here, so this does no more than it has to.
        """
        others = {}
        files = self._listing.files
        for name, entry in entries.items():
            try:
                if entry.is_file(follow_symlinks=False):
                    files.append((folder + name, entry.stat(follow_symlinks=False)))
                    continue
            except OSError:
                pass  # it is gone, or cannot be read: that is for those who judge
            others[name] = entry
        return others

    def _judge(self, place: _Place, rules: FolderRules, name: str, entry: os.DirEntry[str]) -> None:
        path = place.path + name
        is_link = entry.is_symlink()
        is_folder = entry.is_dir(follow_symlinks=False) if not is_link else os.path.isdir(entry.path)
        verdict = self._rules.judge(rules, bytes_view(name), bytes_view(path), is_folder=is_folder, is_link=is_link)
        if verdict.rule is not None:
            self._ignore(path, verdict, is_folder=is_folder and not is_link)
        elif is_link:
            self._follow(place, path, verdict)
        elif is_folder:
            self._todo.append(
                _Place(f"{path}/", os.path.join(place.real, name), rules, place.left, verdict.is_taken_back)
            )
        else:
            self._add(path, entry)

    def _ignore(self, path: str, verdict: Verdict, *, is_folder: bool) -> None:
        assert verdict.rule is not None
        path = f"{path}/" if is_folder else path
        self._listing.ignored.append(IgnoredPath(path, verdict.rule))
        if verdict.is_from_git:
            self._ignored_by_git[path] = verdict.rule

    def _add(self, path: str, entry: os.DirEntry[str] | None = None) -> None:
        """Adds a file; what a link points to if there is no entry."""
        try:
            facts = entry.stat(follow_symlinks=False) if entry is not None else os.stat(self._base + path)
        except FileNotFoundError:  # removed a moment ago, for example by an editor that has just saved
            return
        except OSError as error:
            self._problem(path, f"cannot be read: {error.strerror}")
            return
        if not stat.S_ISREG(facts.st_mode):
            rule = IgnoreRule(DEFAULT_SOURCE, 0, "neither a file nor a folder (a pipe, a socket or a device)")
            self._listing.ignored.append(IgnoredPath(path, rule))
        elif not path.isascii() and not _is_utf8(path):
            self._problem(path, "has a name that is not UTF-8")
        else:
            self._listing.files.append((path, facts))

    def _follow(self, place: _Place, path: str, verdict: Verdict) -> None:
        """Adds what a link points to, or says why that cannot be."""
        try:
            target = os.path.realpath(self._base + path, strict=True)
        except FileNotFoundError:
            self._problem(path, f"is a link to {_target_of(self._base + path)}, which does not exist")
            return
        except OSError as error:  # ELOOP: links that point to each other
            self._problem(path, f"is a link that cannot be followed: {error.strerror}")
            return
        if target != self._root and not target.startswith(self._base):
            self._problem(path, f"is a link to {target}, which is outside of {self._root}")
            return
        left = (*place.left, place.real)
        is_folder = os.path.isdir(target)
        if is_folder and any(os.path.join(above, "").startswith(os.path.join(target, "")) for above in left):
            self._problem(path, f"is a link to {target}, which holds the link: a loop")
        elif verdict.is_taken_back or not self._is_target_ignored(path, target[len(self._base) :]):
            if is_folder:
                self._todo.append(_Place(f"{path}/", target, place.rules, left, verdict.is_taken_back))
            else:
                self._add(path)

    def _is_target_ignored(self, path: str, relative: str) -> bool:
        """True, and noted, if a link points to something that does not travel itself."""
        rule = self._rules.judge_path(relative)
        is_from_git = rule is not None and rule.source != DEFAULT_SOURCE and not rule.source.endswith(AMLIGNORE_FILE)
        if is_from_git and relative in self._tracked:
            return False
        if rule is not None:
            why = IgnoreRule(rule.source, rule.line, f"{rule.pattern} (the link points to {relative})")
            self._listing.ignored.append(IgnoredPath(path, why))
        return rule is not None

    def _add_tracked_files(self) -> None:
        """Adds the files that git tracks although a pattern of git's ignores them or a folder above them."""
        if not self._ignored_by_git:
            return
        for path in self._tracked:
            ignored = next((above for above in _with_folders_above(path) if above in self._ignored_by_git), None)
            if ignored is None or not os.path.lexists(self._base + path):
                continue
            if self._is_ignored_besides_git(path):
                continue
            if ignored == path:
                self._listing.ignored.remove(IgnoredPath(path, self._ignored_by_git[path]))
            if os.path.islink(self._base + path):
                self._follow(_Place("", self._root, None, (), False), path, Verdict(None, is_taken_back=True))
            else:
                self._add(path)

    def _is_ignored_besides_git(self, path: str) -> bool:
        """True if ``.amlignore`` at the top or a default keeps a tracked file from travelling."""
        rules = self._rules.enter(None, "", names=frozenset(os.listdir(self._root)))._replace(git=())
        for above in reversed(list(_with_folders_above(path))):
            name = above.rstrip("/").rsplit("/", 1)[-1]
            shown = bytes_view(above.rstrip("/"))
            if self._rules.judge(rules, bytes_view(name), shown, is_folder=above.endswith("/")).rule is not None:
                return True
        return False

    def _problem(self, path: str, text: str) -> None:
        self._listing.problems.append(f"{shown_path(path)} {text}.")


def shown_path(path: str) -> str:
    """Returns a path as one line that a terminal can show and a shell can read, whatever its name is made of."""
    if not path:
        return "The folder itself"
    return path if path.isprintable() else quoted(path)


def _with_folders_above(path: str) -> Iterator[str]:
    """Yields a path and the folders above it, the nearest first; folders end with a slash."""
    yield path
    while "/" in path:
        path = path.rsplit("/", 1)[0]
        yield f"{path}/"


def _target_of(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # removed a moment ago
        return "a place"


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
