from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from health_ml.errors import PlanError
from health_ml.planning.conda import complete_environment, find_environment_file, read_environment_file

NEEDED = ("param>=2.1,<3", "PyYAML>=6", "torch>=2.4", "pytorch-lightning>=2.5,<3")


def complete(*pip: str, conda: tuple[str, ...] = ("python=3.11",), version: str = "1.2.3") -> tuple[list[str], bool]:
    text = yaml.safe_dump({"name": "x", "dependencies": [*conda, {"pip": list(pip)}] if pip else list(conda)})
    found = complete_environment(text, requirements=NEEDED, version=version)
    section = yaml.safe_load(found.text)["dependencies"][-1]
    return (section["pip"] if isinstance(section, dict) else []), found.has_runner


def test_the_nearest_file_is_found(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_environment_file(below) in (None, *(folder / "environment.yml" for folder in tmp_path.parents))
    (tmp_path / "environment.yml").touch()
    assert find_environment_file(below) == tmp_path / "environment.yml"
    (tmp_path / "a" / "environment.yml").touch()
    assert find_environment_file(below) == tmp_path / "a" / "environment.yml"


def test_what_the_runner_needs_is_added_where_it_is_not_named() -> None:
    pip, has_runner = complete("Torch==2.13.0", "pyyaml", "mine[extra]>=1 ; python_version>'3'")
    assert pip == ["Torch==2.13.0", "pyyaml", "mine[extra]>=1 ; python_version>'3'", "param>=2.1,<3",
                   "pytorch-lightning>=2.5,<3"]  # fmt: skip
    assert not has_runner


def test_packages_of_conda_count_too() -> None:
    conda = ("python=3.11", "conda-forge::pytorch=2.5", "pytorch-lightning", "pyyaml>=6", "param")
    assert complete(conda=conda) == ([], False)


def test_pip_is_there_when_something_is_added() -> None:
    found = complete_environment("dependencies: [python=3.11]", requirements=("param",), version="1")
    assert yaml.safe_load(found.text) == {"dependencies": ["python=3.11", "pip", {"pip": ["param"]}]}
    assert found.added == ("param",)


@pytest.mark.parametrize(
    ("entry", "version", "has_runner"),
    [
        ("himl-runner==1.2.3", "1.2.3", True),
        ("HIML_runner[v1] == 1.2.3 ; python_version > '3'", "1.2.3", True),
        ("himl-runner", "1.2.3", False),
        ("himl-runner>=1.2.3", "1.2.3", False),
        ("himl-runner==1.2.2", "1.2.3", False),
        ("himl-runner==1.2.3", "1.2.3+source", False),
    ],
)
def test_only_the_very_version_is_the_runner_of_the_job(entry: str, version: str, has_runner: bool) -> None:
    pip, found = complete(entry, version=version)
    assert found is has_runner
    assert pip == [entry], "its own requirements come with it"


def test_the_file_stays_as_it_is_where_nothing_is_missing() -> None:
    text = "# a comment\ndependencies:\n- python=3.11\n- pip: [himl-runner==1.0]\n"
    assert complete_environment(text, requirements=NEEDED, version="1.0").text == text


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("-r requirements.txt", "needs a file"),
        ("--requirement=more.txt", "needs a file"),
        ("-c constraints.txt", "needs a file"),
        ("-e .", "needs a file"),
        ("./wheels/mine.whl", "is a path"),
        ("wheels/mine.whl", "is a file"),
        ("mine @ wheels/mine.tar.gz", "is a file"),
        ("-f wheels", "is a path"),
        ("--find-links=/home/me/wheels", "is a path"),
        ("/home/me/mine", "is a path"),
        ("~/mine", "is a path"),
        ("mine @ file:///home/me/mine.whl", "is a path"),
        ("C:\\code\\mine", "is a path"),
    ],
)
def test_pip_sections_that_cannot_work(tmp_path: Path, entry: str, problem: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(yaml.safe_dump({"dependencies": [{"pip": ["torch", entry, "-r other.txt"]}]}))
    with pytest.raises(PlanError, match=rf"{problem} .*; '-r other\.txt' needs a file"):
        read_environment_file(path)


@pytest.mark.parametrize("entry", ["python=3.8", "python==3.9.1", "python = 2.7", "python=3.9.*"])
def test_versions_of_python_that_are_too_old(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(yaml.safe_dump({"dependencies": [entry, {"pip": ["torch"]}]}))
    with pytest.raises(PlanError, match=rf"asks for {entry}, and himl-runner needs Python 3\.10".replace("*", r"\*")):
        read_environment_file(path)


@pytest.mark.parametrize("entry", ["python=3.10", "python>=3.8", "python", "python=3.13.1", "python-dateutil=2.9"])
def test_versions_of_python_that_work(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(yaml.safe_dump({"dependencies": [entry]}))
    assert entry in read_environment_file(path)


@pytest.mark.parametrize("entry", ["torch", "mine @ https://example.com/mine.whl", "git+https://example.com/x.git",
                                   "-e git+https://example.com/x.git#egg=x", "--index-url=https://x",
                                   "-f https://example.com/wheels.html", "https://example.com/mine.whl"])  # fmt: skip
def test_pip_sections_that_work(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(yaml.safe_dump({"dependencies": ["python", {"pip": [entry]}]}))
    assert entry in read_environment_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dependencies: [", r"(?s)is no YAML: .*\^\n Repair it\.$"),
        (b"name: x", "has no list of dependencies"),
        (b"- python", "has no list of dependencies"),
        (b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_files_that_are_no_environment(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        read_environment_file(path)
