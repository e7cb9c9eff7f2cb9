"""The plan of a job: everything that a back end needs to know to run it, and nothing of how it does that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from health_ml.errors import PlanError
from health_ml.planning.provenance import GitState
from health_ml.planning.search_space import SearchSpace

PLAN_VERSION = 1

Pairs = tuple[tuple[str, str], ...]


def pairs_of(mapping: Mapping[str, str]) -> Pairs:
    """Returns the entries of a mapping in the order of their names, as a value that can be hashed."""
    return tuple(sorted((str(name), str(value)) for name, value in mapping.items()))


@dataclass(frozen=True)
class PlannedDataset:
    """A folder of data that a job reads.

    :param name: The dataset in AzureML as :func:`~health_ml.planning.datasets.parse_dataset` reads it, or "" for a
        local folder only.
    :param local_folder: Path of its folder on this machine, or "".
    :param is_mounted: True to mount it in AzureML, False to download it before the job starts.
    :param mountpoint: Where it is inside the job, or "" for anywhere.
    :param datastore: Datastore with the folder that it is made from if it does not exist yet, or "".
    """

    name: str = ""
    local_folder: str = ""
    is_mounted: bool = False
    mountpoint: str = ""
    datastore: str = ""


@dataclass(frozen=True)
class PlannedLimits:
    """What a job may use.

    :param max_run_seconds: Time limit, or None.
    :param shared_memory: Shared memory of the job's container, like ``400g``, or "".
    """

    max_run_seconds: float | None = None
    shared_memory: str = ""


@dataclass(frozen=True)
class PlannedSoftware:
    """What a job needs besides its code.

    :param conda_env: Path of the Conda environment file on this machine, or "".
    :param conda_file: Its text, with what himl-runner needs: the file may have changed when somebody looks, and exists
        on one machine only.
    :param base_image: Docker image below it, or "" for the back end's own.
    :param environment: An environment that the back end has, instead of a file, or "".
    :param build_context: Folder with a Dockerfile, instead of a file, or "".
    :param build_context_hash: Content hash of that folder, or "".
    :param runner_version: The version of himl-runner that submits the job and has to run it.
    :param runner_requirements: Those of the distributions that this version needs that were added to the file.
    """

    conda_env: str = ""
    conda_file: str = ""
    base_image: str = ""
    environment: str = ""
    build_context: str = ""
    build_context_hash: str = ""
    runner_version: str = ""
    runner_requirements: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedCompute:
    """What a job asks of the cluster besides nodes, time and memory.

    :param instance_type: Type of machine, or "".
    :param job_tier: How the job is served, or "".
    :param priority: ``low``, ``medium`` or ``high``, or "".
    :param services: Programs with which a person looks into the running job.
    :param ssh_public_key: Text of the key of who may sign in to its nodes, or "".
    :param has_user_identity: True to read data as the user who submitted the job.
    """

    instance_type: str = ""
    job_tier: str = ""
    priority: str = ""
    services: tuple[str, ...] = ()
    ssh_public_key: str = ""
    has_user_identity: bool = False


@dataclass(frozen=True)
class PlannedTrials:
    """How the trials of a fan-out are run; what varies between them is in the search space.

    :param is_failing_fast: True to cancel the other trials when one fails.
    :param max_num_gpus: Largest number of GPUs of one trial; 0: it uses none; -1: one, if there are any.
    :param tracking_uri: Where the fan-out and its trials are mirrored to, the value of ``--tracking_uri``.
    """

    is_failing_fast: bool = False
    max_num_gpus: int = -1
    tracking_uri: str = ""


@dataclass(frozen=True)
class Provenance:
    """Which version of the code travels.

    :param commit: Full hash of the commit, or None.
    :param branch: Name of the branch, or None.
    :param remote: URL of the repository without credentials, or None.
    :param is_dirty: True if tracked files differ from the commit.
    :param patch_sha256: Hash of the patch of these differences, or "".
    :param untracked: Paths of untracked files that travel.
    """

    commit: str | None = None
    branch: str | None = None
    remote: str | None = None
    is_dirty: bool = False
    patch_sha256: str = ""
    untracked: tuple[str, ...] = ()

    @classmethod
    def of(cls, state: GitState) -> Provenance:
        """Returns the provenance of a git working tree."""
        return cls(
            commit=state.commit,
            branch=state.branch,
            remote=state.remote,
            is_dirty=state.is_dirty,
            patch_sha256=hashlib.sha256(state.patch.encode("utf-8", "replace")).hexdigest() if state.patch else "",
            untracked=state.untracked,
        )


@dataclass(frozen=True)
class JobPlan:
    """One experiment as a value: it can be printed, compared, hashed, stored with the run and executed anywhere.

    :param model: The model, as ``--model`` names it.
    :param argv: Arguments of ``himl-runner`` in the job. A list: no shell ever reads it.
    :param snapshot_hash: Content hash of the files that travel.
    :param experiment: Name of the experiment.
    :param display_name: Name of the run for people, or "".
    :param seed: The random seed, or None if the container has none.
    :param datasets: Data that the job reads, in the order in which the model sees it.
    :param output_datasets: Data that the job writes.
    :param environment_variables: Environment variables of the job; make it with :func:`pairs_of`.
    :param software: What the job needs besides its code.
    :param compute: What it asks of the cluster besides nodes, time and memory.
    :param num_nodes: Number of machines.
    :param limits: Time and memory.
    :param tags: Tags of the run; make it with :func:`pairs_of`.
    :param search_space: What a fan-out varies, or None for a single run.
    :param trials: How the trials of a fan-out are run.
    :param provenance: Version of the code, or None outside of a repository.
    """

    model: str
    argv: tuple[str, ...]
    snapshot_hash: str = ""
    experiment: str = ""
    display_name: str = ""
    seed: int | None = None
    datasets: tuple[PlannedDataset, ...] = ()
    output_datasets: tuple[PlannedDataset, ...] = ()
    environment_variables: Pairs = ()
    software: PlannedSoftware = field(default_factory=PlannedSoftware)
    compute: PlannedCompute = field(default_factory=PlannedCompute)
    num_nodes: int = 1
    limits: PlannedLimits = field(default_factory=PlannedLimits)
    tags: Pairs = ()
    search_space: SearchSpace | None = None
    trials: PlannedTrials = field(default_factory=PlannedTrials)
    provenance: Provenance | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the job by name."""
        return dict(self.environment_variables)

    @property
    def model_name(self) -> str:
        """Name of the container's class."""
        return self.model.rpartition(".")[2]

    @cached_property
    def plan_hash(self) -> str:
        """Hash of the plan, in hexadecimal digits: equal plans have equal hashes, on any machine."""
        return hashlib.sha256(_canonical(self.to_json()).encode("utf-8")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as values that JSON knows; :meth:`from_json` gives an equal one back."""
        return {
            "version": PLAN_VERSION,
            **{item.name: getattr(self, item.name) for item in fields(self)},
            "argv": list(self.argv),
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "output_datasets": [asdict(dataset) for dataset in self.output_datasets],
            "environment_variables": dict(self.environment_variables),
            "software": _with_lists(self.software),
            "compute": _with_lists(self.compute),
            "limits": asdict(self.limits),
            "tags": dict(self.tags),
            "search_space": self.search_space.to_json() if self.search_space else None,
            "trials": asdict(self.trials),
            "provenance": _with_lists(self.provenance) if self.provenance else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JobPlan:
        """Returns the plan that :meth:`to_json` described.

        :raises PlanError: If the values describe none, or one of another version.
        """
        entries = dict(values)
        version = entries.pop("version", None)
        if version != PLAN_VERSION:
            raise PlanError(
                f"The plan has version {version!r}; this himl-runner reads version {PLAN_VERSION}.",
                "Use the version of himl-runner that wrote it, or submit the job again.",
            )
        try:
            provenance = entries.pop("provenance")
            search_space = entries.pop("search_space")
            return cls(
                argv=_texts(entries.pop("argv")),
                datasets=tuple(PlannedDataset(**dataset) for dataset in entries.pop("datasets")),
                output_datasets=tuple(PlannedDataset(**dataset) for dataset in entries.pop("output_datasets")),
                software=PlannedSoftware(**_with_tuples(entries.pop("software"))),
                compute=PlannedCompute(**_with_tuples(entries.pop("compute"))),
                environment_variables=pairs_of(entries.pop("environment_variables")),
                limits=PlannedLimits(**entries.pop("limits")),
                tags=pairs_of(entries.pop("tags")),
                trials=PlannedTrials(**entries.pop("trials")),
                search_space=SearchSpace.from_json(search_space) if search_space is not None else None,
                provenance=Provenance(**_with_tuples(provenance)) if provenance is not None else None,
                **entries,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"The plan cannot be read: {error!r}.", "It is damaged: submit the job again.") from error


def _canonical(value: Any) -> str:
    return json.dumps(_with_plain_numbers(value), sort_keys=True, separators=(",", ":"))


def _with_plain_numbers(value: Any) -> Any:
    """Returns the value with 1.0 as 1, because they are equal but JSON writes them differently."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {name: _with_plain_numbers(item) for name, item in value.items()}
    return [_with_plain_numbers(item) for item in value] if isinstance(value, (list, tuple)) else value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values!r} is no list of texts")
    return tuple(values)


def _with_lists(part: PlannedSoftware | PlannedCompute | Provenance) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(part).items()}


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _texts(value) if isinstance(value, list) else value for name, value in values.items()}
