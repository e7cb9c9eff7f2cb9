"""The command line with the flags of the runner itself taken out: ``--help``, ``--version``, ``--config`` and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import param

from health_ml.cli.given import GivenFlag, apply, assign
from health_ml.cli.tokens import tokenize
from health_ml.errors import join_choices

SHELLS = ("bash", "zsh", "fish")


class RunnerFlags(param.Parameterized):
    """What to do instead of a run, and where further flags are."""

    help = param.Boolean(default=False, doc="Show the flags and exit. With --model=X, those of the model X too.")
    version = param.Boolean(default=False, doc="Show the version and exit.")
    config = param.List(
        default=[],
        item_type=str,
        doc="YAML file with values for flags. Can be given several times: later files win, and flags win over files.",
    )
    print_config = param.Boolean(
        default=False, doc="Show each value and where it comes from, as a file for --config, and exit."
    )
    sync = param.String(
        default="",
        doc="Id of a run whose record is to be carried over to MLflow and TensorBoard now, because it could not be "
        "while the run lasted. Heeds --tracking_uri and --output_to.",
    )
    completion = param.Selector(  # type: ignore[var-annotated]
        default=None,
        objects=list(SHELLS),
        allow_None=True,
        doc=f"Print a script that completes flags in {join_choices(SHELLS)}, and exit.",
    )


RESERVED = frozenset(RunnerFlags.param) - {"name"}
"""Names that no parameter of a container can have on the command line."""


@dataclass(frozen=True)
class CommandLine:
    """A command line in which the flags of the runner itself are read.

    :param flags: The other flags, in order.
    :param strays: Tokens that belong to no flag.
    :param problems: What is wrong with the flags of the runner itself, as sentences.
    """

    is_help: bool
    is_version: bool
    is_print_config: bool
    sync: str
    completion: str | None
    config_files: tuple[str, ...]
    flags: tuple[GivenFlag, ...]
    strays: tuple[str, ...]
    problems: tuple[str, ...]


def read_command_line(argv: Sequence[str]) -> CommandLine:
    """Returns the command line with the flags of the runner itself read."""
    from pathlib import Path

    line = tokenize(argv)
    tokens = [GivenFlag(token) for token in line.tokens]
    options = RunnerFlags()
    problems: list[str] = []
    files: list[str] = []
    for flag in tokens:
        if flag.name == "config":
            file = flag.token.text if flag.token.text is not None else flag.token.following
            if file:
                files.append(file)
            else:
                problems.append(f"{flag.token.typed} needs a value: {flag.token.typed}=FILE.yaml.")
    others = [flag for flag in tokens if flag.name != "config"]
    parameters = {name: options.param[name] for name in RESERVED - {"config"}}
    assigned = assign(others, parameters)
    apply(options, assigned.values, start_directory=Path(), problems=problems)
    return CommandLine(
        is_help=bool(options.help),
        is_version=bool(options.version),
        is_print_config=bool(options.print_config),
        sync=options.sync,
        completion=options.completion,
        config_files=tuple(files),
        flags=tuple(flag for flag in assigned.rest if isinstance(flag, GivenFlag)),
        strays=(*line.strays, *assigned.strays),
        problems=tuple(problems),
    )
