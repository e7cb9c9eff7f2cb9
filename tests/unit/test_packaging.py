"""What is installed is what is here: the wheel, the declared dependencies, the pinned versions, and light imports."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.police import REPOSITORY

HEAVY = {"torch", "pytorch_lightning", "lightning_fabric", "mlflow", "azure", "azureml", "pandas", "numpy", "requests"}


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


def _requirements(section: str, option: str) -> dict[str, Requirement]:
    lines = _setup()[section][option].split("\n")
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line}


def _core() -> dict[str, Requirement]:
    return _requirements("options", "install_requires")


def _development() -> dict[str, Requirement]:
    return _requirements("options.extras_require", "dev")


def _fuzzing() -> dict[str, Requirement]:
    return _requirements("options.extras_require", "fuzz")


def _pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def _run_python(*arguments: str, path: Path, cwd: Path) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


# --- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, without network."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy / name)
    shutil.copytree(REPOSITORY / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    finished = subprocess.run(
        [*command, "--wheel-dir", str(target), str(copy)], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel in a folder, as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_is_named_after_the_version(wheel: Path) -> None:
    from health_ml import __version__

    assert wheel.name == f"himl_runner-{__version__}-py3-none-any.whl"


def test_wheel_has_every_file_of_the_package_and_nothing_else(installed: Path) -> None:
    source = REPOSITORY / "src"
    expected = {
        path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix in {".py", ".csv"}
    } | {Path("health_ml/py.typed")}
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert {path for path in found if ".dist-info" not in str(path)} == expected


def test_wheel_declares_the_command_and_the_license(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info")
    entry_points = (metadata / "entry_points.txt").read_text()
    assert entry_points.strip() == (
        "[console_scripts]\nhiml-download = health_ml.runner:download_entry_point\n"
        "himl-runner = health_ml.runner:console_entry_point\n"
        "himl-tb = health_ml.runner:tensorboard_entry_point"
    )
    assert (metadata / "licenses" / "LICENSE").is_file()
    text = (metadata / "METADATA").read_text()
    assert re.search("^License(-Expression)?: MIT$", text, re.MULTILINE)
    assert "Requires-Python: <3.14,>=3.10" in text


def test_installed_package_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    output = _run_python("-c", "import health_ml; print(health_ml.__file__)", path=installed, cwd=tmp_path)
    assert Path(output.strip()).is_relative_to(installed)


# --- imports --------------------------------------------------------------------------------------------------------


def _loaded_heavy(code: str, path: Path, cwd: Path) -> set[str]:
    tail = "import sys, json; sys.stdout = sys.__stdout__; print(); print(json.dumps(sorted(sys.modules)))"
    output = _run_python("-c", f"{code}\n{tail}", path=path, cwd=cwd)
    return HEAVY & {name.split(".")[0] for name in json.loads(output.splitlines()[-1])}


@pytest.mark.parametrize(
    "code",
    [
        "import health_ml",
        "import health_ml.experiment_config, health_ml.deep_learning_config",
        "from health_ml.runner import main; main(['--version'])",
        "from health_ml.runner import main; main(['--help'])",
        "from health_ml.runner import main; main(['--completion=bash'])",
        "from health_ml.runner import tensorboard_main; tensorboard_main(['--help'])",
        "import health_ml.cli.fan_out_here",  # before it has started what loads everything for the trials
        "from health_ml.runner import main; main(['--model=HelloWorld', '--no_such_flag', '--config=missing.yaml'])",
    ],
)
def test_light_import(code: str, tmp_path: Path) -> None:
    assert _loaded_heavy(code, REPOSITORY / "src", tmp_path) == set()


def test_the_mirror_loads_mlflow_without_torch(tmp_path: Path) -> None:
    code = "from health_ml.records.mlflow_store import load_client; load_client()"
    assert (
        _loaded_heavy(code, REPOSITORY / "src", tmp_path) & {"torch", "pytorch_lightning", "lightning_fabric"} == set()
    )


# --- dependencies ---------------------------------------------------------------------------------------------------


AZURE = {
    "azure-ai-ml": "azure.ai.ml",
    "azure-core": "azure.core",
    "azure-identity": "azure.identity",
    "azure-storage-blob": "azure.storage.blob",
    "azureml-mlflow": None,  # a plugin of MLflow, which loads it
}


def _imported_names(folder: Path) -> dict[str, Path]:
    """Returns the top-level names that any file below a folder imports, each with one file that does."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], file)
    return found


def _distributions_of(names: Mapping[str, Path]) -> dict[str, Path]:
    """Returns the distributions that provide the imported names; the standard library and this package left out."""
    own = {"health_ml", "tests", "benchmarks", "configs", "faults", *sys.stdlib_module_names}
    providers = importlib.metadata.packages_distributions()
    needed: dict[str, Path] = {}
    for name, file in names.items():
        if name not in own and name not in {"azure", "azureml", "atheris"}:
            assert name in providers, f"{file} imports {name}, which is not installed"
            candidates = {canonicalize_name(provider) for provider in providers[name]}
            needed[next((one for one in candidates if one in _core()), min(candidates))] = file
    return needed


def test_imports_of_the_package_are_declared_and_declared_packages_are_imported() -> None:
    needed = _distributions_of(_imported_names(REPOSITORY / "src"))
    undeclared = {name: str(file) for name, file in needed.items() if name not in _core()}
    assert undeclared == {}
    assert sorted(set(_core()) - set(needed) - set(AZURE)) == []


def test_the_packages_of_azure_are_declared_and_imported() -> None:
    """All of them share the name ``azure``, so that imports are compared with the modules that they bring."""
    text = "\n".join(file.read_text() for file in (REPOSITORY / "src").rglob("*.py"))
    imported = set(re.findall(r"(?:from|import) (azure(?:\.\w+)+)", text))
    modules = {name: module for name, module in AZURE.items() if module is not None}
    unknown = [name for name in imported if not any(f"{name}.".startswith(f"{module}.") for module in modules.values())]
    assert unknown == []
    unused = [
        module for module in modules.values() if not any(f"{name}.".startswith(f"{module}.") for name in imported)
    ]
    assert unused == []
    assert sorted(set(AZURE) - set(_core())) == []


def test_imports_of_the_tests_are_declared() -> None:
    names: dict[str, Path] = {}
    for folder in ("tests", "benchmarks", "configs", "docs", "faults"):
        names.update(_imported_names(REPOSITORY / folder))
    declared = {*_core(), *_development(), *_fuzzing(), "packaging", "docutils"}  # these come with pytest and Sphinx
    assert {name: str(file) for name, file in _distributions_of(names).items() if name not in declared} == {}


def test_every_dependency_is_pinned_to_a_version_that_is_allowed() -> None:
    pins = _pins()
    for name, requirement in {**_core(), **_development(), **_fuzzing()}.items():
        assert name in pins, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not allow {pins[name]}"
    assert pins["torch"] == "2.13.0"


def test_pinned_packages_are_what_the_dependencies_need() -> None:
    """Follows the metadata of what is installed, so that constraints.txt is neither short nor grows moss."""
    needed: set[str] = set()
    waiting = [*_core().values(), *_development().values(), *_fuzzing().values()]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in needed and not requirement.extras:
            continue
        needed.add(name)
        try:
            children = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for child in map(Requirement, children):
            extras = ["", *requirement.extras]
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    assert sorted(needed - set(_pins()) - {"pip"}) == []  # every virtual environment has pip
    assert sorted(set(_pins()) - needed) == []


def test_conda_environment_has_the_dependencies_in_their_pinned_versions() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    pip_section = environment["dependencies"][-1]["pip"]
    assert sorted(pip_section) == sorted(
        f"{requirement.name}=={_pins()[name]}" for name, requirement in _core().items()
    )
    assert "python=3.11" in environment["dependencies"]
