"""The directive ``{flags}``: a table of the flags that a class of parameters declares, made when the docs are built.

The declarations are what the parser reads, so the page cannot disagree with the program.
"""

from __future__ import annotations

import importlib
from enum import Enum
from typing import Any, ClassVar

import param
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from health_ml.deep_learning_config import parameters_of

HEADER = ("Flag", "Takes", "Default", "Meaning")
WIDTHS = (26, 22, 14, 60)

_TYPES: tuple[tuple[type[param.Parameter[Any]], str], ...] = (
    (param.Boolean, "on or off"),
    (param.Integer, "whole number"),
    (param.Number, "number"),
    (param.NumericTuple, "numbers, separated by commas"),
    (param.String, "text"),
)


def describe_type(parameter: param.Parameter[Any]) -> str:
    """Returns in words what a flag takes."""
    if isinstance(parameter, param.List):
        item = getattr(parameter, "item_type", None)
        return f"list of {_class_name(item)}, separated by commas"
    if isinstance(parameter, param.ClassSelector):
        choices = parameter.class_
        if isinstance(choices, type) and issubclass(choices, Enum):
            return ", ".join(dict.fromkeys(str(member.value) for member in choices))
        return _class_name(choices)
    text = next((name for kind, name in _TYPES if isinstance(parameter, kind)), "text")
    return f"{text}, {_describe_bounds(parameter)}" if _describe_bounds(parameter) else text


def _class_name(cls: Any) -> str:
    known = {"Path": "path", "CheckpointParser": "checkpoint", "str": "names", "int": "whole numbers"}
    return known.get(getattr(cls, "__name__", ""), "values")


def _describe_bounds(parameter: param.Parameter[Any]) -> str:
    lower, upper = getattr(parameter, "bounds", None) or (None, None)
    if lower is not None and upper is not None:
        return f"{lower} to {upper}"
    return f"at least {lower}" if lower is not None else ""


def describe_default(parameter: param.Parameter[Any]) -> str:
    """Returns the default as a user would type it; empty for None and for empty values."""
    default = parameter.default
    if default is None or default == "" or default == []:
        return ""
    if isinstance(default, Enum):
        return str(default.value)
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default)


class FlagTable(SphinxDirective):
    """A table with one row per flag of the class that the argument names."""

    required_arguments: ClassVar[int] = 1  # type: ignore[misc]

    def run(self) -> list[nodes.Node]:
        """Returns the table."""
        module_name, _, class_name = self.arguments[0].rpartition(".")
        owner = getattr(importlib.import_module(module_name), class_name)
        self.env.note_dependency(importlib.import_module(module_name).__file__ or "")
        own = [(name, parameter) for name, parameter in parameters_of(owner).items() if parameter.owner is owner]
        group = nodes.tgroup(cols=len(HEADER))
        group += [nodes.colspec(colwidth=width) for width in WIDTHS]
        group += nodes.thead("", self._row([nodes.Text(text) for text in HEADER]))
        body = nodes.tbody()
        for name, parameter in own:
            body += self._row(
                [
                    nodes.literal(text=f"--{name}"),
                    nodes.Text(describe_type(parameter)),
                    nodes.literal(text=describe_default(parameter)) if describe_default(parameter) else nodes.Text(""),
                    nodes.Text(" ".join((parameter.doc or "").split())),
                ]
            )
        group += body
        return [nodes.table("", group, classes=["flags"])]

    @staticmethod
    def _row(cells: list[nodes.Node]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("flags", FlagTable)
    return {"version": "1", "parallel_read_safe": True}
