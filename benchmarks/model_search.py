"""Finding a container in a package of 10,000 modules, against importing each of them and against parsing each."""

from __future__ import annotations

import ast
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Row

PACKAGES = 100
MODULES_PER_PACKAGE = 100
MODULE_COUNT = PACKAGES * MODULES_PER_PACKAGE
SAMPLE = 500
"""How many modules the two baselines handle; their time is scaled up to all of them."""

PACKAGE = "ten_thousand_modules"
NAME = "NeedleContainer"

HAY = '''"""Module number {number}."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings{number}:
    """Some settings."""

    width: int = {number}
    height: float = 0.5

    def area(self) -> float:
        """Returns the area."""
        return self.width * self.height


def scaled(values: list[float], factor: float = {number}.0) -> list[float]:
    """Returns the values, each multiplied by a factor."""
    return [value * factor for value in values if not math.isnan(value)]


class Layer{number}:
    """Something to do with the values."""

    def __init__(self, settings: Settings{number}) -> None:
        self.settings = settings

    def __call__(self, values: list[float]) -> float:
        return math.fsum(scaled(values, self.settings.area()))
'''
NEEDLE = f"""from health_ml.lightning_container import LightningContainer


class {NAME}(LightningContainer):
    pass
"""


def write_package(folder: Path) -> None:
    """Writes the modules; the one with the container is in the last package."""
    root = folder / PACKAGE
    for package in range(PACKAGES):
        subfolder = root / f"part{package}"
        subfolder.mkdir(parents=True)
        (subfolder / "__init__.py").touch()
        for module in range(MODULES_PER_PACKAGE):
            number = package * MODULES_PER_PACKAGE + module
            (subfolder / f"module{number}.py").write_text(HAY.format(number=number))
    (root / "__init__.py").touch()
    (root / f"part{PACKAGES - 1}" / f"module{MODULE_COUNT - 1}.py").write_text(NEEDLE)


def cpu_seconds(action: Callable[[], None]) -> float:
    """Returns the CPU time that an action takes in this process."""
    start = time.process_time()
    action()
    return time.process_time() - start


def search(folder: Path) -> None:
    """Finds the container, and makes sure that nothing else of the package was imported."""
    from health_ml.cli.model_search import find_container

    container = find_container(f"{PACKAGE}.{NAME}", folder=folder)
    parent = f"{PACKAGE}.part{PACKAGES - 1}"
    imported = {name for name in sys.modules if name.startswith(PACKAGE)}
    if imported != {PACKAGE, parent, container.__module__}:
        raise RuntimeError(f"the search imported {len(imported)} modules: {sorted(imported)[:5]} …")


def sample_names() -> list[str]:
    """Returns the names of modules from all packages."""
    step = MODULE_COUNT // SAMPLE
    numbers = range(0, MODULE_COUNT - 1, step)
    return [f"{PACKAGE}.part{number // MODULES_PER_PACKAGE}.module{number}" for number in numbers]


def import_sample() -> None:
    """Imports modules, as a search that asks each module for the class has to."""
    for name in sample_names():
        importlib.import_module(name)


def parse_sample(folder: Path) -> None:
    """Parses modules, as a search without a filter has to."""
    for name in sample_names():
        file = folder / (name.replace(".", "/") + ".py")
        ast.parse(file.read_bytes())


def main() -> list[Row]:
    """Returns the CPU time of the search and of both baselines."""
    import health_ml.lightning_container  # noqa: F401  not a part of the search: every run needs it

    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_package(folder)
        measured = cpu_seconds(lambda: search(folder))
        parsing = cpu_seconds(lambda: parse_sample(folder)) * MODULE_COUNT / SAMPLE
        importing = cpu_seconds(import_sample) * MODULE_COUNT / SAMPLE
    title = f"model search in {MODULE_COUNT} modules, CPU time"
    return [
        Row(f"{title} (baseline: import each)", measured, importing, measured / importing, "value < 0.2"),
        Row(f"{title} (baseline: parse each)", measured, parsing, measured / parsing, "value < 0.2"),
    ]
