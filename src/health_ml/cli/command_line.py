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
    dry_run = param.Boolean(
        default=False, doc="Show the plan and what the back end would be asked for, and do nothing."
    )
    print_plan = param.Selector(  # type: ignore[var-annotated]
        default=None, objects=["json"], allow_None=True, doc="Print the plan and do nothing."
    )
    list_snapshot = param.Boolean(
        default=False, doc="Show the files that travel with a job, and those that do not with the rule, and exit."
    )
    attach = param.String(
        default="",
        doc="Id of a job or fan-out to follow until it ends. A fan-out that was interrupted is taken up again.",
    )
    status = param.String(default="", doc="Id of a run: show how it stands, and exit.")
    cancel = param.String(default="", doc="Id of a job or fan-out to end, with everything that it started.")
    rerun = param.String(default="", doc="Id of a run to repeat from its record: same code, same plan, same seed.")
    set = param.List(default=[], item_type=str, doc="With --rerun: FLAG=VALUE to change. Can be given several times.")
    rerun_failed = param.String(default="", doc="Id of a fan-out whose failed trials are to run again.")
    completion = param.Selector(  # type: ignore[var-annotated]
        default=None,
        objects=list(SHELLS),
        allow_None=True,
        doc=f"Print a script that completes flags in {join_choices(SHELLS)}, and exit.",
    )


REPEATED = ("config", "set")
"""Flags that can be given several times."""

RUN_FLAGS = ("sync", "attach", "status", "cancel", "rerun", "rerun_failed")
"""Flags whose value is the id of a run, and that say what to do with it."""

_EXAMPLES = {"config": "FILE.yaml", "set": "FLAG=VALUE"}

RESERVED = frozenset(RunnerFlags.param) - {"name"}
"""Names that no parameter of a container can have on the command line."""


@dataclass(frozen=True)
class CommandLine:
    """A command line in which the flags of the runner itself are read.

    :param flags: The other flags, in order.
    :param strays: Tokens that belong to no flag.
    :param problems: What is wrong with the flags of the runner itself, as sentences.
    """

    flags: tuple[GivenFlag, ...]
    strays: tuple[str, ...]
    problems: tuple[str, ...]
    is_help: bool = False
    is_version: bool = False
    is_print_config: bool = False
    is_dry_run: bool = False
    print_plan: str | None = None
    list_snapshot: bool = False
    sync: str = ""
    attach: str = ""
    status: str = ""
    cancel: str = ""
    rerun: str = ""
    rerun_failed: str = ""
    completion: str | None = None
    config_files: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def only_plans(self) -> bool:
        """True if nothing is to be started."""
        return self.is_dry_run or self.print_plan is not None


def read_command_line(argv: Sequence[str]) -> CommandLine:
    """Returns the command line with the flags of the runner itself read."""
    from pathlib import Path

    line = tokenize(argv)
    tokens = [GivenFlag(token) for token in line.tokens]
    options = RunnerFlags()
    problems: list[str] = []
    repeated = {name: _texts(tokens, name, problems) for name in REPEATED}
    parameters = {name: options.param[name] for name in RESERVED.difference(REPEATED)}
    without_run = [flag for flag in tokens if flag.name in RUN_FLAGS and flag.is_left_empty(parameters[flag.name])]
    problems += [f"--{flag.name} needs the id of a run: --{flag.name}=RUN_ID." for flag in without_run]
    apart = {*REPEATED, *(flag.name for flag in without_run)}
    assigned = assign([flag for flag in tokens if flag.name not in apart], parameters)
    apply(options, assigned.values, start_directory=Path(), problems=problems)
    problems += _contradictions(options, repeated)
    return CommandLine(
        flags=tuple(flag for flag in assigned.rest if isinstance(flag, GivenFlag)),
        strays=(*line.strays, *assigned.strays),
        problems=tuple(problems),
        is_help=bool(options.help),
        is_version=bool(options.version),
        is_print_config=bool(options.print_config),
        is_dry_run=bool(options.dry_run),
        print_plan=options.print_plan,
        list_snapshot=bool(options.list_snapshot),
        completion=options.completion,
        config_files=repeated["config"],
        changes=repeated["set"],
        **{name: getattr(options, name) for name in RUN_FLAGS},
    )


def _texts(tokens: Sequence[GivenFlag], name: str, problems: list[str]) -> tuple[str, ...]:
    """Returns the values of a flag that can be given several times."""
    texts = []
    for flag in tokens:
        if flag.name != name:
            continue
        text = flag.token.text if flag.token.text is not None else flag.token.following
        if text:
            texts.append(text)
        else:
            problems.append(f"{flag.token.typed} needs a value: {flag.token.typed}={_EXAMPLES[name]}.")
    return tuple(texts)


def _contradictions(options: RunnerFlags, repeated: dict[str, tuple[str, ...]]) -> list[str]:
    actions = [name for name in (*RUN_FLAGS, "list_snapshot", "print_config") if getattr(options, name)]
    problems = []
    if len(actions) > 1:
        flags = " and ".join(f"--{name}" for name in actions)
        problems.append(f"{flags} each say what to do: give one of them.")
    if repeated["set"] and not options.rerun:
        problems.append("--set has no effect without --rerun.")
    plans = [name for name in ("dry_run", "print_plan") if getattr(options, name)]
    if plans and actions and actions != ["rerun"]:
        problems.append(f"--{plans[0]} has no effect with --{actions[0]}.")
    return problems
