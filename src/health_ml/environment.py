"""Where this process runs: the one place that reads environment variables, and the helpers that restore them.

``os.environ`` and ``os.chdir`` are used here and in :mod:`health_ml.runner` only. Everything else gets a
:class:`RunEnvironment`, which tests build from a dictionary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from health_ml.errors import ArgumentsError
from health_ml.settings import (
    ENV_ATTEMPT,
    ENV_FAN_OUT_FOLDER,
    ENV_PARENT,
    ENV_PROJECT_ROOT,
    ENV_RUN_FOLDER,
    ENV_RUN_ID,
    ENV_SCHEDULED_EVENTS,
    ENV_SIMULATED_PREEMPTION,
    ENV_START_DIRECTORY,
)


@dataclass(frozen=True)
class RunEnvironment:
    """Facts about the process, read once from a mapping of environment variables.

    :param rank: Global rank, 0 to ``world_size - 1``.
    :param local_rank: Rank on this node.
    :param node_rank: Index of this node, 0 to ``num_nodes - 1``.
    :param world_size: Number of processes over all nodes, 1 if nobody said.
    :param main_address: Host name of node 0, or None outside a distributed run.
    :param main_port: Port of the rendezvous on node 0, or None.
    :param run_id: Id of the run if the process that started this one has fixed it.
    :param run_folder: Folder of the run if the process that started this one has fixed it.
    :param start_directory: Where the user typed the command if that is not the current directory.
    :param project_root: Folder of the store of runs if that is not the start directory.
    :param fan_out_folder: Run folder of the fan-out that this run is a trial of.
    :param attempt: How often the run was restarted after a preemption.
    :param is_in_azureml: True inside an AzureML job.
    :param parent: Id of the process without which this one is of no use, or None.
    :param scheduled_events: ``on``, ``off`` or an address: where Azure announces that it takes the machine back. Empty:
        on, if this is a virtual machine in Azure.
    :param simulated_preemption: In a process that ``--simulate_preemption`` has started: where it is interrupted,
        ``none`` for nowhere. None in any other process.
    """

    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1
    main_address: str | None = None
    main_port: int | None = None
    run_id: str | None = None
    run_folder: Path | None = None
    start_directory: Path | None = None
    project_root: Path | None = None
    fan_out_folder: Path | None = None
    attempt: int = 0
    is_in_azureml: bool = False
    parent: int | None = None
    scheduled_events: str = ""
    simulated_preemption: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> RunEnvironment:
        """Returns the facts that the given environment variables state.

        Understands the variables of torchrun and Lightning (RANK, LOCAL_RANK, NODE_RANK, GROUP_RANK, WORLD_SIZE,
        MASTER_ADDR, MASTER_PORT), of Open MPI as AzureML starts it (OMPI_COMM_WORLD_*), and of AzureML
        (AZUREML_RUN_ID).

        :raises ArgumentsError: If a variable that has to be a number is none, naming all such variables at once.
        """
        reader = _NumberReader(environ)
        local_rank = reader.first("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", default=0)
        node_rank = reader.first("NODE_RANK", "GROUP_RANK", default=0)
        environment = cls(
            rank=reader.first("RANK", "OMPI_COMM_WORLD_RANK", default=local_rank if node_rank == 0 else node_rank),
            local_rank=local_rank,
            node_rank=node_rank,
            world_size=reader.first("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", default=1),
            main_address=environ.get("MASTER_ADDR") or None,
            main_port=reader.first("MASTER_PORT", default=0) or None,
            run_id=environ.get(ENV_RUN_ID) or environ.get("AZUREML_RUN_ID") or None,
            run_folder=_folder(environ, ENV_RUN_FOLDER),
            start_directory=_folder(environ, ENV_START_DIRECTORY),
            project_root=_folder(environ, ENV_PROJECT_ROOT),
            fan_out_folder=_folder(environ, ENV_FAN_OUT_FOLDER),
            attempt=reader.first(ENV_ATTEMPT, default=0),
            is_in_azureml="AZUREML_RUN_ID" in environ,
            parent=reader.first(ENV_PARENT, default=0) or None,
            scheduled_events=environ.get(ENV_SCHEDULED_EVENTS, ""),
            simulated_preemption=environ.get(ENV_SIMULATED_PREEMPTION) or None,
        )
        reader.raise_problems()
        return environment

    @property
    def is_local_rank_zero(self) -> bool:
        """True in the first process on this node."""
        return self.local_rank == 0

    @property
    def is_global_rank_zero(self) -> bool:
        """True in the first process of the run: the one that writes the record and prints the summary."""
        return self.rank == 0 and self.local_rank == 0 and self.node_rank == 0


def _folder(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name)
    return Path(text) if text else None


@dataclass(frozen=True)
class Place:
    """Where a command was typed, or where a job or a trial stands for that.

    :param start_directory: The folder in which the model is searched, and where relative paths start.
    :param project_root: Folder of the store of runs and of MLflow.
    """

    start_directory: Path
    project_root: Path

    @classmethod
    def of(cls, environment: RunEnvironment, current_directory: Path) -> Place:
        """Returns the place of a command."""
        start_directory = environment.start_directory or current_directory
        return cls(start_directory, environment.project_root or start_directory)


class _NumberReader:
    """Reads whole numbers from environment variables and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def first(self, *names: str, default: int) -> int:
        """Returns the value of the first variable that is set and not empty, or the default."""
        for name in names:
            text = self._environ.get(name, "")
            if not text:
                continue
            if text.isascii() and text.isdigit():
                return int(text)
            self._problems.append(f"{name}={text!r}")
        return default

    def raise_problems(self) -> None:
        """Raises one error for all variables that are not whole numbers."""
        if self._problems:
            raise ArgumentsError(
                f"These environment variables have to be whole numbers from 0: {', '.join(self._problems)}.",
                "Unset them, or set them as torchrun, Lightning or MPI do.",
            )


def process_environment() -> dict[str, str]:
    """Returns a copy of the environment variables of this process."""
    return dict(os.environ)


@contextmanager
def environment_variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets environment variables (None removes one) and puts back what was there before, also after an error."""
    before = {name: os.environ.get(name) for name in values}
    try:
        set_environment_variables(values)
        yield
    finally:
        set_environment_variables(before)


def set_environment_variables(values: Mapping[str, str | None]) -> None:
    """Sets environment variables (None removes one); a caller further up has to restore them."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def restored_environment() -> Iterator[None]:
    """Restores all environment variables at the end, whatever the body did to them."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def working_directory(folder: Path) -> Iterator[Path]:
    """Makes a folder the working directory and goes back at the end, also after an error."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
