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

from health_ml.cli.describe import NONE_TEXT, describe
from health_ml.deep_learning_config import parameters_of

HEADER = ("Flag", "Takes", "Default", "Meaning")
WIDTHS = (26, 22, 14, 60)


def describe_value(parameter: param.Parameter[Any]) -> str:
    """Returns in words what a flag takes; that it may be None is clear from an empty default."""
    text = describe(parameter).removesuffix(f", or {NONE_TEXT}")
    return text.replace("a CheckpointParser", "a file, URL or run id")


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
                    nodes.Text(describe_value(parameter)),
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
