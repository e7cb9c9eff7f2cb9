"""Shell completion: the candidates, and the scripts in the shells that are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from health_ml.cli.completion import candidates, completion_script
from tests.helpers.police import REPOSITORY

CONTAINER = '''
import param
from health_ml.lightning_container import LightningContainer

class Moons(LightningContainer):
    """A container."""
    noise_level = param.Number(default=0.1)
    number_of_moons: int = param.Integer(default=2)
'''


def test_flags() -> None:
    assert candidates(["--max_n"], folder=REPOSITORY) == ["--max_num_gpus=", "--max_num_gpus_inference="]
    assert candidates(["--pl-det"], folder=REPOSITORY) == ["--pl_deterministic"]
    assert "--config=" in candidates([""], folder=REPOSITORY)


def test_choices() -> None:
    assert candidates(["--mode="], folder=REPOSITORY) == ["--mode=train", "--mode=eval_full"]
    assert candidates(["--optimizer-type=A"], folder=REPOSITORY) == [
        "--optimizer-type=Adam",
        "--optimizer-type=AMSGrad",
    ]
    assert candidates(["--mode", "e"], folder=REPOSITORY) == ["eval_full"]
    assert candidates(["--max_epochs", ""], folder=REPOSITORY) == []


def test_models_and_their_own_flags_come_from_the_source_text(tmp_path: Path) -> None:
    (tmp_path / "moons_for_completion.py").write_text(CONTAINER)
    (tmp_path / "broken.py").write_text("class Container(:")
    assert candidates(["--model=m"], folder=tmp_path) == ["--model=moons_for_completion.Moons"]
    assert candidates(["--model=H"], folder=tmp_path) == ["--model=HelloWorld"]
    words = ["--model=moons_for_completion.Moons", "--n"]
    assert candidates(words, folder=tmp_path) == ["--noise_level=", "--num_nodes=", "--number_of_moons="]
    assert candidates(["--model", "HelloWorld", "--learning"], folder=tmp_path) == ["--learning_rate="]
    assert "moons_for_completion" not in sys.modules


def test_words_that_make_no_sense_complete_to_nothing(tmp_path: Path) -> None:
    assert candidates(["--model=x.y.Z", "--nonsense"], folder=tmp_path) == []
    assert candidates(["--model=..Z", "--unknown=a"], folder=tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_accepted_by_their_shell(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(completion_script(shell))
    assert "himl-runner --complete_words" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True, timeout=30)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("himl-runner --mode=e", ["eval_full"]),
        ("himl-runner --mode ", ["train", "eval_full"]),
        ("himl-runner --model=HelloWorld --batch", ["--batch_size="]),
    ],
)
def test_bash_completes(line: str, expected: list[str], tmp_path: Path) -> None:
    program = tmp_path / "himl-runner"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m health_ml.runner "$@"\n')
    program.chmod(0o755)
    script = f'{completion_script("bash")}\ncompopt() {{ :; }}\nCOMP_LINE="{line}"\nCOMP_POINT=${{#COMP_LINE}}\n'
    script += 'COMP_WORDBREAKS=" ="\n_himl_runner\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    finished = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert finished.stdout.split() == expected
