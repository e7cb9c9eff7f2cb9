"""The environment of a job in AzureML: named after its content, so that equal ones are built once and never change."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from health_ml.azure.job_start import RUNNER
from health_ml.environment import process_environment
from health_ml.errors import PlanError, did_you_mean
from health_ml.planning.conda import complete_environment
from health_ml.planning.datasets import LATEST
from health_ml.planning.plan import PlannedSoftware
from health_ml.planning.snapshot import hash_cache_folder, take_context_snapshot

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Environment

DEFAULT_IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-cuda11.8-cudnn8-ubuntu22.04"
"""Ubuntu with MPI and CUDA, which also works where there is no GPU; torch brings the CUDA that it needs itself."""
VERSION = "1"
_HASH_DIGITS = 32
_NAMED = re.compile(r"(?:azureml:)?([A-Za-z0-9][A-Za-z0-9_.-]*)(?::([A-Za-z0-9_.-]+)|@([A-Za-z0-9_.-]+))?")
_REGISTRY = "azureml://registries/"


@dataclass(frozen=True)
class JobEnvironment:
    """What a job runs in.

    :param name: Name of the environment, or "" for one in a registry.
    :param version: Its version, or "" if only the service knows it.
    :param conda_file: Text of the Conda environment file, or "".
    :param image: Docker image, or "".
    :param build_context: Folder with a Dockerfile, or "".
    :param address: Its address in a registry, or "".
    :param has_runner: True if it brings the runner that submits the job.
    """

    name: str = ""
    version: str = ""
    conda_file: str = ""
    image: str = ""
    build_context: str = ""
    address: str = ""
    has_runner: bool = False

    @property
    def reference(self) -> str:
        """How the body of a job names it."""
        return self.address or f"azureml:{self.name}{f':{self.version}' if self.version else f'@{LATEST}'}"

    @property
    def is_ours(self) -> bool:
        """True if it is described here, False if AzureML has it already."""
        return bool(self.image or self.build_context)


def environment_of(software: PlannedSoftware) -> JobEnvironment:
    """Returns the environment that a plan describes. Pure.

    :raises PlanError: If the name of an existing environment cannot be read.
    """
    if software.environment:
        return _existing(software.environment)
    if software.build_context:
        name = context_name(software.build_context_hash)
        return JobEnvironment(name, VERSION, build_context=software.build_context)
    image = software.base_image or DEFAULT_IMAGE
    if not software.conda_file:
        return JobEnvironment(_name({"image": image}), VERSION, image=image)
    conda = complete_environment(
        software.conda_file, requirements=software.runner_requirements, version=software.runner_version
    )
    name = _name({"image": image, "conda_file": conda.text})
    return JobEnvironment(name, VERSION, conda_file=conda.text, image=image, has_runner=conda.has_runner)


def register_environment(client: MLClient, environment: JobEnvironment) -> str:
    """Returns the id of the environment's exact version, after creating it if AzureML does not have it.

    Creating one that exists changes nothing, because its name says what is in it. Only the folder of a Dockerfile
    would be uploaded again, so that one is looked up first.

    :raises PlanError: If an environment that was named does not exist.
    """
    if environment.address:
        return environment.address
    if not environment.is_ours:
        return _find(client, environment)
    if environment.build_context and (known := _known_id(client, environment)):
        return known
    with _staged(environment) as staged:
        return str(client.environments.create_or_update(_as_entity(staged)).id)


@contextmanager
def _staged(environment: JobEnvironment) -> Iterator[JobEnvironment]:
    """Gives an environment whose folder of a Dockerfile holds exactly the files that its name is a hash of.

    The SDK has rules of its own about what it leaves out.

    :raises PlanError: If files have changed since the name was made.
    """
    if not environment.build_context:
        yield environment
        return
    source = Path(environment.build_context)
    snapshot = take_context_snapshot(source, cache_folder=hash_cache_folder(process_environment()))
    if context_name(snapshot.content_hash) != environment.name:
        raise PlanError(f"--docker_build_context: files in {source} have just changed.", "Submit the job again.")
    with TemporaryDirectory(prefix="himl-context-") as folder:
        for file in snapshot.files:
            target = Path(folder, file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / file.path, target)
        Path(folder, ".amlignore").write_text("")  # the SDK would leave out more
        yield replace(environment, build_context=folder)


def _as_entity(environment: JobEnvironment) -> Environment:
    from azure.ai.ml.entities import BuildContext, Environment

    common: dict[str, Any] = {
        "name": environment.name,
        "version": environment.version,
        "description": f"Made by {RUNNER}.",
    }
    if environment.build_context:
        return Environment(build=BuildContext(path=environment.build_context), **common)
    import yaml

    conda = yaml.safe_load(environment.conda_file) if environment.conda_file else None
    return Environment(image=environment.image, conda_file=conda, **common)


def _known_id(client: MLClient, environment: JobEnvironment) -> str:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return str(client.environments.get(environment.name, version=environment.version).id)
    except ResourceNotFoundError:
        return ""


def _find(client: MLClient, environment: JobEnvironment) -> str:
    from azure.ai.ml.exceptions import MlException  # for a label, where a version raises the other one
    from azure.core.exceptions import ResourceNotFoundError

    version = environment.version or None
    try:
        found = client.environments.get(environment.name, version=version, label=None if version else LATEST)
    except (ResourceNotFoundError, MlException) as error:
        raise _unknown(client, environment) from error
    return str(found.id)


def _unknown(client: MLClient, environment: JobEnvironment) -> PlanError:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        versions = [str(entry.version) for entry in client.environments.list(name=environment.name)]
    except ResourceNotFoundError:
        versions = []
    if versions:
        hint = f"Its versions are {', '.join(versions[:10])}."
    else:
        known = [str(entry.name) for entry in client.environments.list()]
        listed = f"It has {', '.join(known[:10])}." if known else "It has none yet."
        hint = f"{did_you_mean(environment.name, known)} {listed}".strip()
    return PlanError(f"--azure_environment: the workspace has no {environment.reference}.", hint)


def _existing(text: str) -> JobEnvironment:
    if text.startswith(_REGISTRY):
        if "/versions/" not in text:
            raise PlanError(
                f"--azure_environment={text} names no version, so that the job might run in another one tomorrow.",
                "End the address with /versions/NUMBER.",
            )
        return JobEnvironment(address=text)
    match = _NAMED.fullmatch(text)
    if match is None or (match[3] or LATEST) != LATEST:
        raise PlanError(
            f"--azure_environment={text} names no environment.",
            "Write NAME:VERSION, NAME for its latest version, or azureml://registries/REGISTRY/environments/NAME/"
            "versions/VERSION.",
        )
    return JobEnvironment(match[1], match[2] or "")


def context_name(content_hash: str) -> str:
    """Returns the name of the environment that a Dockerfile and its folder make, by the hash of their content."""
    return _name({"build_context": content_hash})


def _name(content: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"himl-{digest[:_HASH_DIGITS]}"
