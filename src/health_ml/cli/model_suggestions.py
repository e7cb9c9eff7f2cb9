"""Names what a user may have meant by ``--model``, from the source text alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from health_ml.cli.source_scan import (
    ClassLine,
    class_lines,
    containers_among,
    find_module,
    sources_below,
    sources_in_folder,
)
from health_ml.errors import ModelSearchError, nearest_names

DEFAULT_SEARCH_PACKAGE = "health_ml.configs"
"""Where a bare name is searched."""

_MAX_FILES = 5_000


def candidate_models(folder: Path) -> list[str]:
    """Returns what could be typed after ``--model=``: the containers of health_ml.configs and those below a folder.

    Only source text is read, so this is fast enough for the completion of a shell.
    """
    shipped = _classes_below(DEFAULT_SEARCH_PACKAGE)
    own = _classes_in(folder)
    names = [line.name for line in containers_among(shipped)]
    return sorted(names) + sorted({line.dotted_name for line in containers_among(own)})


def not_found_error(name: str, spec: ModuleSpec, folder: Path) -> ModelSearchError:
    """Returns the error for a name that no module below the searched one has, with the flags that come nearest."""
    where = f"below {spec.name!r}" if spec.submodule_search_locations is not None else f"in {spec.name!r}"
    message = f"There is no container called {name!r} {where}."
    searched = class_lines(itertools.islice(sources_below(spec), _MAX_FILES))
    flags = _suggestions(name, searched, is_default_package=spec.name == DEFAULT_SEARCH_PACKAGE)
    known = {*flags, *_flags(searched, False)}
    flags += [flag for flag in _suggestions(name, _classes_in(folder)) if flag not in known]
    if not flags:
        flags = _flags(containers_among(searched), spec.name == DEFAULT_SEARCH_PACKAGE)
    return ModelSearchError(message, _hint(flags))


def no_such_package_error(package: str, name: str, folder: Path) -> ModelSearchError:
    """Returns the error for a package or module that does not exist, with its longest part that does."""
    known = package
    while known and find_module(known) is None:
        known = known.rpartition(".")[0]
    if known:
        message = f"There is no module {package!r}: {known!r} has no {package[len(known) + 1 :].partition('.')[0]!r}."
        classes = _classes_below(known)
    else:
        message = f"There is no module {package.partition('.')[0]!r} in {folder} or among the installed packages."
        classes = _classes_in(folder)
    flags = _suggestions(name, classes) or _flags_of_similar_modules(package, classes)
    return ModelSearchError(message, _hint(flags or _flags(containers_among(classes), False)))


def _classes_in(folder: Path) -> list[ClassLine]:
    return class_lines(itertools.islice(sources_in_folder(folder), _MAX_FILES))


def _classes_below(module: str) -> list[ClassLine]:
    spec = find_module(module)
    return class_lines(itertools.islice(sources_below(spec), _MAX_FILES)) if spec is not None else []


def _suggestions(name: str, classes: Sequence[ClassLine], *, is_default_package: bool = False) -> list[str]:
    """Returns flags for the classes with the nearest names, containers before others."""
    containers = containers_among(classes)
    flags: list[str] = []
    for group in (containers, [line for line in classes if line not in set(containers)]):
        for near in nearest_names(name, (line.name for line in group)):
            flags += _flags([line for line in group if line.name == near], is_default_package)
        if flags:
            return flags
    return flags


def _flags_of_similar_modules(package: str, classes: Sequence[ClassLine]) -> list[str]:
    containers = containers_among(classes)
    near = nearest_names(package, (line.source.module for line in containers))
    return _flags([line for line in containers if line.source.module in near], False)


def _flags(lines: Iterable[ClassLine], is_default_package: bool) -> list[str]:
    return sorted({f"--model={line.name if is_default_package else line.dotted_name}" for line in lines})


def _hint(flags: Sequence[str]) -> str:
    if not flags:
        return "Check the spelling, and that you are in the folder that holds the package."
    shown = ", ".join(flags[:5])
    return f"Did you mean {shown}?" if len(flags) <= 5 else f"Did you mean one of {shown}, …?"
