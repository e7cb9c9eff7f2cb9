"""Reads the snippets of a Markdown page, and runs them one after the other in one folder.

An HTML comment before a fenced block says what to do with it:

- ``<!-- file: name.py -->`` writes it to a file of the page's folder.
- ``<!-- run -->`` runs Python.
- ``<!-- exit: 2 -->`` is the exit code of the last command of a console block, otherwise 0.
- ``<!-- not run: reason -->`` says why it cannot be run here.
- ``<!-- folder: clone -->``, once per page: the page takes place in a clone of the repository.
- ``<!-- with MLflow -->``, once per page: its runs are mirrored to MLflow, which takes seconds for each.

A console block needs no comment: its lines that start with ``$`` are commands, the others what they print, where
``...`` stands for anything. A block without a language, or in ``text``, is not a snippet. Every run id that a page
shows stands for the run that was the newest of its model when the id first appeared.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from health_ml.settings import ENV_MLFLOW_TRACKING_URI
from health_ml.testing import invoke
from tests.helpers.police import REPOSITORY

RUN_ID = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z_(\w+)")
PROGRAMS = ("cat", "cp", "head", "ls", "mkdir", "rm", "tail")
"""Small programs that a page may use besides himl-runner and python."""

_COMMENT = re.compile(r"<!-- (\w[\w ]*?)(?:: (.*?))? -->")
_ELLIPSIS = re.compile(r"\.\.\.(?!\.)")
_FENCE = re.compile(r"^(\s*)(`{3,})([\w{}:.-]*)(.*)$")

Output = tuple[str, str]
"""What a command printed on standard output and on standard error."""


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
    environment: dict[str, str] = field(default_factory=dict)
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
            self._check_output(self._run_program([sys.executable, "-c", self._real(snippet.text)], 0, {}), "", where)
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

    def _run_command(self, words: list[str], exit_code: int) -> Output:
        environment = dict(self.environment)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "himl-runner":
            result = invoke(words[1:], folder=self.folder, environment=environment)
            return _checked((result.stdout, result.stderr), result.exit_code, exit_code)
        assert words[0] == "python" or words[0] in PROGRAMS, f"a page cannot run {words[0]}"
        program = sys.executable if words[0] == "python" else words[0]
        return self._run_program([program, *words[1:]], exit_code, environment)

    def _run_program(self, words: list[str], exit_code: int, environment: dict[str, str]) -> Output:
        variables = {**os.environ, **environment}
        finished = subprocess.run(
            words, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=120, check=False
        )
        return _checked((finished.stdout, finished.stderr), finished.returncode, exit_code)

    def _check_output(self, output: Output, expected: str, where: str) -> None:
        """Checks that what the page shows was printed, in that order; what it leaves out with ``...`` may be there.

        A page may show standard output, standard error, or one after the other.
        """
        shown = self._real(expected)
        if not shown.strip():
            return
        pattern = shown_as_pattern(shown)
        printed = [output[0], output[1], "".join(output)]
        if not any(pattern.fullmatch(text.rstrip() + "\n") for text in printed):
            raise AssertionError(f"{where} printed\n{printed[2]}\nand the page shows\n{shown}")

    def _real(self, text: str) -> str:
        """Returns the text with the ids of this page's runs in place of those that the page shows."""
        for match in RUN_ID.finditer(text):
            shown = match[0]
            if shown not in self.run_ids:
                if not (runs := self._runs_of(match[1])):
                    continue
                self.run_ids[shown] = runs[-1]
        return RUN_ID.sub(lambda match: self.run_ids.get(match[0], match[0]), text)

    def _runs_of(self, model: str) -> list[str]:
        """Returns the ids of the runs of a model, the newest last. Runs of the same second have a number."""
        pattern = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d{{6}}Z)_{model}(?:_(\d+))?")
        matches = [pattern.fullmatch(path.name) for path in self.folder.glob(f"**/*Z_{model}*")]
        found = [match for match in matches if match is not None]
        return [match[0] for match in sorted(found, key=lambda match: (match[1], int(match[2] or 0)))]


def _checked(printed: Output, exit_code: int, expected: int) -> Output:
    assert exit_code == expected, f"exit code {exit_code}, not {expected}:\n{''.join(printed)}"
    return printed


def shown_as_pattern(shown: str) -> re.Pattern[str]:
    """Returns the pattern of an output: ``...`` alone on a line stands for any lines, and in a line for any text.

    The width of white space does not matter.
    """
    parts = []
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
            continue
        texts = [r"\s+".join(map(re.escape, re.split(r"\s+", text))) for text in _ELLIPSIS.split(line.strip())]
        parts.append(r"[ \t]*" + ".*?".join(texts) + r"[ \t]*\n")
    return re.compile("".join(parts))


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
    """Returns a page with its own folder, with what a clone holds if it takes place in one.

    Runs go to MLflow only on a page that is about it: elsewhere, waiting for that would take most of the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_in_clone(text):
        shutil.copytree(REPOSITORY / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    return Page(folder, environment={} if "<!-- with MLflow -->" in text else {ENV_MLFLOW_TRACKING_URI: "none"})
