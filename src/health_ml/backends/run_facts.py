"""The documents of the record: what ran, with which values, on which machine, from which state of the code."""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import param

from health_ml.backends.fan_out_resources import query_gpus
from health_ml.deep_learning_config import parameters_of
from health_ml.environment import RunEnvironment
from health_ml.errors import HimlError
from health_ml.experiment_config import ExperimentConfig
from health_ml.planning.provenance import GitState, package_versions, read_git_state
from health_ml.records.encoding import encode_value
from health_ml.records.lines import read_rows
from health_ml.records.record import RunRecord, RunStatus
from health_ml.settings import (
    RECORD_CONFIG_DOCUMENT,
    RECORD_GIT_DOCUMENT,
    RECORD_GIT_PATCH_FILE,
    RECORD_PACKAGES_DOCUMENT,
    RECORD_RUN_DOCUMENT,
    RECORD_STATUS_FILE,
)
from health_ml.version import __version__

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer

logger = logging.getLogger(__name__)

DEFAULT_SOURCE = "default"
"""Source of a value that nobody has set."""

_END_SECONDS = 30


class RunDocument:
    """The document ``run`` of the record, which grows while the run goes on."""

    def __init__(self, record: RunRecord, facts: Mapping[str, Any]) -> None:
        self._record = record
        self._facts = {**_facts_on_disk(record), **facts}
        self._lock = threading.Lock()
        self.update({})

    def update(self, facts: Mapping[str, Any]) -> None:
        """Adds facts and writes the document."""
        with self._lock:
            self._facts.update(facts)
            self._record.write_document(RECORD_RUN_DOCUMENT, self._facts)


def _facts_on_disk(record: RunRecord) -> dict[str, Any]:
    """Returns what an earlier attempt of the run has written."""
    try:
        content = json.loads((record.folder / f"{RECORD_RUN_DOCUMENT}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def current_attempt(record_folder: Path, environment: RunEnvironment) -> int:
    """Returns how often the run was started before, unless whoever starts this process has counted."""
    if environment.attempt > 0:
        return environment.attempt
    rows = read_rows(record_folder / RECORD_STATUS_FILE)
    started = [row.get("attempt") or 0 for row in rows if row.get("status") != RunStatus.QUEUED.value]
    return max(started, default=-1) + 1


def run_facts(
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    environment: RunEnvironment,
    run_id: str,
    experiment: str,
    argv: Sequence[str],
) -> dict[str, Any]:
    """Returns what is known about a run when it starts."""
    return {
        "run_id": run_id,
        "model": container.model_name,
        "model_variant": experiment_config.model_variant,
        "mode": experiment_config.mode.value,
        "experiment": experiment,
        "tag": container.tag,
        "command_line": ["himl-runner", *argv],
        "started": time.time(),
        "attempt": environment.attempt,
        "seeds": {
            "random_seed": container.random_seed,
            "effective_random_seed": container.get_effective_random_seed(),
        },
        "num_nodes": experiment_config.num_nodes,
        "is_in_azureml": environment.is_in_azureml,
        **machine_facts(),
    }


def machine_facts() -> dict[str, Any]:
    """Returns what is known about the programs, the machine and the user."""
    return {
        "health_ml": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "host": platform.node(),
        "user": _user_name(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
    }


def resolved_config(
    experiment_config: ExperimentConfig, container: LightningContainer, sources: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns each parameter with its value, masked if it is a secret, and where the value comes from."""
    owners: tuple[param.Parameterized, ...] = (experiment_config, container)
    values = {name: getattr(owner, name) for owner in owners for name in parameters_of(owner)}
    values.update({f"trainer.{name}": value for name, value in container.trainer_argument_overrides.items()})
    return {
        name: {"value": encode_value(value, name=name), "source": sources.get(name, DEFAULT_SOURCE)}
        for name, value in values.items()
    }


def hyperparameters(container: LightningContainer) -> dict[str, Any]:
    """Returns every parameter of the container, for comparing runs."""
    values = {name: getattr(container, name) for name in parameters_of(container)}
    values.update({f"trainer.{name}": value for name, value in container.trainer_argument_overrides.items()})
    return values


def write_config(
    record: RunRecord,
    experiment_config: ExperimentConfig,
    container: LightningContainer,
    *,
    sources: Mapping[str, str],
    tags: Mapping[str, Any],
) -> None:
    """Writes the values of all parameters, and the tags of the run."""
    # Only the values are secret: masked by the names, the sources would be hidden too.
    config = resolved_config(experiment_config, container, sources)
    record.write_document(RECORD_CONFIG_DOCUMENT, config, has_secrets=False)
    record.log_hyperparameters(hyperparameters(container))
    record.log_tags(tags)


class ProvenanceThread:
    """Finds out the state of the code, the packages and the GPUs while the training starts.

    What cannot be found out is missing in the record and said in the log; it does not stop the run.

    :param record: Where to write it.
    :param document: Gets the GPUs.
    :param folder: A folder in the user's git repository; None if the state of the code was recorded before.
    :param is_copy: True if the folder is a copy of the code, which is in no repository as a rule.
    """

    def __init__(self, record: RunRecord, document: RunDocument, folder: Path | None, *, is_copy: bool = False) -> None:
        self._is_copy = is_copy
        self._record = record
        self._document = document
        self._folder = folder
        self._thread = threading.Thread(target=self._run, name="himl-provenance", daemon=True)

    def start(self) -> ProvenanceThread:
        """Starts to look, and returns itself."""
        self._thread.start()
        return self

    def join(self) -> None:
        """Waits until all is written."""
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            logger.warning("The record lacks the state of the code: git did not answer in time.")

    def _run(self) -> None:
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("the state of the code", self._write_git),
            ("the GPUs", self._write_gpus),
            ("the versions of the packages", self._write_packages),
        )
        for what, step in steps:
            try:
                step()
            except (HimlError, OSError, ValueError, subprocess.SubprocessError) as error:
                logger.warning(f"The record lacks {what}: {error}")

    def _write_git(self) -> None:
        state = read_git_state(self._folder, is_expected=not self._is_copy) if self._folder is not None else None
        if state is not None:
            write_git_state(self._record, state)

    def _write_gpus(self) -> None:
        self._document.update({"gpus": query_gpus("name", "driver_version", "memory.total")})

    def _write_packages(self) -> None:
        self._record.write_document(RECORD_PACKAGES_DOCUMENT, package_versions())


def write_git_state(record: RunRecord, state: GitState) -> None:
    """Writes commit, branch and dirty flag as a document, and the uncommitted changes as a patch beside it."""
    record.write_document(RECORD_GIT_DOCUMENT, state.as_document())
    if state.patch:
        record.write_text(RECORD_GIT_PATCH_FILE, state.patch)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run as a user without a name
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
