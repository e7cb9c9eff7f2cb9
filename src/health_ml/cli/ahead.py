"""What is started before the model is imported, because both take seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from health_ml.cli.draft import Draft
from health_ml.environment import Place, RunEnvironment, process_environment
from health_ml.experiment_config import ExperimentConfig

if TYPE_CHECKING:
    from health_ml.backends.fan_out import WarmProcesses
    from health_ml.cli.early import EarlyBackend
    from health_ml.records.mirror import WaitingMirror


class Start(Enum):
    """What becomes of the run, or the trials, that a command line describes."""

    NEVER = "only the plan is shown"
    AS_JOB = "submitted to a cluster"
    INTERRUPTED = "run by this process in others, and interrupted"
    HERE = "run in this process; trials in its children"

    @classmethod
    def of(cls, config: ExperimentConfig, environment: RunEnvironment, *, only_plans: bool) -> Start:
        """Returns what the flags say; a process that a job or an interrupted run has started runs it."""
        if only_plans:
            return cls.NEVER
        if config.cluster and not environment.is_in_azureml:
            return cls.AS_JOB
        if config.simulate_preemption and environment.simulated_preemption is None:
            return cls.INTERRUPTED
        return cls.HERE


@dataclass(frozen=True)
class Ahead:
    """What was started ahead, as far as it can be told from the flags: one of these, or nothing.

    :param mirror: The process that will copy the record of a run.
    :param processes: Processes for trials.
    :param backend: The back end of a job, which signs in.
    """

    mirror: WaitingMirror | None = None
    processes: WarmProcesses | None = None
    backend: EarlyBackend | None = None


@contextmanager
def started_ahead(draft: Draft, place: Place, *, start: Start, environment: RunEnvironment) -> Iterator[Ahead]:
    """Starts what will be needed, and ends what was not used."""
    if start is Start.AS_JOB:
        from health_ml.cli.early import early_backend

        with early_backend(draft, place) as backend:
            yield Ahead(backend=backend)
    elif start is not Start.HERE:
        yield Ahead()
    elif draft.asks_for_several and not environment.is_trial:
        from health_ml.cli.fan_out_here import warm_processes

        with warm_processes(draft, place) as processes:
            yield Ahead(processes=processes)
    else:
        with _mirror_of_run(draft, place.project_root, environment) as mirror:
            yield Ahead(mirror=mirror)


def _mirror_of_run(
    draft: Draft, project_root: Path, environment: RunEnvironment
) -> AbstractContextManager[WaitingMirror | None]:
    """Starts the process of the mirror if it will be needed."""
    will_be_run = bool(draft.config.model) and not draft.problems
    is_mirrored_by_fan_out = environment.fan_out_folder is not None
    if not will_be_run or not environment.is_global_rank_zero or is_mirrored_by_fan_out:
        return nullcontext()
    return waiting_mirror(draft, project_root)


@contextmanager
def waiting_mirror(draft: Draft, project_root: Path) -> Iterator[WaitingMirror | None]:
    """Starts the process of the mirror, which loads MLflow meanwhile, unless nothing is mirrored."""
    from health_ml.records.tracking import NO_TRACKING, resolve_tracking_uri

    uri = resolve_tracking_uri(draft.config.tracking_uri, environ=process_environment(), project_root=project_root)
    if uri == NO_TRACKING:
        yield None
        return
    from health_ml.records.mirror import WaitingMirror

    mirror = WaitingMirror()
    try:
        yield mirror
    finally:
        mirror.close()
