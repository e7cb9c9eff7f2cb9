"""How the contract suite starts three kinds of runs on each back end: one that ends well, one that fails, one that
runs until it is stopped."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path

from health_ml.backends.base import Backend, RunHandle
from health_ml.backends.local_jobs import LocalBackend
from health_ml.backends.memory import MemoryBackend, MemoryRunHandle
from health_ml.planning.plan import JobPlan
from health_ml.records.record import RunStatus

SHORT = ("--model=HelloWorld", "--max_epochs=1", "--tracking_uri=none")
FAILING = ("--model=HelloWorld", "--max_epochs=none")
ENDLESS = ("--model=HelloWorld", "--max_epochs=1000000", "--tracking_uri=none")


def plan_for(arguments: tuple[str, ...]) -> JobPlan:
    return JobPlan(
        model="HelloWorld", argv=arguments, experiment="HelloWorld", environment_variables=(("OMP_NUM_THREADS", "1"),)
    )


class Adapter(ABC):
    """One back end for the contract suite."""

    backend: Backend

    @abstractmethod
    def another(self) -> Backend:
        """Returns the back end as another process of the user would see it."""

    def submit(self, arguments: tuple[str, ...]) -> RunHandle:
        return self.backend.submit(self.backend.render(plan_for(arguments)))


class LocalAdapter(Adapter):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backend = self.another()

    def another(self) -> LocalBackend:
        return LocalBackend(self.folder, place_code=lambda plan, code: None)


class MemoryAdapter(Adapter):
    """Plays the three kinds of runs, since the in-memory back end runs nothing."""

    def __init__(self) -> None:
        self.backend = MemoryBackend(self._play)
        self.threads: list[threading.Thread] = []

    def another(self) -> Backend:
        return self.backend

    def _play(self, run: MemoryRunHandle) -> None:
        arguments = run.request.plan.argv
        run.write_line("started")
        if arguments == ENDLESS:
            return
        status = RunStatus.FINISHED if arguments == SHORT else RunStatus.FAILED
        run.write_line("FINISHED" if arguments == SHORT else "--max_epochs=none")
        if arguments == SHORT:
            run.files = {"checkpoints/last.ckpt": b"weights", "other.txt": b"text"}
        timer = threading.Timer(0.1, run.end, [status])
        timer.start()
        self.threads.append(timer)
