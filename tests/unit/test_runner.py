"""The boundary to the shell: exit codes, what is printed where, and what is put back."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from health_ml import __version__, runner
from health_ml.environment import environment_variables, restored_environment, working_directory
from health_ml.records.record import RunRecord, RunStatus
from health_ml.runner import main
from tests.helpers.process import run_himl

ALLOWED = {"--version": {"param", "yaml"}, "--help": {"param", "yaml"}, "--completion=bash": {"param", "yaml"}}
"""Packages outside the standard library that commands without a model may load."""

COMPILED_INTO_YAML = ("_cython", "cython_runtime", "_yaml")

CONTAINER = '''
import logging
import os
import sys

import param
from health_ml.lightning_container import LightningContainer


class Failing(LightningContainer):
    """Fails in the way that is asked for, after it has changed what it can."""

    way = param.String(default="value")

    def set_model_variant(self, variant_name):
        os.environ["LEFT_BEHIND"] = "1"
        os.chdir("/")
        sys.path.append("/left/behind")
        logging.getLogger("users").debug("a debug message")
        if variant_name == "error":
            raise RuntimeError("the variant is broken")
        if variant_name == "interrupt":
            raise KeyboardInterrupt

    def set_typed_parameters(self, names):
        if self.way == "unexpected":
            raise RuntimeError("nobody expects this method here")
        super().set_typed_parameters(names)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "failing_for_runner.py").write_text(CONTAINER)
    return tmp_path


@pytest.fixture(autouse=True)
def _modules() -> None:
    sys.modules.pop("failing_for_runner", None)


def in_folder(folder: Path, *arguments: str) -> int:
    with working_directory(folder):
        return main(["--model=failing_for_runner.Failing", *arguments])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"himl-runner {__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out.startswith("usage: himl-runner --model=NAME")


@pytest.mark.parametrize("flag", sorted(ALLOWED))
def test_commands_without_a_model_load_little(flag: str) -> None:
    code = (
        f"import sys; before = set(sys.modules); from health_ml.runner import main; main([{flag!r}])\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before}, file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ)
    )
    loaded = set(finished.stderr.split()) - set(sys.stdlib_module_names) - {"health_ml"}
    assert {name for name in loaded if not name.startswith(COMPILED_INTO_YAML)} <= ALLOWED[flag]


def test_an_error_is_one_paragraph_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model=HelloWorld", "--max_epochs=0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "himl-runner: --max_epochs=0: Parameter 'max_epochs' must be at least 1, not 0. See himl-runner "
        "--model=HelloWorld --help.\n"
    )


def test_an_error_with_its_traceback_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with environment_variables({"HIML_FULL_ERROR": "1"}):
        assert main([]) == 2
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert "himl-runner: Parameter 'model' needs to be set" in printed


def test_several_errors_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model=HelloWorld", "--max_epochs=0", "--num_nodes=0"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  - --num_nodes=0: Parameter 'num_nodes' must be at least 1, not 0.",
        "  - --max_epochs=0: Parameter 'max_epochs' must be at least 1, not 0.",
        "See himl-runner --model=HelloWorld --help.",
    ]


def test_an_error_in_another_process_of_the_run_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    with environment_variables({"LOCAL_RANK": "1"}):
        assert main([]) == 2
    assert capsys.readouterr().err.startswith("himl-runner (process 1): Parameter 'model'")


def test_an_environment_that_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    with environment_variables({"WORLD_SIZE": "two"}):
        assert main(["--model=HelloWorld"]) == 2
    assert "WORLD_SIZE='two'" in capsys.readouterr().err


def test_an_unexpected_error_shows_the_lines_of_the_user(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_folder(folder, "--way=unexpected") == 1
    printed = capsys.readouterr().err
    assert 'raise RuntimeError("nobody expects this method here")' in printed
    assert "health_ml/cli" not in printed
    assert printed.endswith("himl-runner: The run failed with RuntimeError, see above.\n")


def test_a_failing_method_is_named_without_a_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_folder(folder, "--model_variant=error") == 2
    printed = capsys.readouterr().err
    assert printed.startswith(
        "himl-runner: Failing.set_model_variant failed with RuntimeError: the variant is broken ("
    )
    assert "Traceback" not in printed


def test_interruption(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_folder(folder, "--model_variant=interrupt") == 130
    assert capsys.readouterr().err == "himl-runner: Interrupted.\n"


def test_the_process_is_left_as_it_was(folder: Path) -> None:
    def state() -> tuple[object, ...]:
        root = logging.getLogger()
        return dict(os.environ), Path.cwd(), list(sys.path), list(root.handlers), root.level

    before = state()
    assert in_folder(folder, "--print_config") == 0
    assert in_folder(folder, "--model_variant=error") == 2
    assert state() == before


def test_debug_messages_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_folder(folder, "--print_config", "--log_level=DEBUG") == 0
    assert "DEBUG    a debug message" in capsys.readouterr().err
    assert in_folder(folder, "--print_config") == 0
    assert "a debug message" not in capsys.readouterr().err


def test_relative_paths_of_another_rank_are_those_of_the_first(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    with environment_variables({"HIML_START_DIRECTORY": str(folder), "LOCAL_RANK": "1"}):
        assert in_folder(tmp_path_factory.mktemp("elsewhere"), "--print_config", "--output_to=results") == 0
    assert f"output_to: {folder}/results  # command line" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m health_ml.runner --help | head -n 1; echo "${{PIPESTATUS[0]}}"'
    finished = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert finished.stdout.splitlines() == ["usage: himl-runner --model=NAME [--FLAG=VALUE ...]", "0"]
    assert finished.stderr == ""


def test_the_working_directory_is_gone(tmp_path: Path) -> None:
    command = f'mkdir gone && cd gone && rmdir ../gone && "{sys.executable}" -m health_ml.runner --help'
    finished = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "himl-runner: The current folder does not exist any more. Change to another folder.\n"


def test_exit_code_of_the_process(tmp_path: Path) -> None:
    finished = run_himl("--no-such-flag", cwd=tmp_path)
    assert finished.returncode == 2
    assert "Parameter 'model' needs to be set" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_sync_of_a_run_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_directory(tmp_path):
        assert main(["--sync=nothing"]) == 2
        assert main(["--sync=nothing", "--max_epochs=3"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith(f"himl-runner: There is no run 'nothing' in {tmp_path}/outputs.")
    assert printed[1] == "himl-runner: --max_epochs has no effect with --sync: leave out. See himl-runner --help."


def test_sync_looks_only_into_folders_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sync=my_run", f"--output_to={tmp_path}/gone"]) == 2
    assert f"--output_to={tmp_path}/gone: there is no such folder." in capsys.readouterr().err


def test_sync_with_a_server_that_is_down_is_one_paragraph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = RunRecord.create(tmp_path / "my_run" / "run", run_id="my_run")
    record.set_status(RunStatus.FINISHED)
    record.close()
    with restored_environment():
        assert main(["--sync=my_run", f"--output_to={tmp_path}", "--tracking_uri=http://127.0.0.1:9"]) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "nobody answers there (connection refused). Type the command again when that has changed." in error
    assert len(error.splitlines()) <= 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flag", ["--version", "--completion=bash", "--help"])
def test_a_full_disk_behind_the_output_is_one_sentence(flag: str, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "health_ml.runner", flag],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr == (
        "himl-runner: Cannot write the output: No space left on device. Free some space, or redirect it.\n"
    )


def test_ctrl_c_that_a_library_turns_into_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(*_: object) -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("half of a module")

    monkeypatch.setattr(runner, "_run", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background ignore the signal
    try:
        assert main(["--version"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
