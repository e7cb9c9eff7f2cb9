"""What a job needs besides its code: read from flags, files and this installation, before anything is planned."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

from health_ml.errors import PlanError
from health_ml.experiment_config import ExperimentConfig, InteractiveService
from health_ml.planning.conda import complete_environment, find_environment_file, read_environment_file
from health_ml.planning.plan import PlannedCompute, PlannedSoftware
from health_ml.planning.secret_files import check_secret_files
from health_ml.planning.snapshot import take_context_snapshot
from health_ml.settings import CONDA_ENVIRONMENT_FILE, RUNNER_DISTRIBUTION
from health_ml.version import __version__

DOCKERFILE = "Dockerfile"
SOURCE_VERSION = "+source"
"""Ends the version of a runner that was not installed from an index: no index has it, so its source has to travel."""


def read_software(config: ExperimentConfig, *, start_directory: Path, cache_folder: Path) -> PlannedSoftware:
    """Returns what a job needs besides its code.

    :param start_directory: Where the search for ``environment.yml`` starts.
    :param cache_folder: Where hashes of files are remembered.
    :raises PlanError: If there is no environment, two of them, or one that cannot work.
    """
    sources = {
        "conda_env": config.conda_env,
        "azure_environment": config.azure_environment,
        "docker_build_context": config.docker_build_context,
    }
    given = [f"--{name}" for name, value in sources.items() if value]
    if len(given) > 1:
        raise PlanError(f"{' and '.join(given)} each say what the environment of the job is.", "Keep one of them.")
    if config.base_image and given and not config.conda_env:
        raise PlanError(f"--base_image has no effect with {given[0]}, which has an image of its own.", "Leave it out.")
    runner = PlannedSoftware(runner_version=runner_version())
    if config.azure_environment:
        return replace(runner, environment=config.azure_environment)
    if config.docker_build_context:
        folder = config.docker_build_context
        return replace(runner, build_context=str(folder), build_context_hash=_context_hash(config, cache_folder))
    path = config.conda_env or find_environment_file(start_directory)
    if path is None:
        raise PlanError(
            f"There is no {CONDA_ENVIRONMENT_FILE} in {start_directory} or above it, and a job in AzureML needs an "
            "environment.",
            "Write one, name it with --conda_env, or give --azure_environment or --docker_build_context.",
        )
    conda = complete_environment(
        read_environment_file(path), requirements=runner_requirements(), version=runner.runner_version
    )
    return replace(
        runner,
        conda_env=str(path),
        conda_file=conda.text,
        base_image=config.base_image,
        runner_requirements=conda.added,
    )


def named_software(config: ExperimentConfig) -> PlannedSoftware:
    """Returns what the flags say about the software of a job, for a back end that uses what is installed."""
    return PlannedSoftware(
        conda_env=str(config.conda_env or ""),
        base_image=config.base_image,
        environment=config.azure_environment,
        build_context=str(config.docker_build_context or ""),
    )


def read_compute(config: ExperimentConfig) -> PlannedCompute:
    """Returns what a job asks of the cluster besides nodes, time and memory.

    :raises PlanError: If the key for SSH is missing, superfluous, or no public key.
    """
    services = tuple(sorted({service.value for service in config.interactive_services}))
    has_ssh = InteractiveService.SSH.value in services
    if has_ssh and config.ssh_public_key is None:
        raise PlanError("--interactive_services=ssh needs a key.", "Add --ssh_public_key=~/.ssh/id_ed25519.pub.")
    if config.ssh_public_key is not None and not has_ssh:
        raise PlanError("--ssh_public_key has no effect without --interactive_services=ssh.", "Leave it out or add it.")
    return PlannedCompute(
        instance_type=config.instance_type,
        job_tier=config.job_tier.value if config.job_tier else "",
        priority=config.priority.value if config.priority else "",
        services=services,
        ssh_public_key=_public_key(config.ssh_public_key) if config.ssh_public_key else "",
        has_user_identity=config.identity_based_auth,
    )


def _public_key(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"--ssh_public_key: {path} cannot be read: {error}.", "Give a file like id_rsa.pub.") from error
    if not text.startswith(("ssh-", "ecdsa-", "sk-")) or "\n" in text:
        raise PlanError(f"--ssh_public_key: {path} holds no public key.", "Give a file like id_rsa.pub.")
    return text


def runner_version() -> str:
    """Returns the version of this runner, marked if no index has it."""
    try:
        installed = metadata.distribution(RUNNER_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return __version__ + SOURCE_VERSION
    is_released = installed.version == __version__ and installed.read_text("direct_url.json") is None
    return __version__ if is_released else __version__ + SOURCE_VERSION


def runner_requirements() -> tuple[str, ...]:
    """Returns the distributions that this runner needs, as pip writes them; nothing if it is not installed."""
    try:
        requirements = metadata.requires(RUNNER_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return ()
    return tuple(sorted(entry for entry in requirements if "extra ==" not in entry))


def _context_hash(config: ExperimentConfig, cache_folder: Path) -> str:
    folder = Path(config.docker_build_context or "")
    if not (folder / DOCKERFILE).is_file():
        raise PlanError(f"--docker_build_context: {folder} has no file {DOCKERFILE}.", "Give the folder that has it.")
    snapshot = take_context_snapshot(folder, cache_folder=cache_folder)
    check_secret_files(folder, snapshot.files, allowed=config.allow_secret_files)
    return snapshot.content_hash
