"""The errors that a user can cause, each with a way out.

Functions raise a :class:`HimlError`; only :func:`health_ml.runner.main` prints one, as one paragraph that says what
was given, what is allowed and what to do next, and turns it into the exit code. Set ``HIML_FULL_ERROR=1`` to see the
traceback as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

EXIT_FAILED = 1
"""Exit code of a run that started and then failed."""

EXIT_SIGNAL_BASE = 128
"""By convention of the shell, a process that a signal ends has the exit code 128 plus the number of the signal."""

EXIT_USAGE = 2
"""Exit code of a command that was refused before anything started."""


class HimlError(Exception):
    """An error with a message for the user, a hint on what to do next, and the exit code of the process.

    :param message: What was given and why it cannot be used, naming the value.
    :param hint: The choices and the way out.
    :param exit_code: Exit code of the process, by default that of the class.
    """

    exit_code = EXIT_FAILED
    is_exit_code_decided = False

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[type[HimlError], tuple[str, str, int]]:
        return type(self), (self.message, self.hint, self.exit_code)


@contextmanager
def exiting_with(exit_code: int) -> Iterator[None]:
    """Gives every :class:`HimlError` in the body an exit code: only the caller knows whether something has started.

    Of several callers, the nearest decides.
    """
    try:
        yield
    except HimlError as error:
        if not error.is_exit_code_decided:
            error.exit_code = exit_code
            error.is_exit_code_decided = True
        raise


class TerminatedError(KeyboardInterrupt):
    """SIGTERM has ended a command that only waits, as Ctrl-C does."""


class ArgumentsError(HimlError, ValueError):
    """A flag, a value, or a combination of them that cannot be used."""

    exit_code = EXIT_USAGE


class ModelSearchError(HimlError):
    """The model that ``--model`` names was not found, is ambiguous, or is not a container."""

    exit_code = EXIT_USAGE


class ContainerError(HimlError):
    """The code of the user's container or model failed or returned something that cannot be trained."""


class RankFailedError(HimlError):
    """One of the processes of a distributed training was killed or failed, and the others cannot go on."""


class DatasetError(HimlError):
    """A dataset is missing or cannot be read."""


class CheckpointError(HimlError):
    """A checkpoint is missing, damaged, or does not fit what was asked for."""


class OutputError(HimlError):
    """A file or folder cannot be written."""


class RegressionTestError(HimlError, ValueError):
    """The results of a run differ from the expected ones."""


class RunNotFoundError(HimlError):
    """No run has the given id."""

    exit_code = EXIT_USAGE


class PlanError(HimlError):
    """The options do not describe a job that could be run."""

    exit_code = EXIT_USAGE


class SnapshotError(HimlError):
    """The files below the current folder cannot travel as they are."""

    exit_code = EXIT_USAGE


class BackendError(HimlError):
    """A back end refused a job or lost it."""


class WorkspaceError(HimlError):
    """The AzureML workspace is not known, cannot be reached, or refuses what was asked of it."""


class AuthenticationError(WorkspaceError):
    """Azure does not know who asks, or does not let them."""


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to ``count`` of the known names that look most like the given one, the nearest first.

    Case is ignored when comparing, because that is the most frequent slip.
    """
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    matches = difflib.get_close_matches(name.casefold(), list(by_folded), n=count, cutoff=0.6)
    return [by_folded[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``"Did you mean 'a' or 'b'?"`` for the nearest known names, or an empty string if none is near."""
    quoted = [f"'{match}'" for match in nearest_names(name, known)]
    return f"Did you mean {join_choices(quoted)}?" if quoted else ""


def join_choices(choices: Sequence[str], word: str = "or") -> str:
    """Returns the choices as an English enumeration: ``a``, ``a or b``, ``a, b or c``."""
    if len(choices) < 2:
        return "".join(choices)
    return f"{', '.join(choices[:-1])} {word} {choices[-1]}"
