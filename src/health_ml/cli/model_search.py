"""Finds the container that ``--model`` names, and imports nothing but the module that defines it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from health_ml.cli.model_suggestions import DEFAULT_SEARCH_PACKAGE, no_such_package_error, not_found_error
from health_ml.cli.param1 import param1_spellings
from health_ml.cli.source_scan import (
    Binding,
    Source,
    binding_in,
    find_module,
    has_class_line,
    is_dynamic_text,
    mentions,
    own_source,
    sources_below,
)
from health_ml.errors import ContainerError, HimlError, ModelSearchError

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer

_MISSING = object()


def find_container(model: str, *, folder: Path) -> type[LightningContainer]:
    """Returns the container class that ``--model`` names.

    A bare name is searched below ``health_ml.configs``, ``package.Name`` anywhere below the package. The source text
    says which modules can define the name, and only those are imported. The folder is put on ``sys.path`` and stays
    there, because the container may import from it at any later time.

    :param model: ``Name``, ``package.Name`` or ``package.module.Name``.
    :param folder: The folder whose packages and modules can be named, usually the working directory.
    :raises ModelSearchError: If there is no such class, more than one, or it cannot be imported or is no container.
    """
    package, name = _split(model)
    make_importable(folder)
    spec = find_module(package)
    if spec is None:
        raise no_such_package_error(package, name, folder)
    search = _Search(name, spec)
    for sources in (search.own, search.defining, search.binding, search.dynamic):
        search.examine(sources())
        if search.containers:
            return search.only_container()
    raise search.nothing_found(folder)


def create_container(container_class: type[LightningContainer]) -> LightningContainer:
    """Returns a new container.

    :raises ContainerError: If its constructor fails, with the line of the user's code.
    """
    try:
        with param1_spellings():
            return container_class()
    except HimlError:
        raise
    except (Exception, SystemExit) as error:
        root = str(Path(inspect.getfile(container_class)).parent)
        advice = "The runner calls the class without arguments; give every argument of its constructor a default."
        raise ContainerError(
            f"{container_class.__name__} cannot be created: {describe_exception(error, root)}.",
            advice if _needs_arguments(container_class) else "Mend the constructor.",
        ) from error


def _needs_arguments(container_class: type) -> bool:
    try:
        inspect.signature(container_class).bind()
    except TypeError:
        return True
    return False


def make_importable(folder: Path) -> None:
    """Puts a folder at the start of ``sys.path`` unless it is there already."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def describe_exception(error: BaseException, root: str) -> str:
    """Returns type, message and place of an exception, the place being the last line that the user can change.

    :param error: The exception, with its traceback.
    :param root: Folder of the user's code.
    """
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        code = (error.text or "").strip()
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno}{code and f': {code}'})"
    place = _place_in_traceback(error.__traceback__, root)
    return f"{text} ({place})" if place else text


def _place_in_traceback(traceback: TracebackType | None, root: str) -> str:
    frames = inspect.getinnerframes(traceback) if traceback is not None else []
    code_of_others = (str(Path(__file__).parent), "<frozen")
    frames = [frame for frame in frames if not frame.filename.startswith(code_of_others)]
    users = [frame for frame in frames if frame.filename.startswith(root) and "site-packages" not in frame.filename]
    users = users or frames
    if not users:
        return ""
    last = users[-1]
    code = (last.code_context or [""])[0].strip()
    return f"{last.filename}, line {last.lineno}{code and f': {code}'}"


@dataclass(frozen=True)
class _Found:
    """What a module has under the name that is searched."""

    source: Source
    value: Any


@dataclass(frozen=True)
class _Failure:
    """A module that could not be imported or parsed; certain if it has a class statement for the name."""

    source: Source
    error: BaseException
    is_certain: bool


class _Search:
    """The search for one name below one package: what was imported, and what came of it."""

    def __init__(self, name: str, spec: ModuleSpec) -> None:
        self.name = name
        self.spec = spec
        self.containers: list[_Found] = []
        self._others: list[_Found] = []
        self._plain_classes: list[Source] = []
        self._failures: list[_Failure] = []
        self._defining: set[str] = set()
        self._settled: set[str] = set()
        self._mentions: list[tuple[Source, bytes]] | None = None

    # --- which modules to import, in the order in which they are asked ------------------------------------------------

    def own(self) -> Iterator[Source]:
        """Yields the named module itself if it binds the name: then ``package.Name`` is that, whatever is below."""
        source = own_source(self.spec)
        if source is not None:
            for _, text in mentions([source], self.name):
                if self._binding(source, text) in (Binding.CLASS, Binding.BOUND):
                    yield source
        elif self.spec.origin is not None:
            yield Source(self.spec.name, self.spec.origin)  # compiled, or in an archive: only the import can tell

    def defining(self) -> Iterator[Source]:
        """Yields the modules that have a class statement for the name."""
        for source, text in self._all_mentions():
            if has_class_line(text, self.name) and self._binding(source, text) is Binding.CLASS:
                yield source

    def binding(self) -> Iterator[Source]:
        """Yields the modules that get the name in another way."""
        for source, text in self._all_mentions():
            if self._binding(source, text) in (Binding.BOUND, Binding.DYNAMIC):
                yield source

    def dynamic(self) -> Iterator[Source]:
        """Yields the modules that make names while they run."""
        for source, text in mentions(sources_below(self.spec), ""):
            if is_dynamic_text(text) and self._binding(source, text) is Binding.DYNAMIC:
                yield source

    def _all_mentions(self) -> list[tuple[Source, bytes]]:
        if self._mentions is None:
            self._mentions = list(mentions(sources_below(self.spec), self.name))
        return self._mentions

    def _binding(self, source: Source, text: bytes) -> Binding:
        """Returns how a module binds the name, or NONE if that was settled before."""
        if source.file in self._settled:
            return Binding.NONE
        try:
            binding = binding_in(text, self.name, package=self.spec.name.partition(".")[0])
        except SyntaxError as error:
            error.filename = source.file
            self._settled.add(source.file)
            self._failures.append(_Failure(source, error, is_certain=has_class_line(text, self.name)))
            return Binding.NONE
        if binding is Binding.PLAIN_CLASS:
            self._settled.add(source.file)
            self._plain_classes.append(source)
        elif binding is Binding.CLASS:
            self._defining.add(source.file)
        return binding

    # --- what they hold -----------------------------------------------------------------------------------------------

    def examine(self, sources: Iterable[Source]) -> None:
        """Imports modules and sorts what they have under the name."""
        from health_ml.lightning_container import LightningContainer  # loads torch

        for source in sources:
            self._settled.add(source.file)
            try:
                value = _import_name(source, self.name)
            except (Exception, SystemExit) as error:  # whatever the user's module raises is the answer
                self._failures.append(_Failure(source, error, is_certain=source.file in self._defining))
                continue
            if _is_container_class(value, LightningContainer):
                if all(other.value is not value for other in self.containers):
                    self.containers.append(_Found(source, value))
            elif value is not _MISSING:
                self._others.append(_Found(source, value))

    def only_container(self) -> type[LightningContainer]:
        """Returns the container that was found.

        :raises ModelSearchError: If there are several, or a module with a class of that name cannot be imported.
        """
        failures = [failure for failure in self._failures if failure.is_certain]
        if len(self.containers) == 1 and not failures:
            container: type[LightningContainer] = self.containers[0].value
            return container
        choices = [f"--model={found.source.module}.{self.name} ({found.source.file})" for found in self.containers]
        choices += [
            f"--model={failure.source.module}.{self.name} ({failure.source.file}, which cannot be imported: "
            f"{describe_exception(failure.error, self._root(failure.source))})"
            for failure in failures
        ]
        raise ModelSearchError(
            f"There are {len(choices)} classes called {self.name!r} below {self.spec.name!r}.",
            f"Say which one: {'; '.join(sorted(choices))}.",
        )

    def nothing_found(self, folder: Path) -> ModelSearchError:
        """Returns the error that says why there is no container: it failed, it is something else, or it is missing."""
        certain = [failure for failure in self._failures if failure.is_certain]
        if certain or (self._failures and not self._others):
            return self._failed(certain or self._failures)
        if self._others or self._plain_classes:
            return self._not_a_container()
        return not_found_error(self.name, self.spec, folder)

    def _failed(self, failures: list[_Failure]) -> ModelSearchError:
        descriptions = [
            f"{failure.source.module} ({failure.source.file}) cannot be imported, so {self.name!r} cannot be loaded "
            f"from it: {describe_exception(failure.error, self._root(failure.source))}."
            for failure in failures
        ]
        error = ModelSearchError(
            " ".join(descriptions), "Correct the code; HIML_FULL_ERROR=1 shows the whole traceback."
        )
        error.__cause__ = failures[0].error
        return error

    def _root(self, source: Source) -> str:
        """Returns the folder of the top-level package of a module: a frame below it is the user's."""
        depth = source.module.count(".") + (1 if source.file.endswith("__init__.py") else 0)
        parents = Path(source.file).parents
        return str(parents[max(min(depth - 1, len(parents) - 1), 0)])

    def _not_a_container(self) -> ModelSearchError:
        descriptions = [
            f"{found.source.module}.{self.name} ({found.source.file}) is {_describe(found.value)}"
            for found in self._others
        ]
        descriptions += [
            f"{source.module}.{self.name} ({source.file}) is a class without base classes"
            for source in self._plain_classes
        ]
        return ModelSearchError(
            f"{'; '.join(descriptions)}, not a subclass of LightningContainer.",
            "Derive a class from health_ml.lightning_container.LightningContainer, return your model from its "
            "create_model method and your data from its get_data_module method, and name that class.",
        )


def _import_name(source: Source, name: str) -> Any:
    """Returns what a module has under a name, or ``_MISSING``."""
    with param1_spellings():
        module = importlib.import_module(source.module)
        value = getattr(module, name, _MISSING)
    file = getattr(module, "__file__", None)
    if file is not None and os.path.isfile(source.file) and not os.path.samefile(file, source.file):
        raise ImportError(f"the module of this name that Python has loaded is {file}")
    return value


def _is_container_class(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _describe(value: Any) -> str:
    """Returns what a value is, in words."""
    if isinstance(value, type):
        if value.__module__ == "health_ml.lightning_container" and value.__name__ == "LightningContainer":
            return "the base class of all containers itself"
        bases = ", ".join(base.__name__ for base in value.__bases__)
        return f"a class derived from {bases}"
    if inspect.isroutine(value):
        return "a function"
    if inspect.ismodule(value):
        return "a module"
    return f"an object of type {type(value).__name__}"


def _split(model: str) -> tuple[str, str]:
    """Returns the package to search and the name of the class."""
    if not model.strip():
        raise ModelSearchError(
            "Parameter 'model' needs to be set to specify which model to run.",
            "Try --model=HelloWorld, or --model=<package>.<class> for a container of your own.",
        )
    if not all(part.isidentifier() for part in model.split(".")):
        stem = model.removesuffix(".py").strip("./\\").replace("/", ".").replace("\\", ".").replace(":", ".")
        raise ModelSearchError(
            f"--model={model} is not a dotted name of a class.",
            f"Write --model=<package>.<module>.<class>, for example --model={_suggested_path(stem)}.",
        )
    package, _, name = model.rpartition(".")
    return package or DEFAULT_SEARCH_PACKAGE, name


def _suggested_path(stem: str) -> str:
    parts = [part for part in stem.split(".") if part.isidentifier()]
    is_class_missing = not parts or not parts[-1][:1].isupper()
    return ".".join([*(parts or ["mypackage"]), *(["MyContainer"] if is_class_missing else [])])
