"""Runs ``himl-runner`` inside a test, without a process of its own.

.. code-block:: python

    from health_ml.testing import invoke

    def test_model_learns(tmp_path):
        run = invoke(["--model=moons.Moons", "--max_epochs=5"], folder=tmp_path)
        assert run.exit_code == 0, run.stderr
        assert run.metrics["test/accuracy"] > 0.9

    def test_the_right_job_is_submitted(tmp_path):
        with memory_backend() as backend:
            assert invoke(["--model=moons.Moons", "--cluster=memory"], folder=tmp_path).exit_code == 0
        assert backend.runs[0].request.plan.argv == ("--model=moons.Moons",)
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from health_ml import runner
from health_ml.environment import environment_variables, working_directory

if TYPE_CHECKING:
    from health_ml.backends.base import BackendContext
    from health_ml.backends.memory import MemoryBackend, MemoryRunHandle
    from health_ml.records.reader import RecordView
    from health_ml.training.result import RunResult


@dataclass(frozen=True)
class Invocation:
    """What a command line did.

    :param exit_code: Exit code that the process would have had.
    :param stdout: What it printed on standard output.
    :param stderr: What it printed on standard error: log messages and errors.
    :param result: How the run ended; None if there was no run, or if it failed with an error.
    """

    exit_code: int
    stdout: str
    stderr: str
    result: RunResult | None

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric, by name.

        :raises AssertionError: If the command line did not complete a run, with what it printed.
        """
        return self._required_result().metrics

    @property
    def run_folder(self) -> Path:
        """The folder of the run.

        :raises AssertionError: If the command line did not complete a run, with what it printed.
        """
        return self._required_result().paths.outputs

    @property
    def record(self) -> RecordView:
        """The record of the run: metrics, hyperparameters, tags and status.

        :raises AssertionError: If the command line did not complete a run, with what it printed.
        """
        from health_ml.records.reader import read_record

        return read_record(self.run_folder)

    def _required_result(self) -> RunResult:
        if self.result is None:
            raise AssertionError(f"No run was completed (exit code {self.exit_code}).\n{self.stdout}{self.stderr}")
        return self.result


def invoke(
    argv: Sequence[str], *, folder: Path | None = None, environment: Mapping[str, str | None] | None = None
) -> Invocation:
    """Returns what ``himl-runner`` does with the given arguments, run in this process.

    Working directory, environment variables, import path, logging and signal handlers are as before when it returns.
    If a folder is given, modules are imported from it as a new process would, and forgotten afterwards. What other
    processes print, for example the further ranks of a distributed training, is not in the result.

    :param argv: The arguments after ``himl-runner``.
    :param folder: Where the command is typed. Default: the working directory.
    :param environment: Environment variables to set for the call; None removes one.
    """
    results: list[RunResult] = []
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        working_directory(folder or Path.cwd()),
        environment_variables(environment or {}),
        _own_modules(folder),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        exit_code = runner.main(argv, on_result=results.append)
    return Invocation(exit_code, stdout.getvalue(), stderr.getvalue(), results[0] if results else None)


@contextmanager
def memory_backend(on_submit: Callable[[MemoryRunHandle], None] | None = None) -> Iterator[MemoryBackend]:
    """Makes ``--cluster=memory`` submit to a back end that runs nothing, and gives that back end.

    What was submitted is in its ``runs``: the plan, the request, and what the test says happens in each run.

    :param on_submit: Called with every new run, for example to end it at once.
    """
    from health_ml.backends.memory import MemoryBackend
    from health_ml.backends.registry import registered_backend

    backend = MemoryBackend(on_submit)

    class Shared(MemoryBackend):
        @classmethod
        def create(cls, context: BackendContext) -> MemoryBackend:
            return backend

    with registered_backend(MemoryBackend.name, Shared):
        yield backend


@contextmanager
def _own_modules(folder: Path | None) -> Iterator[None]:
    """Lets a folder import its own modules, as in a new process, and puts everything back.

    Two projects may use the same names. What is loaded under the name of a module of the folder is set aside, and what
    the body imports from the folder is forgotten. Installed packages stay, also if they are below the folder.
    """
    if folder is None:
        yield
        return
    names = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or _has_modules(entry)}
    set_aside = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] in names and _is_users(name, module)
    }
    for name in set_aside:
        del sys.modules[name]
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if _is_users(name, sys.modules[name], folder.resolve()):
                del sys.modules[name]
        sys.modules.update(set_aside)


def _has_modules(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.py"))


def _is_users(name: str, module: ModuleType, folder: Path | None = None) -> bool:
    """True for a module that is neither of the standard library nor installed, and in the folder if one is given."""
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if place is None or name == "__main__" or name.split(".")[0] in {"health_ml", *sys.stdlib_module_names}:
        return False
    path = Path(place).resolve()
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return not is_installed and (folder is None or path.is_relative_to(folder))
