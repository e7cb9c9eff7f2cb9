"""Reads ``--config=FILE.yaml``: a mapping from names of flags to values.

The scalars of the file are read as the same text on the command line would be, not by the rules of YAML: ``1e-3`` is a
number, ``OFF`` is the name of an enum member, ``1.0`` stays different from ``1``. Values in quotes are texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import param
import yaml

from health_ml.cli import arguments
from health_ml.cli.describe import NONE_TEXT, describe
from health_ml.cli.tokens import normalized
from health_ml.errors import ArgumentsError

SOURCE_FILE = "config file"
TRAINER_PREFIX = "trainer."
TRAINER_KEY = "trainer"
MOST_VALUES = 100_000
_NULL_TAG = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class FileEntry:
    """One entry of a config file.

    :param node: The YAML node of the value.
    :param native: What YAML makes of a sequence or mapping; for a scalar its text.
    """

    name: str
    source: str
    shown: str
    node: yaml.Node
    native: Any

    def leftover(self, parameter: param.Parameter[Any]) -> str | None:
        """Returns None: the value of an entry is never in doubt."""
        return None

    @property
    def text(self) -> str | None:
        """The text of a scalar, None for ``null`` and an empty value."""
        return _text_of(self.node)

    @property
    def is_scalar(self) -> bool:
        """True unless the value is a sequence or a mapping."""
        return isinstance(self.node, yaml.ScalarNode)

    @property
    def is_quoted(self) -> bool:
        """True if the value is a text in quotes."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.style in ("'", '"')

    def is_left_empty(self, parameter: param.Parameter[Any]) -> bool:
        """Returns whether a number is empty. Anything else that a file says is empty is meant to be."""
        return self.text is not None and arguments.is_number(parameter) and not self.text.strip()

    def text_for(self, parameter: param.Parameter[Any]) -> str | None:
        """Returns the text of a scalar, the word for no value, or None for a sequence or mapping."""
        if _is_null(self.node):
            return NONE_TEXT
        return self.text

    def value_for(self, parameter: param.Parameter[Any], *, keeps_whole_numbers: bool) -> Any:
        """Returns the value as the parameter takes it."""
        if isinstance(self.node, yaml.SequenceNode):
            return self._sequence_for(parameter)
        if isinstance(self.node, yaml.MappingNode):
            return self.native
        if _is_null(self.node):
            if parameter.allow_None:
                return None
            raise ValueError(f"it takes {describe(parameter)}, not null.")
        text = str(self.node.value)
        if isinstance(parameter, param.String) and self.is_quoted:
            return text
        return arguments.parse_text(parameter, text, keeps_whole_numbers=keeps_whole_numbers)

    def _sequence_for(self, parameter: param.Parameter[Any]) -> Any:
        read_item = arguments.item_reader(parameter)
        if read_item is None:
            return self.native
        try:
            items = [
                native if _text_of(node) is None else read_item(str(node.value))
                for node, native in zip(self.node.value, self.native, strict=True)
            ]
        except ValueError as error:
            raise ValueError(str(error) if "takes" in str(error) else f"it takes {describe(parameter)}.") from error
        return tuple(items) if isinstance(parameter, param.Tuple) else items


def read_config_files(files: Iterable[str], *, start_directory: Path) -> list[FileEntry]:
    """Returns the entries of the files in order; those of a later file win over those of an earlier one.

    :raises ArgumentsError: If files are missing or malformed, naming all of them with the lines.
    """
    entries: list[FileEntry] = []
    problems: list[str] = []
    for file in files:
        try:
            entries.extend(_read(file, start_directory / Path(file).expanduser()))
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problems.append(f"--config={file} cannot be read: {reason}.")
        except ValueError as error:
            problems.append(f"--config={file}: {error}")
    if problems:
        raise ArgumentsError(" ".join(problems), "A config file is a YAML mapping, one 'flag: value' per line.")
    return entries


def _read(file: str, path: Path) -> list[FileEntry]:
    content = path.read_bytes()
    loader = None
    try:
        loader = yaml.SafeLoader(content)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"line {_line(root)}: expected 'flag: value' pairs.")
        _check_aliases(root)
        return _entries(loader, root, file=file, prefix="")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1 if mark else 1}: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML ({error}).") from error
    except (RecursionError, TypeError, OverflowError) as error:
        raise ValueError(f"its values are nested too deeply or not usable ({type(error).__name__}).") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_aliases(root: yaml.Node) -> None:
    """Raises if aliases make so much of a few lines that no program could go through it."""
    sizes: dict[int, int] = {}
    repeated: list[yaml.Node] = []

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 0  # while it is being measured
            children = (child for item in node.value for child in (item if isinstance(item, tuple) else (item,)))
            sizes[id(node)] = 1 + sum(map(size, children))
        elif sizes[id(node)]:
            repeated.append(node)
        else:
            raise ValueError(f"line {_line(node)}: this value contains itself, by an alias (*name).")
        return sizes[id(node)]

    count = size(root)
    if count > MOST_VALUES and repeated:
        raise ValueError(f"its aliases (*name) make {count} values of it, and at most {MOST_VALUES} make sense.")


def _entries(loader: yaml.SafeLoader, mapping: yaml.MappingNode, *, file: str, prefix: str) -> list[FileEntry]:
    _refuse_duplicates(mapping)
    loader.flatten_mapping(mapping)
    entries: list[FileEntry] = []
    for key, node in mapping.value:
        name = prefix + normalized(str(key.value))
        if name == TRAINER_KEY and isinstance(node, yaml.MappingNode):
            entries.extend(_entries(loader, node, file=file, prefix=TRAINER_PREFIX))
            continue
        entries.append(
            FileEntry(
                name=name,
                source=f"{SOURCE_FILE} {file}",
                shown=f"{name}{_value_shown(node)} ({file}, line {_line(key)})",
                node=node,
                native=_native(loader, node),
            )
        )
    return entries


def _native(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    return loader.construct_object(node, deep=True)


def _refuse_duplicates(mapping: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {_line(key)}: the name of a flag has to be a plain text.")
        name = normalized(str(key.value))
        if name in seen and name != "<<":
            raise ValueError(f"line {_line(key)}: {name!r} is given twice, first in line {seen[name]}.")
        seen[name] = _line(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _value_shown(node: yaml.Node) -> str:
    return f"={node.value}" if isinstance(node, yaml.ScalarNode) else ""


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG


def _text_of(node: yaml.Node) -> str | None:
    return str(node.value) if isinstance(node, yaml.ScalarNode) and not _is_null(node) else None
