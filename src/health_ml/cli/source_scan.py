"""Reads what Python modules define from their source text, without importing them.

A package may hold thousands of modules, of which one defines the class that is asked for. So every file is first
searched for the bytes of the name, which costs some microseconds; only those that have it are parsed.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from importlib.machinery import ModuleSpec
from pathlib import Path

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
_VIRTUAL_ENVIRONMENT_MARKER = "pyvenv.cfg"
_PACKAGE_FILE = "__init__.py"
_CLASS_LINE = re.compile(rb"^class[ \t]+(\w+)[ \t]*(?:\(([^)]*)\))?", re.MULTILINE)
_DYNAMIC_BYTES = (b"__getattr__", b"import *", b"globals()", b"setattr(", b"exec(")
_DYNAMIC_CALLS = frozenset({"globals", "setattr", "exec", "vars", "locals"})
_CONTAINER_BASE = "LightningContainer"


class Binding(IntEnum):
    """How a module binds a name, from the least to the most certain."""

    NONE = 0
    DYNAMIC = 1
    """The module makes names while it runs, and this could be one of them."""
    BOUND = 2
    """An import, an assignment or a function gives the name a value."""
    PLAIN_CLASS = 3
    """A class statement without base classes and decorators: no container."""
    CLASS = 4
    """A class statement."""


@dataclass(frozen=True)
class Source:
    """A module that can be imported: its dotted name and its file."""

    module: str
    file: str


@dataclass(frozen=True)
class ClassLine:
    """A class statement at the left margin of a module, as its text says it."""

    source: Source
    name: str
    bases: tuple[str, ...]

    @property
    def dotted_name(self) -> str:
        """What to type to get exactly this class."""
        return f"{self.source.module}.{self.name}"


def find_module(name: str) -> ModuleSpec | None:
    """Returns where a module would be imported from, or None; nothing is imported, not even its parent packages."""
    parts = name.split(".")
    spec = _find_top_level(parts[0])
    for depth in range(2, len(parts) + 1):
        locations = None if spec is None else spec.submodule_search_locations
        if locations is None:
            return None
        spec = _find_in(list(locations), ".".join(parts[:depth]))
    return spec


def _find_top_level(name: str) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, None) if find_spec is not None else None
        if spec is not None:
            return spec
    return None


def _find_in(locations: list[str], name: str) -> ModuleSpec | None:
    """Returns the module or package with a dotted name among the folders (or archives) of its parent package."""
    portions: list[str] = []
    for location in locations:
        finder = pkgutil.get_importer(location)
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec
        portions += (spec.submodule_search_locations if spec is not None else None) or []
    if not portions:
        return None
    # Python's own search would look for the parent package among the imported modules here.
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def own_source(spec: ModuleSpec) -> Source | None:
    """Returns the file of a module itself (of a package: its ``__init__.py``), or None if it has no source file."""
    if spec.origin is not None and spec.origin.endswith(".py") and os.path.isfile(spec.origin):
        return Source(spec.name, spec.origin)
    return None


def sources_below(spec: ModuleSpec) -> Iterator[Source]:
    """Yields every source file of a module or package.

    Folders that cannot be imported from are left out, and so are caches and virtual environments. A folder that can
    be reached in several ways is visited once; links come last.
    """
    if spec.submodule_search_locations is None:
        source = own_source(spec)
        if source is not None:
            yield source
        return
    yield from _walk([(location, spec.name) for location in spec.submodule_search_locations])


def sources_in_folder(folder: Path) -> Iterator[Source]:
    """Yields every source file that can be imported when the folder is on the search path."""
    yield from _walk([(str(folder), "")])


def _walk(roots: list[tuple[str, str]]) -> Iterator[Source]:
    """Yields the source files below folders, each given with the dotted name of the package that it is."""
    folders = list(reversed(roots))
    links: list[tuple[str, str]] = []
    visited: set[tuple[int, int]] = set()
    while folders or links:
        folder, package = folders.pop() if folders else links.pop()
        dotted = f"{package}." if package else ""
        for entry in _entries(folder, visited):
            name = entry.name
            if name.endswith(".py"):
                if name == _PACKAGE_FILE and package and entry.is_file():
                    yield Source(package, entry.path)
                elif name != _PACKAGE_FILE and name[:-3].isidentifier() and entry.is_file():
                    yield Source(dotted + name[:-3], entry.path)
            elif name.isidentifier() and name not in _SKIPPED_FOLDERS and entry.is_dir():
                # What lies in a folder of the search path, like src/, is not imported under the folder's name.
                dotted_name = "" if entry.path in sys.path else dotted + name
                (links if entry.is_symlink() else folders).append((entry.path, dotted_name))


def _entries(folder: str, visited: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """Returns what is in a folder; nothing if it was visited, cannot be read, or is a virtual environment."""
    try:
        status = os.stat(folder)
        key = (status.st_dev, status.st_ino)
        if key in visited:
            return []
        visited.add(key)
        with os.scandir(folder) as listing:
            entries = list(listing)
    except OSError:
        return []
    return [] if any(entry.name == _VIRTUAL_ENVIRONMENT_MARKER for entry in entries) else entries


def read_source(file: str) -> bytes:
    """Returns the bytes of a file, or nothing if it cannot be read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        chunks = [os.read(descriptor, 1 << 16)]
        while len(chunks[-1]) == 1 << 16:
            chunks.append(os.read(descriptor, 1 << 20))
        return b"".join(chunks)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def mentions(sources: Iterable[Source], name: str) -> Iterator[tuple[Source, bytes]]:
    """Yields the files that hold a name, with their text."""
    # A name outside ASCII can be written in several ways that Python takes as equal, so the bytes say nothing.
    needle = name.encode() if name.isascii() else b""
    for source in sources:
        text = read_source(source.file)
        if needle in text:
            yield source, text


def has_class_line(text: bytes, name: str) -> bool:
    """True if the text looks as if it had a class statement for the name: a filter that may err on the safe side."""
    if not name.isascii():
        return True
    return re.search(rb"\bclass[ \t\f\\\r\n]+" + re.escape(name.encode()) + rb"\b", text) is not None


def is_dynamic_text(text: bytes) -> bool:
    """True if a module with this text may make names while it runs: a filter that may err on the safe side."""
    return any(marker in text for marker in _DYNAMIC_BYTES)


def binding_in(text: bytes, name: str, *, package: str = "") -> Binding:
    """Returns how a module binds a name.

    :param text: Source text of the module.
    :param name: The name to look for at the top level of the module.
    :param package: Top-level package that is searched anyway: ``import *`` from inside it is not counted.
    :raises SyntaxError: If the text cannot be parsed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on escape sequences, for example: the import reports them
            tree = ast.parse(text)
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, nesting without end
        raise SyntaxError(str(error) or type(error).__name__) from error
    return max((_binding_of(statement, name, package) for statement in _top_level(tree)), default=Binding.NONE)


def _top_level(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yields the statements that run when the module is imported, those inside ``if`` or ``try`` included."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt):
            yield child
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
        yield from _top_level(child)


def _binding_of(statement: ast.stmt, name: str, package: str) -> Binding:
    if isinstance(statement, ast.ClassDef):
        if statement.name != name:
            return Binding.NONE
        is_plain = not (statement.bases or statement.keywords or statement.decorator_list)
        return Binding.PLAIN_CLASS if is_plain else Binding.CLASS
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if statement.name == name:
            return Binding.BOUND
        return Binding.DYNAMIC if statement.name == "__getattr__" else Binding.NONE
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return _binding_of_import(statement, name, package)
    for node in _own_expressions(statement):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            return Binding.BOUND
    if any(_is_dynamic_call(node) for node in _own_expressions(statement)):
        return Binding.DYNAMIC
    return Binding.NONE


def _binding_of_import(statement: ast.Import | ast.ImportFrom, name: str, package: str) -> Binding:
    bound = {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if name in bound:
        return Binding.BOUND
    if "*" not in bound or not isinstance(statement, ast.ImportFrom):
        return Binding.NONE
    is_searched_anyway = statement.level > 0 or (statement.module or "").partition(".")[0] == package
    return Binding.NONE if is_searched_anyway else Binding.DYNAMIC


def _own_expressions(statement: ast.AST) -> Iterator[ast.AST]:
    """Yields the expressions of a statement, without those of the statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield child
            yield from _own_expressions(child)


def _is_dynamic_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _DYNAMIC_CALLS


def class_lines(sources: Iterable[Source]) -> list[ClassLine]:
    """Returns the class statements of all files, by a pattern: cheap enough for a list of suggestions."""
    found = []
    for source in sources:
        for match in _CLASS_LINE.finditer(read_source(source.file)):
            bases = (match.group(2) or b"").decode("utf-8", errors="replace").split(",")
            name = match.group(1).decode("utf-8", errors="replace")
            found.append(ClassLine(source, name, tuple(base.strip().rpartition(".")[2] for base in bases)))
    return found


def containers_among(classes: Iterable[ClassLine]) -> list[ClassLine]:
    """Returns the classes that derive from LightningContainer as far as the text of their files tells."""
    remaining = list(classes)
    known = {_CONTAINER_BASE}
    found: list[ClassLine] = []
    while True:
        new = [line for line in remaining if known.intersection(line.bases)]
        if not new:
            return found
        found.extend(new)
        remaining = [line for line in remaining if not known.intersection(line.bases)]
        known.update(line.name for line in new)
