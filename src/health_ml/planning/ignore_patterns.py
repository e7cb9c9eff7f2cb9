"""Patterns of ignore files, matched as git matches them.

The matcher is our own and not ``pathspec``: it is several times faster on the paths that match nothing, which are
nearly all of them, it names the line that decided, and it agrees with ``git check-ignore`` on the corners that the
property tests in ``tests/unit/planning/test_ignore.py`` try. Source of the rules: gitignore(5).

Git compares bytes, so that ``?`` matches half of an ``é``. Patterns and names are therefore compared in a view that
has one character for each byte; :func:`bytes_view` makes it, and costs nothing for an ASCII name.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

_GLOB_SPECIAL = frozenset("*?[\\")
_SHORT_SET = re.compile(r"\[([^][!^\\-]{1,4})\]")
"""A set of a few characters, without a range and anything else that needs care."""
_ALL_BYTES = frozenset(map(chr, range(256)))
_PRINTABLE = frozenset(map(chr, range(33, 127)))
_POSIX_CLASSES = {
    "alnum": frozenset(string.ascii_letters + string.digits),
    "alpha": frozenset(string.ascii_letters),
    "blank": frozenset(" \t"),
    "cntrl": frozenset(map(chr, range(32))) | {"\x7f"},
    "digit": frozenset(string.digits),
    "graph": _PRINTABLE,
    "lower": frozenset(string.ascii_lowercase),
    "print": _PRINTABLE | {" "},
    "punct": frozenset(string.punctuation),
    "space": frozenset(" \t\n\r"),
    "upper": frozenset(string.ascii_uppercase),
    "xdigit": frozenset(string.hexdigits),
}


class _NeverMatchesError(Exception):
    """The pattern is malformed: git lets it match nothing."""


def bytes_view(text: str) -> str:
    """Returns the text with one character for each of its bytes."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


@dataclass(frozen=True)
class IgnoreRule:
    """The line of an ignore file that decided over a path.

    :param source: The ignore file, relative to the snapshot's folder, or "default".
    :param line: Number of the line, starting at 1; 0 for a default rule.
    :param pattern: The pattern as it was written.
    """

    source: str
    line: int
    pattern: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.pattern}" if self.line else f"{self.source}: {self.pattern}"


class PlainForm(NamedTuple):
    """Names without wildcards.

    :param part: The part of a name that is given: "start", "end", or the "whole" name.
    :param texts: What this part may be.
    """

    part: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Pattern:
    """One pattern, ready to be compared.

    :param rule: Where it was written.
    :param is_negated: True if it started with an exclamation mark.
    :param is_folder_only: True if it ended with a slash.
    :param is_path: True if it holds a slash, so that it is compared with the path and not with the name.
    :param is_catch_all: True if its last part is nothing but wildcards.
    :param text: The pattern without its markers, in the bytes view.
    """

    rule: IgnoreRule
    is_negated: bool
    is_folder_only: bool
    is_path: bool
    is_catch_all: bool
    text: str

    @classmethod
    def parse(cls, line: str, *, source: str, number: int) -> Pattern | None:
        """Returns the pattern of a line in the bytes view, or None for an empty line or a comment."""
        text = _without_trailing_spaces(line)
        if not text or text.startswith("#"):
            return None
        written = text.encode("latin-1").decode("utf-8", "replace")
        is_negated = text.startswith("!")
        text = text[1:] if is_negated else text
        is_folder_only = text.endswith("/")
        text = text[:-1] if is_folder_only else text
        is_path = "/" in text
        return cls(
            rule=IgnoreRule(source, number, written),
            is_negated=is_negated,
            is_folder_only=is_folder_only,
            is_path=is_path,
            is_catch_all=not text.rsplit("/", 1)[-1].strip("*?"),
            text=text[1:] if text.startswith("/") else text,
        )

    @cached_property
    def plain_form(self) -> PlainForm | None:
        """What the pattern stands for if it is compared with names and needs no regular expression, else None."""
        if self.is_path or not self.text:
            return None
        parts = _SHORT_SET.split(self.text)  # text and set in turn
        texts = [
            "".join(choice) for choice in product(*([part] if i % 2 == 0 else part for i, part in enumerate(parts)))
        ]
        starts, ends = self.text.startswith("*"), self.text.endswith("*")
        if len(self.text) > 1 and starts != ends:
            texts = [text[1:] if starts else text[:-1] for text in texts]
        if any(not text or _GLOB_SPECIAL & set(text) for text in texts):
            return None
        return PlainForm("end" if starts else "start" if ends else "whole", tuple(texts))

    def regular_expression(self) -> str | None:
        """Returns the regular expression of the pattern, or None if it can match nothing."""
        if not self.text:
            return None
        try:
            return _translate(self.text)
        except _NeverMatchesError:
            return None


class PatternList:
    """The patterns of one ignore file: the last one that matches decides.

    :param patterns: The patterns in the order of the file.
    :param above: Path from the folder of the ignore file down to the snapshot's folder, ending with a slash, or "".
    :param below: Path from the snapshot's folder down to the folder of the ignore file, ending with a slash, or "".
    """

    def __init__(self, patterns: Iterable[Pattern], *, above: str = "", below: str = "") -> None:
        self._above = bytes_view(above)
        self._strip = len(bytes_view(below))
        compiled = [(pattern, pattern.regular_expression()) for pattern in patterns]
        self._patterns = [(pattern, re.compile(text, re.DOTALL)) for pattern, text in compiled if text is not None]
        self._patterns.reverse()
        texts: dict[str, set[str]] = {"whole": set(), "start": set(), "end": set()}
        for form in (pattern.plain_form for pattern, _ in self._patterns):
            if form is not None:
                texts[form.part].update(form.texts)
        self._names, self._starts, self._ends = texts["whole"], tuple(texts["start"]), tuple(texts["end"])
        others = [(pattern, text.pattern) for pattern, text in self._patterns if pattern.plain_form is None]
        self._name_expression = _any_of(text for pattern, text in others if not pattern.is_path)
        self._path_expression = _any_of(text for pattern, text in others if pattern.is_path)
        self._folder_expression = _folders_of([pattern.text for pattern, _ in self._patterns if pattern.is_path])

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def match(self, name: str, path: str, *, is_folder: bool) -> Pattern | None:
        """Returns the pattern that decides over a path, or None if no pattern matches it.

        :param name: The last part of the path, in the bytes view.
        :param path: The path from the snapshot's folder, in the bytes view.
        :param is_folder: True if patterns that end with a slash apply to it.
        """
        # One combined look first: nearly every path matches nothing, and then this is all that happens.
        if (
            name in self._names
            or name.endswith(self._ends)
            or name.startswith(self._starts)
            or (self._name_expression is not None and self._name_expression.fullmatch(name))
            or (self._path_expression is not None and self._path_expression.fullmatch(self._relative(path)))
        ):
            return self._last_match(name, self._relative(path), is_folder=is_folder)
        return None

    def concerns_nothing(self, names: Collection[str], folder: str) -> bool:
        """Returns True if no pattern can match what lies directly in a folder; False says nothing.

        :param names: What the folder holds, in the bytes view.
        :param folder: Path of the folder from the snapshot's folder, ending with a slash, or "", in the bytes view.
        """
        if self._folder_expression is None or self._folder_expression.fullmatch(self._relative(folder).rstrip("/")):
            return False
        starts, ends = self._starts, self._ends
        if not self._names.isdisjoint(names) or [1 for name in names if name.endswith(ends) or name.startswith(starts)]:
            return False
        return self._name_expression is None or not any(map(self._name_expression.fullmatch, names))

    def _relative(self, path: str) -> str:
        return self._above + path[self._strip :]

    def _last_match(self, name: str, path: str, *, is_folder: bool) -> Pattern | None:
        for pattern, expression in self._patterns:
            if pattern.is_folder_only and not is_folder:
                continue
            if expression.fullmatch(path if pattern.is_path else name):
                return pattern
        return None


def read_patterns(file: Path, *, source: str) -> list[Pattern]:
    """Returns the patterns of an ignore file.

    :raises OSError: If it cannot be read.
    """
    return parse_patterns(file.read_bytes(), source=source)


def parse_patterns(content: bytes, *, source: str) -> list[Pattern]:
    """Returns the patterns in the content of an ignore file."""
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n")
    parsed = (
        Pattern.parse(line.removesuffix("\r"), source=source, number=number) for number, line in enumerate(lines, 1)
    )
    return [pattern for pattern in parsed if pattern is not None]


def _without_trailing_spaces(line: str) -> str:
    """Returns the line without the spaces at its end, except one that a backslash protects."""
    end = len(line)
    while end and line[end - 1] == " ":
        end -= 1
    backslashes = len(line[:end]) - len(line[:end].rstrip("\\"))
    is_protected = backslashes % 2 == 1 and end < len(line)
    return line[: end + 1] if is_protected else line[:end]


def _any_of(expressions: Iterable[str]) -> re.Pattern[str] | None:
    joined = "|".join(f"(?:{expression})" for expression in expressions)
    return re.compile(joined, re.DOTALL) if joined else None


def _folders_of(paths: Sequence[str]) -> re.Pattern[str] | None:
    """Returns the expression of the folders in which a path can be that one of the patterns matches, or None for any.

    Without two stars, no wildcard stands for a slash. Brackets and backslashes may come before one that is none; they
    are too rare to be looked into.
    """
    folders = {path.rpartition("/")[0] for path in paths}
    if any(special in path for path in paths for special in ("**", "[", "\\")):
        return None
    return re.compile("|".join(f"(?:{_translate(folder)})" for folder in sorted(folders)) or "(?!)", re.DOTALL)


def _translate(pattern: str) -> str:
    """Returns the regular expression of a pattern.

    Git compares the plain text at the start of a pattern on its own and hands the rest to its wildcard matcher, for
    which two stars at the start of that rest are as good as two stars after a slash.
    """
    start = next((index for index, char in enumerate(pattern) if char in _GLOB_SPECIAL), len(pattern))
    parts = [re.escape(pattern[:start])]
    rest = pattern[start:]
    position = 0
    while position < len(rest):
        part, position = _translate_one(rest, position)
        parts.append(part)
    return "".join(parts)


def _translate_one(rest: str, position: int) -> tuple[str, int]:
    char = rest[position]
    if char == "*":
        return _translate_stars(rest, position)
    if char == "?":
        return "[^/]", position + 1
    if char == "[":
        return _translate_brackets(rest, position + 1)
    if char == "\\":
        if position + 1 == len(rest):
            raise _NeverMatchesError
        return re.escape(rest[position + 1]), position + 2
    return re.escape(char), position + 1


def _translate_stars(rest: str, position: int) -> tuple[str, int]:
    end = position
    while end < len(rest) and rest[end] == "*":
        end += 1
    is_whole_part = position == 0 or rest[position - 1] == "/"
    if end - position < 2 or not is_whole_part:
        return "[^/]*", end
    if rest[end : end + 1] == "/":
        return "(?:.*/)?", end + 1
    if end == len(rest) or rest[end : end + 2] == "\\/":
        return ".*", end
    return "[^/]*", end


def _translate_brackets(rest: str, position: int) -> tuple[str, int]:
    """Returns the expression for a set in brackets, and the position behind it; ``position`` is behind the bracket."""
    is_negated = rest[position : position + 1] in ("!", "^")
    position += is_negated
    chars: set[str] = set()
    previous = ""
    is_first = True
    while is_first or rest[position : position + 1] != "]":
        is_first = False
        found, previous, position = _bracket_item(rest, position, previous)
        chars |= found
    allowed = (_ALL_BYTES - chars if is_negated else chars) - {"/"}
    if not allowed:
        raise _NeverMatchesError
    return "[" + "".join(f"\\x{ord(char):02x}" for char in sorted(allowed)) + "]", position + 1


def _bracket_item(rest: str, position: int, previous: str) -> tuple[set[str] | frozenset[str], str, int]:
    """Returns the characters that the next item of a set stands for, the start of a possible range, and what follows.

    :param previous: The item before if a minus sign may make it the start of a range, else "".
    """
    char = rest[position : position + 1]
    following = rest[position + 1 : position + 2]
    if not char:
        raise _NeverMatchesError
    if char == "\\":
        if not following:
            raise _NeverMatchesError
        return {following}, following, position + 2
    if char == "-" and previous and following and following != "]":
        last, position = (following, position + 2) if following != "\\" else (rest[position + 2 :][:1], position + 3)
        if not last:
            raise _NeverMatchesError
        return {chr(code) for code in range(ord(previous), ord(last) + 1)}, "", position
    if char == "[" and following == ":":
        end = rest.find("]", position + 2)
        if end < 0:
            raise _NeverMatchesError
        name = rest[position + 2 : end - 1]
        if end - position >= 3 and rest[end - 1] == ":":
            if name not in _POSIX_CLASSES:
                raise _NeverMatchesError
            return _POSIX_CLASSES[name], "", end + 1
    return {char}, char, position + 1
