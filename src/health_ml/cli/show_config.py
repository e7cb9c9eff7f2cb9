"""The text of ``--print_config``: every value with its source, as a file that ``--config`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import param
import yaml

from health_ml.cli.arguments import reader_for
from health_ml.cli.config_file import TRAINER_KEY, TRAINER_PREFIX
from health_ml.cli.groups import container_groups
from health_ml.deep_learning_config import parameters_of
from health_ml.param_types import CustomTypeParam
from health_ml.records.encoding import encode_value

if TYPE_CHECKING:
    from health_ml.cli.parse import ParsedCommand


def render_config(parsed: ParsedCommand) -> str:
    """Returns every value as YAML, with its source in a comment. Given back as ``--config``, it means the same.

    A value with a secret in it is masked and commented out: it has to be given again.
    """
    lines = ["# Where and how to run"]
    lines += _section(parsed.experiment_config, parameters_of(parsed.experiment_config), parsed.sources)
    for group in container_groups(parsed.container):
        lines += ["", f"# {group.title}", *_section(parsed.container, group.parameters, parsed.sources)]
    lines += _trainer_section(parsed.container.trainer_argument_overrides, parsed.sources)
    return "\n".join(lines)


def _section(
    owner: param.Parameterized, parameters: Mapping[str, param.Parameter[Any]], sources: Mapping[str, str]
) -> list[str]:
    return [_line(name, parameter, getattr(owner, name), sources[name]) for name, parameter in parameters.items()]


def _line(name: str, parameter: param.Parameter[Any], value: Any, source: str) -> str:
    if reader_for(parameter) is None or (value is None and not parameter.allow_None):
        return f"# {name}: {_one_line(repr(value))}  # {source}; set in the code only"
    plain_value = plain(value, parameter)
    shown = encode_value(plain_value, name=name) if _has_secret(name, plain_value) else plain_value
    mark = "" if shown is plain_value else "# "
    return f"{mark}{name}: {_yaml(shown)}  # {source}{'; a secret' if mark else ''}"


def _has_secret(name: str, value: Any) -> bool:
    return _dumped(encode_value(value, name=name)) != _dumped(encode_value(value, is_masked=False))


def _trainer_section(values: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    if not values:
        return []
    rows = [
        f"  {name}: {_yaml(encode_value(value) if _has_secret(name, value) else value)}  "
        f"# {sources[TRAINER_PREFIX + name]}"
        for name, value in values.items()
    ]
    return ["", "# Arguments of the Lightning Trainer", f"{TRAINER_KEY}:", *rows]


def plain(value: Any, parameter: param.Parameter[Any]) -> Any:
    """Returns a value in the types that YAML knows: the text of a path, the value of an enum member."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Enum):
        return plain(value.value, parameter)
    if isinstance(value, (list, tuple, set)):
        return [plain(item, parameter) for item in value]
    if isinstance(value, dict):
        return {plain(key, parameter): plain(item, parameter) for key, item in value.items()}
    if isinstance(parameter, param.Selector) and not isinstance(parameter, CustomTypeParam):
        return next((name for name, option in parameter.get_range().items() if option is value), str(value))
    return str(value) if not isinstance(value, Path) else value.as_posix()


def _yaml(value: Any) -> str:
    text = _dumped(value)
    return text if text.splitlines() == [text] else _dumped(value, style='"')


def _dumped(value: Any, style: str | None = None) -> str:
    text: str = yaml.safe_dump(
        value, default_style=style, default_flow_style=True, width=float("inf"), allow_unicode=True
    )
    # Line ends only: a text may end in a space of another kind.
    return text.strip("\n").removesuffix("...").rstrip("\n")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
