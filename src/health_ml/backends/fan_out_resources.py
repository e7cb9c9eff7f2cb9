"""Shares the cores and GPUs of this machine out between trials that run at the same time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from health_ml.errors import PlanError
from health_ml.planning.plan import PlannedTrials
from health_ml.planning.search_space import SearchSpace

ENV_THREADS = "OMP_NUM_THREADS"
"""Read by OpenMP, MKL, OpenBLAS and torch when they are loaded."""
ENV_GPUS = "CUDA_VISIBLE_DEVICES"
MOST_TRIALS_ON_CPU = 8
_GPU_QUERY_SECONDS = 20


@dataclass(frozen=True)
class Slots:
    """Places in which one trial each can run.

    :param count: How many trials run at the same time.
    :param threads: CPU threads of each, or None if the user has chosen a number.
    :param gpus: GPUs of each place, as CUDA names them; empty: no place has its own.
    """

    count: int
    threads: int | None = None
    gpus: tuple[tuple[str, ...], ...] = ()

    @property
    def shared_environment(self) -> dict[str, str]:
        """The environment variables that are the same for all trials."""
        return {} if self.threads is None else {ENV_THREADS: str(self.threads)}

    def environment(self, slot: int) -> dict[str, str]:
        """Returns the environment variables of the trial in one place."""
        return {ENV_GPUS: ",".join(self.gpus[slot])} if self.gpus else {}

    def describe(self) -> str:
        """Returns what a trial gets, for people."""
        parts = [] if self.threads is None else [f"{self.threads} CPU thread{'s' * (self.threads > 1)}"]
        if self.gpus:
            parts.append(f"{len(self.gpus[0])} GPU{'s' * (len(self.gpus[0]) > 1)}")
        return f" with {' and '.join(parts)} each" if parts else ""


def share_out(space: SearchSpace, trials: PlannedTrials, environment: Mapping[str, str]) -> Slots:
    """Returns the places for the trials of a search on this machine.

    :param environment: The environment variables of the trials.
    :raises PlanError: If more trials are to run at the same time than there are GPUs for.
    """
    wanted = space.max_concurrent
    gpus = visible_gpus(environment) if trials.max_num_gpus != 0 else ()
    per_trial = max(1, min(trials.max_num_gpus, len(gpus)))
    cores = usable_cores()
    room = len(gpus) // per_trial if gpus else min(cores, MOST_TRIALS_ON_CPU)
    has_gpu_limit = bool(gpus) or trials.max_num_gpus > 0
    if wanted is not None and has_gpu_limit and wanted > max(1, len(gpus) // per_trial):
        needed = max(1, trials.max_num_gpus)
        raise PlanError(
            f"--max_concurrent_trials={wanted} needs {wanted * needed} GPUs, and this machine has {len(gpus)} "
            f"({needed} for each trial).",
            f"Use --max_concurrent_trials={max(1, len(gpus) // needed)} or less, fewer GPUs per trial with "
            "--max_num_gpus, or --max_num_gpus=0 to train on the CPU.",
        )
    count = max(1, min(room if wanted is None else wanted, space.trial_count))
    return Slots(
        count,
        None if environment.get(ENV_THREADS) else max(1, cores // count),
        tuple(gpus[slot * per_trial : (slot + 1) * per_trial] for slot in range(count)) if gpus else (),
    )


def usable_cores() -> int:
    """Returns the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the names of the GPUs that a process with these environment variables can use."""
    listed = environment.get(ENV_GPUS)
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA ignores what follows an invalid one.
        end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return tuple(names[:end])
    try:
        return tuple(query_gpus("index"))
    except (OSError, subprocess.TimeoutExpired):
        return ()


def query_gpus(*fields: str) -> list[str]:
    """Returns what the driver says about each NVIDIA GPU of the machine; nothing if it is not there, or fails.

    Asks its own program, because asking torch would start CUDA in this process.

    :param fields: What to ask for, by the names that nvidia-smi has for it.
    :raises OSError: If the program cannot be started.
    :raises subprocess.TimeoutExpired: If it hangs.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    answer = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=_GPU_QUERY_SECONDS,
        check=False,
    )
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []
