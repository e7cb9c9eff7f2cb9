"""From a checked command line to a plan: pure, so that a plan can be shown, compared and tested without starting it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from health_ml.cli.job_arguments import Travels, job_arguments, nothing_travels
from health_ml.cli.parse import ParsedCommand
from health_ml.cli.tokens import tokenize
from health_ml.errors import PlanError
from health_ml.planning.datasets import parse_datasets
from health_ml.planning.duration import parse_duration
from health_ml.planning.plan import (
    JobPlan,
    PlannedCompute,
    PlannedDataset,
    PlannedLimits,
    PlannedSoftware,
    PlannedTrials,
    Provenance,
    pairs_of,
)
from health_ml.planning.provenance import GitState
from health_ml.planning.secrets import mask_arguments, mask_text
from health_ml.planning.snapshot import Snapshot
from health_ml.settings import ENV_EXPERIMENT_NAME

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer


def plan_job(
    parsed: ParsedCommand,
    *,
    start_directory: Path,
    environ: Mapping[str, str],
    snapshot: Snapshot | None = None,
    git_state: GitState | None = None,
    software: PlannedSoftware | None = None,
    compute: PlannedCompute | None = None,
) -> JobPlan:
    """Returns the plan of what a command line asks for.

    :param parsed: The command line.
    :param start_directory: Where it was typed.
    :param environ: The environment variables of this process.
    :param snapshot: The files that travel; None if the plan runs in the user's own folder.
    :param git_state: The state of the code, or None outside a repository.
    :param software: What the job needs besides its code; None: what is installed where it runs.
    :param compute: What it asks of the cluster; None: nothing.
    :raises PlanError: If a value of the command line cannot be handed to a job.
    :raises DatasetError: If the name of a dataset cannot be read.
    """
    config, container = parsed.experiment_config, parsed.container
    max_run_seconds = _max_run_seconds(config.max_run_duration)
    return JobPlan(
        model=config.model,
        argv=job_arguments(
            parsed.typed,
            parsed.givens,
            parsed.parameters,
            start_directory=start_directory,
            travels=travels_with(snapshot, start_directory) if snapshot else nothing_travels,
        ),
        snapshot_hash=snapshot.content_hash if snapshot else "",
        experiment=environ.get(ENV_EXPERIMENT_NAME) or container.effective_experiment_name,
        display_name=mask_text(container.tag),
        seed=container.get_effective_random_seed(),
        datasets=_datasets(container, is_mounted=config.mount_in_azureml),
        environment_variables=pairs_of(container.get_additional_environment_variables()),
        output_datasets=tuple(
            PlannedDataset(data.text, is_mounted=data.is_mounted is not False, datastore=container.datastore)
            for data in parse_datasets(container.output_datasets)
        ),
        software=software or PlannedSoftware(),
        compute=compute or PlannedCompute(),
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
        trials=PlannedTrials(config.fail_fast, container.max_num_gpus, config.tracking_uri),
        provenance=Provenance.of(git_state) if git_state else None,
    )


def travelling_state(state: GitState, snapshot: Snapshot, start_directory: Path) -> GitState:
    """Returns the state of the code in which only those untracked files are listed that travel."""
    travelling = {place.as_posix() for file in snapshot.files for place in (Path(file.path), *Path(file.path).parents)}

    def is_in_snapshot(path: str) -> bool:
        absolute = state.root / path
        return (
            absolute.is_relative_to(start_directory) and absolute.relative_to(start_directory).as_posix() in travelling
        )

    return replace(state, untracked=tuple(path for path in state.untracked if is_in_snapshot(path)))


def travels_with(snapshot: Snapshot, start_directory: Path) -> Travels:
    """Returns a function that tells whether a file, or a folder with everything in it, is in the snapshot.

    A folder of which only a part travels does not count: a job would silently read less than is there.
    """
    files = {file.path for file in snapshot.files}

    def travels(path: Path) -> bool:
        if path.as_posix() in files:
            return True
        below = list_files(start_directory, path, stop_at=lambda name: name not in files)
        return bool(below) and below[-1] in files

    return travels


def list_files(start_directory: Path, folder: Path, *, stop_at: Callable[[str], bool]) -> list[str]:
    """Returns the relative paths of the files below a folder, up to the first one at which to stop."""
    found = []
    for place, _, names in os.walk(start_directory / folder):
        for name in names:
            found.append((Path(place) / name).relative_to(start_directory).as_posix())
            if stop_at(found[-1]):
                return found
    return found


def _max_run_seconds(text: str) -> float | None:
    try:
        return parse_duration(text) if text else None
    except PlanError as error:
        raise PlanError(f"--max_run_duration: {error.message}", error.hint) from error


def _without_planning(argv: Sequence[str]) -> list[str]:
    """Returns the command line without the flags that only show the plan, so that they do not change it."""
    names = ("dry_run", "print_plan")
    line = tokenize(argv)
    kept = [token for token in line.tokens if token.name not in names]
    return [word for token in kept for word in token.words]


def _datasets(container: LightningContainer, *, is_mounted: bool) -> tuple[PlannedDataset, ...]:
    references = parse_datasets(container.azure_datasets)
    rows = zip_longest(references, container.local_datasets, container.dataset_mountpoints)
    return tuple(
        PlannedDataset(
            reference.text if reference else "",
            str(folder) if folder else "",
            is_mounted=bool(reference) and (is_mounted if reference.is_mounted is None else reference.is_mounted),
            mountpoint=str(mountpoint) if mountpoint else "",
            datastore=container.datastore if reference else "",
        )
        for reference, folder, mountpoint in rows
    )
