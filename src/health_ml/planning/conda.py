"""The Conda environment file of a job: which one, whether it can work far from here, what the runner needs in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from health_ml.errors import PlanError
from health_ml.settings import CONDA_ENVIRONMENT_FILE, RUNNER_DISTRIBUTION

_NAME = re.compile(r"\s*(?:[\w.-]+::)?([A-Za-z0-9][A-Za-z0-9._-]*)")
_PIN = re.compile(r"\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^\]]*\])?\s*==\s*([^\s;,]+)\s*(?:;.*)?")
_CONDA_NAMES = {"pytorch": "torch", "pytorch-gpu": "torch", "pytorch-cpu": "torch"}
"""Conda packages with another name than the distribution that they bring."""
OLDEST_PYTHON = 10
_OLD_PYTHON = re.compile(rf"python\s*={{1,2}}\s*(?:2|3\.[0-{OLDEST_PYTHON - 1}])(?:\.[\d.*]+)?$")
_FILE_OPTIONS = ("-r", "--requirement", "-c", "--constraint", "-e", "--editable")
_PLACE_OPTION = re.compile(r"(?:-f|--find-links|-i|--index-url|--extra-index-url)[ =]*(.*)")


@dataclass(frozen=True)
class CondaEnvironment:
    """A Conda environment that a job can be run in.

    :param text: The environment file, with what the runner needs.
    :param added: The requirements that were added to the user's file.
    :param has_runner: True if it brings the very version of the runner that submits the job.
    """

    text: str
    added: tuple[str, ...] = ()
    has_runner: bool = False


def find_environment_file(start_directory: Path) -> Path | None:
    """Returns the nearest ``environment.yml`` at or above a folder, or None."""
    places = (folder / CONDA_ENVIRONMENT_FILE for folder in (start_directory, *start_directory.parents))
    return next((place for place in places if place.is_file()), None)


def read_environment_file(path: Path) -> str:
    """Returns the text of an environment file after checking that it can work on another machine.

    :raises PlanError: If it cannot, with everything that stands in the way.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise PlanError(f"The Conda environment file {path} cannot be read: {reason}.", "Check --conda_env.") from error
    problems = [problem for entry in _pip_entries(_parsed(text, path)) if (problem := _pip_problem(entry))]
    too_old = [match[0] for entry in _conda_entries(_parsed(text, path)) if (match := _OLD_PYTHON.match(entry))]
    if too_old:
        raise PlanError(
            f"{path} asks for {too_old[0]}, and himl-runner needs Python 3.{OLDEST_PYTHON} or newer.",
            f"Write python=3.{OLDEST_PYTHON} or newer there.",
        )
    if problems:
        raise PlanError(
            f"The pip section of {path} cannot work in AzureML, where there is nothing but this file: "
            f"{'; '.join(problems)}.",
            "List the requirements themselves; code that is not on an index travels with the job if it is below the "
            "folder in which you type the command.",
        )
    return text


def complete_environment(text: str, *, requirements: Sequence[str], version: str) -> CondaEnvironment:
    """Returns an environment in which this version of the runner works.

    :param text: The user's file.
    :param requirements: What the runner needs. Added where the file does not name the distribution at all.
    :param version: Version of the runner.
    """
    content = _parsed(text, None)
    pip = _pip_entries(content)
    named = {_normalised(entry) for entry in [*_conda_entries(content), *pip]}
    pins = {match[1] for entry in pip if _normalised(entry) == RUNNER_DISTRIBUTION and (match := _PIN.fullmatch(entry))}
    if pins == {version}:
        return CondaEnvironment(text, has_runner=True)
    missing = tuple(entry for entry in requirements if _normalised(entry) not in named)
    if not missing or RUNNER_DISTRIBUTION in named:
        return CondaEnvironment(text)
    return CondaEnvironment(_with_requirements(content, missing), added=missing)


def _with_requirements(content: dict[str, Any], missing: Sequence[str]) -> str:
    import yaml

    dependencies = list(content.get("dependencies") or [])
    sections = [entry for entry in dependencies if isinstance(entry, dict)]
    rest = [entry for entry in dependencies if not isinstance(entry, dict)]
    if "pip" not in {_normalised(entry) for entry in rest}:
        rest.append("pip")
    pip = [*(item for section in sections for item in section.get("pip") or []), *missing]
    text: str = yaml.safe_dump({**content, "dependencies": [*rest, {"pip": pip}]}, sort_keys=False, allow_unicode=True)
    return text


def _parsed(text: str, path: Path | None) -> dict[str, Any]:
    import yaml  # only jobs need it

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PlanError(f"The Conda environment file {path} is no YAML: {error}\n", "Repair it.") from error
    if not isinstance(content, dict) or not isinstance(content.get("dependencies"), list):
        raise PlanError(
            f"The Conda environment file {path} has no list of dependencies.",
            "It needs at least 'dependencies:' with the version of Python.",
        )
    return content


def _conda_entries(content: dict[str, Any]) -> Iterator[str]:
    return (entry for entry in content["dependencies"] if isinstance(entry, str))


def _pip_entries(content: dict[str, Any]) -> list[str]:
    sections = [entry for entry in content["dependencies"] if isinstance(entry, dict)]
    return [str(item).strip() for section in sections for item in section.get("pip") or []]


def _pip_problem(entry: str) -> str:
    """Returns why an entry of the pip section needs a file of this machine, or an empty text."""
    if entry.startswith(_FILE_OPTIONS) and not re.match(r"(-e|--editable)[ =]+(git|hg|svn|bzr)\+", entry):
        return f"{entry!r} needs a file of this machine"
    place = _PLACE_OPTION.fullmatch(entry)
    if place and not re.match(r"https?://", place[1]):
        return f"{entry!r} is a path of this machine"
    address = entry.partition("@")[2].strip() if re.match(r"[\w.\[\],-]+\s*@", entry) else entry
    if address.startswith((".", "/", "~", "file:")) or re.match(r"[A-Za-z]:[\\/]", address):
        return f"{entry!r} is a path of this machine"
    if address.endswith((".whl", ".tar.gz", ".zip")) and not re.match(r"[a-z+]+://", address):
        return f"{entry!r} is a file of this machine"
    return ""


def _normalised(entry: str) -> str:
    match = _NAME.match(entry)
    name = re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""
    return _CONDA_NAMES.get(name, name)
