"""The text of ``--help``: every flag in its group, with type, default and meaning, from the declarations."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import param

from health_ml.cli import arguments
from health_ml.cli.command_line import CommandLine, RunnerFlags
from health_ml.cli.describe import bounds_text, is_boolean, metavar
from health_ml.cli.draft import read_experiment
from health_ml.cli.groups import container_groups, title_of
from health_ml.deep_learning_config import CONTAINER_PARAMETER_GROUPS, parameters_of
from health_ml.experiment_config import ExperimentConfig

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer

MAX_WIDTH = 120
MIN_WIDTH = 50
MAX_FLAG_WIDTH = 34

USAGE = "usage: himl-runner --model=NAME [--FLAG=VALUE ...]"
SUMMARY = "Trains, validates and tests the model in a LightningContainer."

NOTES = """\
Dashes and underscores in flags are the same, and there are no abbreviations. Switches can be given as --flag, \
--flag=false or --no-flag. Lists have commas: 1,2. None stands for no value where a flag allows it. Every other \
argument of the Lightning Trainer can be given as --trainer.ARGUMENT=VALUE, like --trainer.gradient_clip_val=0.5.\
"""

WITHOUT_MODEL = "With --model=NAME --help, the parameters of that model are listed too, and its defaults."


@dataclass(frozen=True)
class FlagHelp:
    """One flag in the help."""

    flag: str
    text: str


def help_text(command: CommandLine, *, start_directory: Path, width: int | None = None) -> str:
    """Returns the help: without a model the flags that all models have, with one those of the model.

    :param width: Columns of the terminal. Default: as many as it has.
    :raises HimlError: If a model is named and cannot be loaded.
    """
    columns = width or shutil.get_terminal_size().columns - 1
    columns = max(MIN_WIDTH, min(MAX_WIDTH, columns))
    draft = read_experiment(command, start_directory=start_directory)
    container = None
    if draft.config.model:
        from health_ml.cli.loading import load_container  # imports the model, and with it torch

        draft.raise_problems()
        container = load_container(draft)
    notes = NOTES if container is not None else f"{NOTES} {WITHOUT_MODEL}"
    parts = [USAGE, "", textwrap.fill(SUMMARY, columns), "", textwrap.fill(notes, columns), ""]
    for title, flags in _groups(container):
        parts += [textwrap.fill(title, columns), *_lines(flags, columns), ""]
    return "\n".join(parts).rstrip()


def flag_lines(parameters: Mapping[str, param.Parameter[Any]], columns: int) -> list[str]:
    """Returns the help on parameters that are not those of a model, in two columns."""
    return _lines(_flags(parameters), columns)


def _groups(container: LightningContainer | None) -> Iterator[tuple[str, list[FlagHelp]]]:
    """Yields each group as its title and its flags; the parameters that only this container has come first."""
    groups = list(container_groups(container))
    own, common = groups[: -len(CONTAINER_PARAMETER_GROUPS)], groups[-len(CONTAINER_PARAMETER_GROUPS) :]
    for group in own:
        yield f"{group.title}:", _flags(group.parameters, container)
    for class_ in (RunnerFlags, ExperimentConfig):
        yield f"{title_of(class_)}:", _flags(parameters_of(class_))
    for group in common:
        yield f"{group.title}:", _flags(group.parameters, container)


def _flags(parameters: Mapping[str, param.Parameter[Any]], owner: param.Parameterized | None = None) -> list[FlagHelp]:
    return [
        FlagHelp(_flag(name, parameter), _text(parameter, getattr(owner, name) if owner else parameter.default))
        for name, parameter in parameters.items()
    ]


def _flag(name: str, parameter: param.Parameter[Any]) -> str:
    return f"--{name}" if is_boolean(parameter) else f"--{name}={metavar(parameter)}"


def _text(parameter: param.Parameter[Any], default: Any) -> str:
    doc = " ".join((parameter.doc or "").split())
    facts = []
    if arguments.reader_for(parameter) is None:
        facts.append("set in the code only")
    elif bounds_text(parameter):
        facts.append(bounds_text(parameter))
    if default is not None:
        facts.append(f"default {value_text(default)}")
    return f"{doc} [{', '.join(facts)}]".strip() if facts else doc


def value_text(value: Any) -> str:
    """Returns a value as it would be typed after a flag."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)):
        return ",".join(map(value_text, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value)
    return text if text and not text.isspace() else "empty"


def _lines(flags: list[FlagHelp], columns: int) -> list[str]:
    """Returns the flags in two columns; a flag too long for its column has its text below."""
    indent = min(MAX_FLAG_WIDTH, columns // 3, max((len(flag.flag) for flag in flags), default=0)) + 4
    lines: list[str] = []
    for flag in flags:
        text = textwrap.wrap(flag.text, columns - indent, break_long_words=False, break_on_hyphens=False) or [""]
        head = f"  {flag.flag}"
        if len(head) + 2 > indent:
            lines.append(head)
            head = ""
        lines.append(f"{head:{indent}}{text[0]}".rstrip())
        lines += [" " * indent + rest for rest in text[1:]]
    return lines
