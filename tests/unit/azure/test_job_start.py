"""The program that starts a job, which runs alone on a node."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from health_ml.azure import job_start

SHOW = "import os, sys, json; print(json.dumps([sys.argv[1:], os.environ.get('PYTHONPATH')]))"


def start(folder: Path, *arguments: str, **variables: str) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-I", job_start.__file__, *arguments], cwd=folder, env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    found: list[object] = json.loads(done.stdout)
    return found


def test_a_command_of_its_own(tmp_path: Path) -> None:
    odd = ["a b", "$HOME", "'", "\n", ""]
    assert start(tmp_path, sys.executable, "-c", SHOW, *odd) == [odd, None]


def test_the_runner_that_travelled_wins(tmp_path: Path) -> None:
    package = tmp_path / ".himl_runner" / "health_ml"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "runner.py").write_text(SHOW)
    path = str(tmp_path / ".himl_runner")
    assert start(tmp_path, "himl-runner", "--tag=a b", PYTHONPATH="") == [["--tag=a b"], path]
    assert start(tmp_path, "himl-runner", PYTHONPATH="/mine") == [[], f"{path}:/mine"]


def test_the_installed_runner_is_used_where_none_travelled(tmp_path: Path) -> None:
    command, variables = job_start.command_for(["himl-runner", "--x"], tmp_path, {"A": "1"})
    assert (command, variables) == (["himl-runner", "--x"], {"A": "1"})


def test_archives_and_permissions_are_prepared_and_nothing_breaks_when_it_is_done_twice(tmp_path: Path) -> None:
    packs = tmp_path / job_start.PACKS_FOLDER
    packs.mkdir(parents=True)
    with zipfile.ZipFile(packs / "0000.zip", "w") as archive:
        archive.writestr("sub/ünï.txt", "content")
        archive.writestr("run.sh", "#!/bin/sh\n")
    (tmp_path / job_start.EXECUTABLES_FILE).write_text(json.dumps(["run.sh"]))
    for _ in range(2):
        job_start.prepare(tmp_path)
        assert (tmp_path / "sub" / "ünï.txt").read_text() == "content"
        assert (tmp_path / "run.sh").stat().st_mode & 0o777 == 0o755
    assert {path.name for path in tmp_path.iterdir()} == {".himl_runner", "sub", "run.sh"}
