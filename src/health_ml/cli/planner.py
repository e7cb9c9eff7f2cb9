"""From a checked command line to a plan: pure, so that a plan can be shown, compared and tested without starting it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from health_ml.cli.job_arguments import Travels, job_arguments, nothing_travels
from health_ml.cli.parse import ParsedCommand
from health_ml.cli.tokens import tokenize
from health_ml.lightning_container import LightningContainer
from health_ml.planning.duration import parse_duration
from health_ml.planning.plan import JobPlan, PlannedDataset, PlannedLimits, Provenance, pairs_of
from health_ml.planning.provenance import GitState
from health_ml.planning.secrets import mask_arguments
from health_ml.planning.snapshot import Snapshot
from health_ml.settings import ENV_EXPERIMENT_NAME


def plan_job(
    parsed: ParsedCommand,
    *,
    start_directory: Path,
    environ: Mapping[str, str],
    snapshot: Snapshot | None = None,
    git_state: GitState | None = None,
) -> JobPlan:
    """Returns the plan of what a command line asks for.

    :param parsed: The command line.
    :param start_directory: Where it was typed.
    :param environ: The environment variables of this process.
    :param snapshot: The files that travel; None if the plan runs in the user's own folder.
    :param git_state: The state of the code, or None outside a repository.
    :raises PlanError: If a value of the command line cannot be handed to a job.
    """
    config, container = parsed.experiment_config, parsed.container
    max_run_seconds = parse_duration(config.max_run_duration) if config.max_run_duration else None
    return JobPlan(
        model=config.model,
        argv=job_arguments(
            parsed.typed,
            parsed.givens,
            parsed.parameters,
            start_directory=start_directory,
            travels=travels_with(snapshot) if snapshot else nothing_travels,
        ),
        snapshot_hash=snapshot.content_hash if snapshot else "",
        experiment=environ.get(ENV_EXPERIMENT_NAME) or container.effective_experiment_name,
        display_name=container.tag,
        seed=container.get_effective_random_seed(),
        datasets=_datasets(container, is_mounted=config.mount_in_azureml),
        environment_variables=pairs_of(container.get_additional_environment_variables()),
        conda_env=str(config.conda_env or ""),
        num_nodes=config.num_nodes,
        limits=PlannedLimits(max_run_seconds, config.docker_shm_size),
        tags=pairs_of(
            {
                "tag": container.tag,
                "commandline_args": shlex.join(mask_arguments(_without_planning(parsed.argv))),
                **container.get_additional_aml_run_tags(),
            }
        ),
        search_space=parsed.search_space,
        provenance=Provenance.of(git_state) if git_state else None,
    )


def travelling_state(state: GitState, snapshot: Snapshot, start_directory: Path) -> GitState:
    """Returns the state of the code in which only those untracked files are listed that travel."""
    travels = travels_with(snapshot)

    def is_in_snapshot(path: str) -> bool:
        absolute = state.root / path
        return absolute.is_relative_to(start_directory) and travels(absolute.relative_to(start_directory))

    return replace(state, untracked=tuple(path for path in state.untracked if is_in_snapshot(path)))


def travels_with(snapshot: Snapshot) -> Travels:
    """Returns a function that tells whether a file or folder is in the snapshot."""
    places = {parent.as_posix() for file in snapshot.files for parent in (Path(file.path), *Path(file.path).parents)}
    return lambda path: path.as_posix() in places


def _without_planning(argv: Sequence[str]) -> list[str]:
    """Returns the command line without the flags that only show the plan, so that they do not change it."""
    names = ("dry_run", "print_plan")
    line = tokenize(argv)
    kept = [token for token in line.tokens if token.name not in names]
    return [word for token in kept for word in token.words]


def _datasets(container: LightningContainer, *, is_mounted: bool) -> tuple[PlannedDataset, ...]:
    pairs = zip_longest(container.azure_datasets, container.local_datasets)
    return tuple(
        PlannedDataset(name or "", str(folder) if folder else "", is_mounted and bool(name)) for name, folder in pairs
    )
