"""Where this process runs: the one place that reads environment variables, and the helpers that restore them.

``os.environ`` and ``os.chdir`` are used here and in :mod:`health_ml.cli.process` only. Everything else gets a
:class:`RunEnvironment`, which tests build from a dictionary.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from health_ml.errors import ArgumentsError, PlanError
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
    ENV_TRIAL,
)


@dataclass(frozen=True)
class RunEnvironment:
    """Facts about the process, read once from a mapping of environment variables.

    :param rank: Global rank, 0 to ``world_size - 1``.
    :param local_rank: Rank on this node.
    :param node_rank: Index of this node, 0 to ``num_nodes - 1``.
    :param world_size: Number of processes over all nodes, 1 if nobody said.
    :param started_per_node: How many processes on each node somebody else has started, None if nobody said. If it is
        one, this process starts the others, one for each GPU.
    :param slurm_tasks: How many processes ``srun`` of SLURM has started together with this one, 1 if it has not.
    :param main_address: Host name of node 0, or None outside a distributed run.
    :param main_port: Port of the rendezvous on node 0, or None.
    :param run_id: Id of the run if the process that started this one has fixed it.
    :param run_folder: Folder of the run if the process that started this one has fixed it.
    :param start_directory: Where the user typed the command if that is not the current directory.
    :param project_root: Folder of the store of runs if that is not the start directory.
    :param fan_out_folder: Run folder of the fan-out that this run is a trial of.
    :param is_marked_as_trial: True for a trial of a fan-out whose folder it cannot see.
    :param attempt: How often the run was restarted after a preemption.
    :param is_in_azureml: True inside an AzureML job.
    :param parent_id: Id of the sweep or pipeline in AzureML that this run is a child of, or None.
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
    started_per_node: int | None = None
    slurm_tasks: int = 1
    main_address: str | None = None
    main_port: int | None = None
    run_id: str | None = None
    run_folder: Path | None = None
    start_directory: Path | None = None
    project_root: Path | None = None
    fan_out_folder: Path | None = None
    is_marked_as_trial: bool = False
    attempt: int = 0
    is_in_azureml: bool = False
    parent_id: str | None = None
    parent: int | None = None
    scheduled_events: str = ""
    simulated_preemption: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> RunEnvironment:
        """Returns the facts that the given environment variables state.

        Understands the variables of torchrun, Lightning and PyTorch jobs in AzureML (RANK, LOCAL_RANK, NODE_RANK,
        GROUP_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), of Open MPI (OMPI_COMM_WORLD_*) with the address of node 0
        as AzureML tells it (AZ_BATCH_MASTER_NODE, AZ_BATCHAI_MPI_MASTER_NODE, MASTER_IP), and of AzureML itself
        (AZUREML_RUN_ID, AZUREML_ROOT_RUN_ID).

        :raises ArgumentsError: If a variable that has to be a number is none, naming all such variables at once, or
            if an address cannot be read.
        """
        reader = _NumberReader(environ)
        local_rank = reader.first("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", default=0)
        per_node = reader.first("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", default=0) or None
        mpi_rank = reader.first("OMPI_COMM_WORLD_RANK", default=0)
        node_rank = reader.first("NODE_RANK", "GROUP_RANK", default=mpi_rank // (per_node or 1))
        address, port = _main_node(environ)
        run_id = environ.get("AZUREML_RUN_ID") or None
        environment = cls(
            rank=reader.first("RANK", "OMPI_COMM_WORLD_RANK", default=local_rank if node_rank == 0 else node_rank),
            local_rank=local_rank,
            node_rank=node_rank,
            world_size=reader.first("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", default=1),
            started_per_node=per_node,
            slurm_tasks=reader.first("SLURM_STEP_NUM_TASKS", default=1),
            main_address=address,
            main_port=reader.first("MASTER_PORT", default=0) or port,
            run_id=environ.get(ENV_RUN_ID) or run_id,
            run_folder=_folder(environ, ENV_RUN_FOLDER),
            start_directory=_folder(environ, ENV_START_DIRECTORY),
            project_root=_folder(environ, ENV_PROJECT_ROOT),
            fan_out_folder=_folder(environ, ENV_FAN_OUT_FOLDER),
            is_marked_as_trial=bool(environ.get(ENV_TRIAL)),
            attempt=reader.first(ENV_ATTEMPT, default=0),
            is_in_azureml=run_id is not None,
            parent_id=_parent_of(run_id, environ),
            parent=reader.first(ENV_PARENT, default=0) or None,
            scheduled_events=environ.get(ENV_SCHEDULED_EVENTS, ""),
            simulated_preemption=environ.get(ENV_SIMULATED_PREEMPTION) or None,
        )
        reader.raise_problems()
        return environment

    def launch_variables(self, num_nodes: int) -> dict[str, str | None]:
        """Returns the environment variables with which Lightning finds the other processes of the run.

        AzureML starts one process on each of several nodes, which then starts one for each GPU: that process has to
        know its node and the first one, but must not look as if somebody had started its siblings already. Where all
        processes were started from outside, each gets its place.

        :param num_nodes: Number of machines that train together.
        :raises PlanError: If there are several and nobody has said which the first one is.
        """
        if not self.is_in_azureml or self.is_child_of_runner:
            return {}
        if num_nodes > 1 and self.main_address is None:
            raise PlanError(
                f"This job is for {num_nodes} machines, but no variable says which the first one is.",
                "AzureML sets MASTER_ADDR for PyTorch jobs and AZ_BATCH_MASTER_NODE for MPI jobs; submit it with "
                "himl-runner --cluster=… --num_nodes=….",
            )
        variables: dict[str, str | None] = dict.fromkeys(_LAUNCH_VARIABLES)
        if num_nodes > 1 or self.world_size > num_nodes:
            variables["MASTER_ADDR"] = self.main_address or _LOCAL_HOST
            variables["MASTER_PORT"] = str(self.main_port or DEFAULT_MAIN_PORT)
            variables["NODE_RANK"] = str(self.node_rank)
        per_node = self.started_per_node or max(1, self.world_size // num_nodes)
        if per_node > 1:
            variables |= {
                "RANK": str(self.rank),
                "LOCAL_RANK": str(self.local_rank),
                "LOCAL_WORLD_SIZE": str(per_node),
                "WORLD_SIZE": str(self.world_size),
            }
        return variables

    @property
    def is_one_of_several(self) -> bool:
        """True if somebody has started other processes together with this one."""
        return max(self.world_size, self.started_per_node or 1, self.slurm_tasks, self.rank + 1) > 1

    @property
    def is_child_of_runner(self) -> bool:
        """True if another process of the same run has started this one."""
        return self.start_directory is not None

    @property
    def is_alone(self) -> bool:
        """True for the first process of a run that is neither a job in AzureML nor a trial."""
        return self.is_global_rank_zero and not self.is_in_azureml and self.fan_out_folder is None

    @property
    def is_trial(self) -> bool:
        """True for a trial of a fan-out, which must not become a fan-out itself."""
        return self.is_marked_as_trial or self.fan_out_folder is not None

    @property
    def is_local_rank_zero(self) -> bool:
        """True in the first process on this node."""
        return self.local_rank == 0

    @property
    def is_global_rank_zero(self) -> bool:
        """True in the first process of the run: the one that writes the record and prints the summary."""
        return self.rank == 0 and self.local_rank == 0 and self.node_rank == 0


DEFAULT_MAIN_PORT = 6105
"""Port of the rendezvous on node 0 where nobody has chosen one."""
_LOCAL_HOST = "127.0.0.1"
_LAUNCH_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
)  # fmt: skip


def _main_node(environ: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Returns address and port of node 0, as far as they are known.

    :raises ArgumentsError: If the address is in a form that nobody knows.
    """
    if address := environ.get("MASTER_ADDR"):
        return address, None
    if node := environ.get("AZ_BATCH_MASTER_NODE"):
        host, _, port = node.partition(":")
        if not host or (":" in node and not (port.isascii() and port.isdigit())):
            raise ArgumentsError(
                f"Format not recognized: AZ_BATCH_MASTER_NODE={node!r}.", "It has to be an address, or address:port."
            )
        return host, int(port) if port else None
    node = environ.get("AZ_BATCHAI_MPI_MASTER_NODE", "")
    if node and node != "localhost":
        return node, None
    return environ.get("MASTER_IP") or None, None


def _parent_of(run_id: str | None, environ: Mapping[str, str]) -> str | None:
    root = environ.get("AZUREML_ROOT_RUN_ID") or run_id
    return root if root != run_id else None


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


_MOST_DIGITS = 9


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
            if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
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
def paused_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for unreachable objects while large packages are imported.

    Imports make millions of objects that stay. Looking through all of them again and again takes a quarter of the time
    that the import of torch and Lightning takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def working_directory(folder: Path) -> Iterator[Path]:
    """Makes a folder the working directory and goes back at the end, also after an error."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
