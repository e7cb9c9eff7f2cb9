"""Calls the user's methods, and says which of them failed and where."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from health_ml.errors import ContainerError, HimlError
from health_ml.settings import ENV_FULL_ERROR

_PACKAGE = Path(__file__).resolve().parent.parent
_CONFIGS = _PACKAGE / "configs"


@contextmanager
def user_code(owner: object, method: str, expected: str = "") -> Iterator[None]:
    """Turns an exception in a method of the user's object into one that names the method and the line.

    :param owner: The container or model.
    :param method: Name of the method that the body calls.
    :param expected: What the method should do or return, as a sentence.
    :raises ContainerError: If the body raises anything but a HimlError, or tries to end the process.
    """
    try:
        yield
    except HimlError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError):  # a method that was not overridden says itself what it should do
            expected = ""
        raise ContainerError(
            f"{type(owner).__name__}.{method} failed with {describe_exception(error)}",
            f"{expected} Set {ENV_FULL_ERROR}=1 to see the whole traceback.".strip(),
        ) from error


@contextmanager
def explained_refusal(owner: object) -> Iterator[None]:
    """Turns Lightning's refusal of a model or data module, in which no line of the user is involved, into a sentence.

    :param owner: The container.
    :raises ContainerError: If the body raises such an error.
    """
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except MisconfigurationException as error:
        if _users_line(error):
            raise
        text = " ".join(str(error).split()).rstrip(".")
        raise ContainerError(
            f"Lightning refuses what {type(owner).__name__} made: {text}.",
            f"Set {ENV_FULL_ERROR}=1 to see the whole traceback.",
        ) from error


def describe_exception(error: BaseException) -> str:
    """Returns type, message and the line of the user's code that raised, as a sentence."""
    text = f"{type(error).__name__}: {error}".rstrip(": ").rstrip(".")
    place = _users_line(error)
    return f"{text} ({place})." if place else f"{text}."


def _users_line(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_file(frame.filename)]
    if not frames:
        return ""
    frame = frames[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}: {line}"


def is_users_file(filename: str) -> bool:
    """True for code that belongs neither to this package nor to an installed one nor to Python itself."""
    path = Path(filename)
    if path.is_relative_to(_CONFIGS):
        return True
    if filename.startswith("<") or path.is_relative_to(_PACKAGE):
        return False
    installed = {"site-packages", "dist-packages"}
    return installed.isdisjoint(path.parts) and not path.is_relative_to(sysconfig.get_path("stdlib"))


def premature_end(error: SystemExit, owner: object) -> ContainerError:
    """Returns the error for code of the user that ended the process in the middle of a run.

    :param owner: The container whose code it was.
    """
    return ContainerError(
        f"The code of {type(owner).__name__} ended the process with exit code {error.code} before the run was "
        "complete.",
        "Raise an exception instead of calling sys.exit, or return.",
    )
