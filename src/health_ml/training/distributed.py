"""Which devices a Trainer uses, and how its processes find each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_ml.settings import ENV_ATTEMPT, ENV_RUN_FOLDER, ENV_RUN_ID, ENV_START_DIRECTORY

if TYPE_CHECKING:
    from pytorch_lightning.strategies import Strategy

    from health_ml.deep_learning_config import RunPaths, TrainerParams
    from health_ml.environment import RunEnvironment

logger = logging.getLogger(__name__)

PROCESS_GROUP_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, for example while one of them prepares data or writes a checkpoint."""

_GPU_ACCELERATORS = ("gpu", "cuda")


@dataclass(frozen=True)
class Devices:
    """The devices of one Trainer on each machine.

    :param accelerator: What Lightning calls the kind of device.
    :param devices: How many, or which, in the form that Lightning takes.
    :param count: How many processes that makes on each machine.
    """

    accelerator: Any
    devices: Any
    count: int

    @property
    def has_gpu(self) -> bool:
        """True if the devices are GPUs that CUDA drives."""
        return self.accelerator in _GPU_ACCELERATORS


def choose_devices(container: TrainerParams, given: Mapping[str, Any], *, is_inference: bool) -> Devices:
    """Returns the devices that the flags of the container ask for, as far as the machine has them.

    :param given: Arguments that the user gave to the Trainer directly; ``accelerator`` and ``devices`` win over the
        flags. Inference after a training keeps the accelerator, and has its own number of devices.
    """
    import torch

    wanted = int(container.max_num_gpus_inference if is_inference else container.max_num_gpus)
    available = torch.cuda.device_count()
    devices = None if is_inference else given.get("devices")
    accelerator = given.get("accelerator")
    if accelerator in (None, "auto"):
        accelerator = "gpu" if available and (wanted != 0 or devices is not None) else "cpu"
    if accelerator not in _GPU_ACCELERATORS:
        if devices is None and accelerator == "cpu":
            _warn_about_missing_gpus(wanted, available, is_inference=is_inference, is_asked="accelerator" in given)
        return Devices(accelerator, devices or 1, device_count(devices or 1, available=1))
    if devices is None:
        devices = available if wanted < 0 else max(1, min(wanted, available))
        _warn_about_missing_gpus(wanted, available, is_inference=is_inference, is_asked=False)
    return Devices(accelerator, devices, device_count(devices, available=available))


def _warn_about_missing_gpus(wanted: int, available: int, *, is_inference: bool, is_asked: bool) -> None:
    """Warns if the user asked for more GPUs than there are. The default number for inference asks for nothing."""
    if wanted <= available or is_asked or (is_inference and wanted == 1):
        return
    flag = "max_num_gpus_inference" if is_inference else "max_num_gpus"
    logger.warning(
        f"--{flag}={wanted} was asked for, but this machine has {available}: using {available or 'the CPU'}."
    )


def device_count(devices: Any, *, available: int) -> int:
    """Returns how many processes Lightning makes of its argument ``devices`` on each machine."""
    if isinstance(devices, (list, tuple)):
        return len(devices)
    text = str(devices).strip()
    if text in ("auto", "-1"):
        return max(1, available)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isdigit() else 1


def create_strategy(container: TrainerParams, devices: Devices, *, num_nodes: int) -> Strategy | str:
    """Returns DistributedDataParallel if there are several processes, else what Lightning chooses."""
    if devices.count * num_nodes <= 1:
        return "auto"
    from pytorch_lightning.strategies import DDPStrategy

    return DDPStrategy(
        timeout=PROCESS_GROUP_TIMEOUT,
        find_unused_parameters=container.pl_find_unused_parameters,
        static_graph=container.pl_static_graph,
    )


def choose_precision(container: TrainerParams, devices: Devices) -> str:
    """Returns the precision to compute in: 16 bits only on a GPU, in bfloat16 if it has that in hardware."""
    if not (container.use_mixed_precision and devices.has_gpu):
        return "32-true"
    import torch

    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def child_environment(paths: RunPaths, environment: RunEnvironment, *, start_directory: Path) -> dict[str, str]:
    """Returns the environment variables that make another process work for the same run.

    :param paths: The folders of the run.
    :param environment: Where this process runs.
    :param start_directory: Where the user typed the command.
    """
    variables = {
        ENV_RUN_ID: paths.run_id,
        ENV_START_DIRECTORY: str(start_directory.absolute()),
        ENV_ATTEMPT: str(environment.attempt),
    }
    if not environment.is_in_azureml:
        variables[ENV_RUN_FOLDER] = str(paths.outputs.absolute())
    return variables
