"""The command line of a job: what the user gave, without the flags that only say where and how often to run it.

Values from config files become flags, because the files need not exist where the job runs and may have changed when
it starts. Paths become absolute, except for those of files that travel with the job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import param

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.cli import arguments
from health_ml.cli.config_file import TRAINER_PREFIX
from health_ml.cli.describe import NONE_TEXT
from health_ml.cli.given import Given
from health_ml.cli.precedence import is_same
from health_ml.cli.trainer_arguments import scalar
from health_ml.deep_learning_config import parameters_of
from health_ml.errors import PlanError
from health_ml.experiment_config import JOB_FLAGS, FanOutParams, SnapshotParams

NOT_IN_JOB = frozenset(
    {
        *JOB_FLAGS,
        "cluster",
        "different_seeds",
        "hyperdrive",
        *parameters_of(SnapshotParams),
        *parameters_of(FanOutParams),
    }
)
"""Flags that were dealt with when a job starts."""

Travels = Callable[[Path], bool]


def nothing_travels(path: Path) -> bool:
    """Returns False: for runs that read the user's own files."""
    return False


def job_arguments(
    typed: Mapping[str, Any],
    givens: Mapping[str, Given],
    parameters: Mapping[str, param.Parameter[Any]],
    *,
    start_directory: Path,
    travels: Travels = nothing_travels,
) -> tuple[str, ...]:
    """Returns one ``--flag=value`` for each value that the user gave, the model first.

    :param typed: The values that the user typed, by name.
    :param givens: The same values as they were given.
    :param parameters: The declarations of all flags by name.
    :param start_directory: Where relative paths start.
    :param travels: Whether a file or folder below the start directory travels with the job.
    :raises PlanError: If a value cannot be written as a flag.
    """
    names = sorted((name for name in typed if name not in NOT_IN_JOB), key=lambda name: name != "model")
    rendered = []
    for name in names:
        if name.startswith(TRAINER_PREFIX):
            text = _trainer_text(typed[name])
        else:
            text = _text(name, typed[name], givens[name], parameters[name])
            text = _with_paths(typed[name], parameters[name], start_directory, travels) or text
        rendered.append(f"--{name}={text}")
    return tuple(rendered)


def _text(name: str, value: Any, given: Given, parameter: param.Parameter[Any]) -> str:
    """Returns what stands for the value after a flag: what the user wrote, if that is a text."""
    text = given.text_for(parameter)
    # In a file "None" in quotes is a text; no flag stands for that.
    is_another = (
        text is not None and isinstance(parameter, param.String) and arguments.parse_text(parameter, text) != value
    )
    if text is not None and not is_another and not arguments.is_left_empty(parameter, text):
        return text
    for candidate in _candidates(value):
        if arguments.is_left_empty(parameter, candidate):
            continue
        try:
            if is_same(arguments.parse_text(parameter, candidate), value):
                return candidate
        except ValueError:
            continue
    raise PlanError(
        f"{given.shown}: the value {value!r} cannot be written as a flag, and jobs and trials get all values as flags.",
        f"Make it the default of {name} in the container, or in a model variant.",
    )


def _candidates(value: Any) -> Sequence[str]:
    if isinstance(value, Mapping):
        return [json.dumps(value)]
    items = [str(getattr(item, "value", item)) for item in value] if isinstance(value, (list, tuple, set)) else []
    quoted = [f'"{item}"' if "," in item or not item else item for item in items]
    return [",".join(items), ",".join(quoted), json.dumps(items)]


def _trainer_text(value: Any) -> str:
    if value is None:
        return NONE_TEXT
    if isinstance(value, str) and scalar(value) == value:
        return value
    return json.dumps(value)


def _with_paths(value: Any, parameter: param.Parameter[Any], start_directory: Path, travels: Travels) -> str:
    """Returns the text of a value that holds paths of this machine, or an empty text."""
    if isinstance(parameter, param.Path) and isinstance(value, str):
        return _path_text(Path(value), start_directory, travels)
    if isinstance(value, CheckpointParser):
        path = value.local_path(start_directory)
        return str(path) if path is not None and path.is_file() else ""
    if isinstance(value, Path):
        return _path_text(value, start_directory, travels)
    if isinstance(value, list) and value and all(isinstance(item, Path) for item in value):
        texts = [_path_text(item, start_directory, travels) for item in value]
        return ",".join(f'"{text}"' if "," in text else text for text in texts)
    return ""


def _path_text(path: Path, start_directory: Path, travels: Travels) -> str:
    if path.is_relative_to(start_directory):
        relative = path.relative_to(start_directory)
        if travels(relative):
            return relative.as_posix()
    return str(path)
