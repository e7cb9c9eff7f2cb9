"""Names the flags that nobody knows, with the nearest ones that exist."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from health_ml.cli.command_line import RESERVED
from health_ml.cli.config_file import TRAINER_KEY, TRAINER_PREFIX
from health_ml.cli.given import NEGATION, SOURCE_COMMAND_LINE, Given
from health_ml.cli.trainer_arguments import ARGUMENTS_OF_THE_RUNNER, ARGUMENTS_WITH_FLAG, trainer_signature
from health_ml.errors import join_choices, nearest_names

MAX_SUGGESTIONS = 3


def unknown_flag_problems(givens: Iterable[Given], known: Iterable[str]) -> list[str]:
    """Returns one sentence for each value whose name nobody knows."""
    names = sorted({*known, *RESERVED})
    return [_problem(given, names) for given in givens]


def _problem(given: Given, names: Sequence[str]) -> str:
    is_flag = given.source == SOURCE_COMMAND_LINE
    if not is_flag and given.name in RESERVED:
        return f"{given.shown}: --{given.name} works on the command line only."
    if given.name == TRAINER_KEY:
        example = "--trainer.max_steps=5" if is_flag else "a line 'trainer:', and below it, indented, 'max_steps: 5'"
        return f"{given.shown}: this name takes arguments of the Lightning Trainer, for example {example}."
    kind = "Unknown flag" if is_flag else "Unknown name"
    shown = given.shown.split("=")[0].split(" ")[0] if is_flag else given.shown
    suggestions = _trainer_flag(given.name) or suggest(given.name, names)
    if not suggestions:
        return f"{kind} {shown}."
    prefix = "--" if is_flag else ""
    return f"{kind} {shown}. Did you mean {join_choices([prefix + name for name in suggestions])}?"


def suggest(name: str, names: Sequence[str]) -> list[str]:
    """Returns the known names that the given one abbreviates, else those that look most like it."""
    if len(name) > 1:
        longer = [candidate for candidate in names if candidate.startswith(name)]
        if longer:
            return longer[:MAX_SUGGESTIONS]
    nearest = nearest_names(name, names, MAX_SUGGESTIONS)
    if not nearest and name.startswith(NEGATION):
        return nearest_names(name.removeprefix(NEGATION), names, MAX_SUGGESTIONS)
    return nearest


def _trainer_flag(name: str) -> list[str]:
    """Returns the flag of a Trainer argument, if the name is one; asked only when Lightning is loaded anyway."""
    if name in ARGUMENTS_WITH_FLAG:
        return [ARGUMENTS_WITH_FLAG[name]]
    if "pytorch_lightning" in sys.modules and name not in ARGUMENTS_OF_THE_RUNNER and name in trainer_signature():
        return [TRAINER_PREFIX + name]
    return []


def flags_without_effect(names: Iterable[str], *, mode: str) -> list[str]:
    """Returns one sentence that names the flags that mean nothing next to the one that says what to do."""
    flags = [f"--{name}" for name in sorted(names)]
    if not flags:
        return []
    return [f"{' and '.join(flags)} {'has' if len(flags) == 1 else 'have'} no effect with {mode}: leave out."]
