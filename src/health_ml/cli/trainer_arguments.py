"""``--trainer.<argument>=<value>``: the arguments of the Lightning Trainer that have no flag of their own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from health_ml.cli.arguments import is_boolean_word
from health_ml.cli.config_file import TRAINER_PREFIX, FileEntry
from health_ml.cli.given import Given, GivenFlag, warn_left_empty
from health_ml.errors import did_you_mean
from health_ml.training.quiet import silence
from health_ml.training.trainer_arguments import FLAGS_OF_ARGUMENTS, FORMER_NAMES

ARGUMENTS_BESIDE_FLAGS = frozenset({"accelerator", "benchmark", "devices", "precision", "strategy"})
"""Trainer arguments that can say more than the flags that decide the same thing."""

ARGUMENTS_WITH_FLAG: Mapping[str, str] = {
    argument: flags[0] for argument, flags in FLAGS_OF_ARGUMENTS.items() if argument not in ARGUMENTS_BESIDE_FLAGS
}
"""Trainer arguments and the name of the flag that sets each of them."""

ARGUMENTS_OF_THE_RUNNER: Mapping[str, str] = {
    "logger": "the runner's own logger writes the record of the run",
    "callbacks": "callbacks are objects; return them from get_callbacks of the container",
    "default_root_dir": "the runner decides where a run writes; use --output_to",
    "enable_checkpointing": "the runner keeps last.ckpt so that a run can be resumed",
    "plugins": "plugins are objects; return them from get_trainer_arguments of the container",
    "barebones": "it turns off the logging and the checkpoints that a run consists of",
    "model_registry": "the runner keeps checkpoints in the folder of the run",
}
"""Trainer arguments that the runner sets itself, and why they cannot be given."""


_FORMS: Mapping[str, str] = {
    "max_time": 'days:hours:minutes:seconds like 00:12:00:00, or a mapping like {"hours": 12}',
}
"""What values look like, where the types of Lightning do not tell."""


def is_trainer_argument(given: Given) -> bool:
    """True if the value is meant for the Lightning Trainer."""
    return given.name.startswith(TRAINER_PREFIX)


def read_trainer_arguments(
    givens: Iterable[Given], *, problems: list[str], strays: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the values for the Trainer by argument, and the source of each by ``trainer.<argument>``.

    Imports Lightning, to check the names against the signature of the Trainer, only if there are any.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for given in givens:
        name = given.name.removeprefix(TRAINER_PREFIX)
        problem = _name_problem(name)
        if problem:
            problems.append(f"{given.shown}: {problem}")
            continue
        if isinstance(given, GivenFlag) and "" in (given.token.text, given.token.following):
            warn_left_empty(given)
            continue
        try:
            values[name] = _value(given, name, strays)
        except ValueError as error:
            problems.append(f"{given.shown}: {error}")
            continue
        sources[given.name] = given.source
    return values, sources


def value_problems(values: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each value that the Trainer refuses, before a run has started.

    A Trainer with all of them tells whether there is anything wrong, and one with each alone which of them it is.
    """
    if not values:
        return []
    together = _refusal(values)
    if not together:
        return []
    alone = {name: _refusal({name: value}) for name, value in values.items()}
    found = [f"--{TRAINER_PREFIX}{name}={values[name]}: {text}" for name, text in alone.items() if text]
    flags = [f"--{TRAINER_PREFIX}{name}={value}" for name, value in values.items()]
    return found or [f"{' and '.join(flags)}: {together}"]


def _refusal(values: Mapping[str, Any]) -> str:
    """Returns why the Trainer refuses arguments, or an empty string if it takes them."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from pytorch_lightning import Trainer

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        # An environment of its own, so that it does not ask a scheduler for the other processes of the run.
        with silence():
            Trainer(**{**quiet, "plugins": [LightningEnvironment()], **values})
    except AttributeError:  # a value of another type, of which Lightning says only what it lacks
        wanted = [f"{name} takes {_FORMS.get(name) or trainer_signature()[name].annotation}" for name in values]
        return f"the Lightning Trainer cannot use it: {', '.join(wanted)}."
    except Exception as error:  # Lightning raises whatever the first use of a wrong value leads to
        text = " ".join(str(error).split()) or type(error).__name__
        return f"the Lightning Trainer refuses it: {text.rstrip('.')}."
    return ""


def trainer_signature() -> Mapping[str, inspect.Parameter]:
    """Returns the arguments of the Lightning Trainer by name."""
    from pytorch_lightning import Trainer  # takes seconds, and only --trainer.* needs it

    return inspect.signature(Trainer).parameters


def _name_problem(name: str) -> str:
    if name in ARGUMENTS_WITH_FLAG:
        return f"this argument of the Trainer has a flag of its own, use --{ARGUMENTS_WITH_FLAG[name]}."
    if name in ARGUMENTS_OF_THE_RUNNER:
        return f"the runner sets this argument of the Trainer itself: {ARGUMENTS_OF_THE_RUNNER[name]}."
    signature = trainer_signature()
    if name in signature:
        return ""
    advice = FORMER_NAMES.get(name) or did_you_mean(name, signature)
    return f"the Lightning Trainer has no argument {name!r}. {advice}".rstrip()


def _value(given: Given, name: str, strays: list[str]) -> Any:
    if isinstance(given, FileEntry):
        return _file_value(given)
    assert isinstance(given, GivenFlag)
    token = given.token
    if token.text is not None:
        return scalar(token.text)
    may_be_bare = "bool" in str(trainer_signature()[name].annotation)
    if token.following is None:
        if may_be_bare:
            return True
        raise ValueError(f"needs a value: {token.typed}=VALUE.")
    if may_be_bare and "str" not in str(trainer_signature()[name].annotation) and not is_boolean_word(token.following):
        strays.append(token.following)
        return True
    return scalar(token.following)


def _file_value(entry: FileEntry) -> Any:
    if not entry.is_scalar:
        return entry.native
    text = entry.text
    return None if text is None else text if entry.is_quoted else scalar(text)


def scalar(text: str) -> Any:
    """Returns None, a boolean, a number, a list or dictionary (as JSON), or else the text itself."""
    word = text.strip()
    if word.lower() in ("none", "null", ""):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if word[:1] in ("[", "{"):
        return _json(word)
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}).") from error


def clashes(trainer_arguments: Iterable[str], explicit: Iterable[str]) -> list[str]:
    """Returns a sentence for each flag that decides the same thing as a Trainer argument given next to it."""
    given = set(explicit)
    return [
        f"--{flag} and --trainer.{argument} decide the same thing: give one of them."
        for argument in trainer_arguments
        for flag in FLAGS_OF_ARGUMENTS.get(argument, ())
        if flag in given
    ]
