"""Reads the snippets of a Markdown page, and runs them one after the other in one folder.

An HTML comment before a fenced block says what to do with it:

- ``<!-- file: name.py -->`` writes it to a file of the page's folder.
- ``<!-- run -->`` runs Python.
- ``<!-- exit: 2 -->`` is the exit code of the last command of a console block, otherwise 0.
- ``<!-- not run: reason -->`` says why it cannot be run here.
- ``<!-- folder: clone -->``, once per page: the page takes place in a clone of the repository.

A console block needs no comment: its lines that start with ``$`` are commands, the others what they print, where
``...`` stands for anything. A block without a language, or in ``text``, is not a snippet. Every run id that a page
shows stands for the run that was the newest of its model when the id first appeared.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from health_ml.testing import invoke
from tests.helpers.police import REPOSITORY

RUN_ID = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z_(\w+)")
PROGRAMS = ("cat", "cp", "head", "ls", "mkdir", "rm", "tail")
"""Small programs that a page may use besides himl-runner and python."""

_COMMENT = re.compile(r"<!-- (\w[\w ]*?)(?:: (.*?))? -->")
_FENCE = re.compile(r"^(\s*)(`{3,})([\w{}:.-]*)(.*)$")
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Snippet:
    """A fenced block.

    :param language: What stands after the fence.
    :param text: What is in it.
    :param line: Number of its first line in the page.
    :param directive: The word of the comment before it, or an empty string.
    :param value: What follows that word after a colon.
    """

    language: str
    text: str
    line: int
    directive: str = ""
    value: str = ""


def read_snippets(page: str) -> list[Snippet]:
    """Returns the fenced blocks of a page that have a language to run, with the comments before them."""
    snippets: list[Snippet] = []
    directive, value = "", ""
    lines = iter(enumerate(page.splitlines(), start=1))
    for number, line in lines:
        comment = _COMMENT.fullmatch(line.strip())
        fence = _FENCE.match(line)
        if comment:
            directive, value = comment[1], comment[2] or ""
        elif fence:
            indent, ticks, language = len(fence[1]), fence[2], fence[3]
            body = []
            for _, inner in lines:
                if inner.strip() == ticks:
                    break
                body.append(inner[indent:])
            if language not in ("", "text") and not language.startswith("{"):
                snippets.append(Snippet(language, "\n".join(body) + "\n", number, directive, value))
            directive, value = "", ""
        elif line.strip():
            directive, value = "", ""
    return snippets


def is_in_clone(page: str) -> bool:
    """True if the page says that it takes place in a clone of the repository."""
    return "<!-- folder: clone -->" in page


@dataclass
class Page:
    """The folder and the memory of a page whose snippets run."""

    folder: Path
    run_ids: dict[str, str] = field(default_factory=dict)

    def run(self, snippet: Snippet) -> None:
        """Does what a snippet says.

        :raises AssertionError: If it fails, prints something else than the page shows, or does not say what it is.
        """
        where = f"the {snippet.language} block in line {snippet.line}"
        if snippet.directive == "not run":
            assert snippet.value, f"{where} does not say why it is not run"
        elif snippet.directive == "file":
            target = self.folder / snippet.value
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._real(snippet.text))
        elif snippet.language == "console":
            self._run_console(snippet, where)
        elif snippet.language == "python" and snippet.directive == "run":
            self._check_output(self._run_program([sys.executable, "-c", self._real(snippet.text)], 0), "", where)
        else:
            raise AssertionError(f"{where} has no comment that says what to do with it")

    def _run_console(self, snippet: Snippet, where: str) -> None:
        commands = _split_console(snippet.text)
        assert commands, f"{where} has no line that starts with '$ '"
        for index, (command, expected) in enumerate(commands):
            is_last = index == len(commands) - 1
            exit_code = int(snippet.value) if is_last and snippet.directive == "exit" else 0
            output = self._run_command(shlex.split(self._real(command)), exit_code)
            self._check_output(output, expected, f"{command!r} in {where}")

    def _run_command(self, words: list[str], exit_code: int) -> str:
        variables = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, variables_value = words.pop(0).partition("=")
            variables[name] = variables_value
        if words[0] == "himl-runner":
            result = invoke(words[1:], folder=self.folder, environment=variables)
            output = result.stdout + result.stderr
            assert result.exit_code == exit_code, f"exit code {result.exit_code}, not {exit_code}:\n{output}"
            return output
        if words[0] == "python":
            return self._run_program([sys.executable, *words[1:]], exit_code, variables)
        assert words[0] in PROGRAMS, f"a page cannot run {words[0]}"
        if words[0] == "cp":
            shutil.copy(self.folder / words[1], self.folder / words[2])
            return ""
        return self._run_program(words, exit_code, variables)

    def _run_program(self, words: list[str], exit_code: int, variables: dict[str, str] | None = None) -> str:
        finished = subprocess.run(
            words, cwd=self.folder, env={**os.environ, **(variables or {})}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        output = finished.stdout + finished.stderr
        assert finished.returncode == exit_code, f"exit code {finished.returncode}, not {exit_code}:\n{output}"
        return output

    def _check_output(self, output: str, expected: str, where: str) -> None:
        """Checks that what the page shows was printed, in that order; what it leaves out with ``...`` may be there."""
        if not expected.strip():
            return
        pattern = self._real(expected)
        if not doctest.OutputChecker().check_output(pattern, output, _OPTIONS):
            raise AssertionError(f"{where} printed\n{output}\nand the page shows\n{pattern}")

    def _real(self, text: str) -> str:
        """Returns the text with the ids of this page's runs in place of those that the page shows."""
        for match in RUN_ID.finditer(text):
            shown = match[0]
            if shown not in self.run_ids:
                runs = sorted(self.folder.glob(f"**/*Z_{match[1]}"), key=lambda path: path.stat().st_mtime)
                if not runs:
                    continue
                self.run_ids[shown] = runs[-1].name
        return RUN_ID.sub(lambda match: self.run_ids.get(match[0], match[0]), text)


def _split_console(text: str) -> list[tuple[str, str]]:
    """Returns each command of a console block with what it prints. A line that ends in a backslash goes on."""
    commands: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], ""))
        elif commands:
            command, output = commands[-1]
            commands[-1] = (command, output + line + "\n")
    return commands


def make_page(folder: Path, text: str) -> Page:
    """Returns a page with its own folder, with what a clone holds if it takes place in one."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_in_clone(text):
        shutil.copytree(REPOSITORY / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    return Page(folder)
