"""Builds the Lightning Trainer that a container asks for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from health_ml.environment import RunEnvironment, environment_variables, process_environment
from health_ml.errors import ArgumentsError, ContainerError
from health_ml.settings import PROFILER_FOLDER
from health_ml.training.callbacks.batch_time import BatchTimeCallback
from health_ml.training.callbacks.checkpointing import (
    AutosaveCheckpoint,
    LastCheckpoint,
    prepare_model_checkpoints,
)
from health_ml.training.callbacks.diagnostics import TrainingDiagnosticsCallback
from health_ml.training.callbacks.exact_resume import ExactResume
from health_ml.training.callbacks.gpu_stats import GpuStatsCallback
from health_ml.training.callbacks.progress_bar import AzureMLProgressBar, LineProgressBar, LiveProgressBar
from health_ml.training.checkpoint_io import AtomicCheckpointIO
from health_ml.training.distributed import Devices, choose_devices, choose_precision, create_strategy
from health_ml.training.loggers.run_logger import RunLogger
from health_ml.training.loggers.storing_logger import StoringLogger
from health_ml.training.trainer_arguments import user_arguments

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer
    from health_ml.records.record import RunRecord

logger = logging.getLogger(__name__)


def create_lightning_trainer(
    container: LightningContainer,
    num_nodes: int = 1,
    *,
    environment: RunEnvironment | None = None,
    record: RunRecord | None = None,
    is_inference: bool = False,
) -> tuple[Trainer, StoringLogger]:
    """Returns the Trainer that the container asks for, and a logger that keeps its metrics in memory.

    :param container: What to train. Its folders have to be set.
    :param num_nodes: Number of machines that train together.
    :param environment: Where this process runs.
    :param record: Where metrics go; None: to TensorBoard event files, for use without the runner.
    :param is_inference: Build a Trainer for validation and test, which runs on ``max_num_gpus_inference`` devices and
        keeps no checkpoints.
    :raises ContainerError: If the container's own Trainer arguments or callbacks cannot be used.
    """
    environment = environment or RunEnvironment()
    given = user_arguments(container, typed=container.typed_parameters, is_inference=is_inference)
    extra_callbacks = _as_list(given.pop("callbacks", None))
    extra_loggers = given.pop("logger", None)
    storing_logger = StoringLogger()
    arguments = {
        **_limits(container),
        **_behaviour(container, given),
        **_devices(container, given, num_nodes=num_nodes, is_inference=is_inference),
        "default_root_dir": str(container.outputs_folder),
        "enable_model_summary": not is_inference,
        **given,
    }
    _start_local_ranks(arguments, environment)
    arguments["logger"] = _loggers(container, extra_loggers, storing_logger, record=record)
    arguments["profiler"] = create_profiler(container, given.get("profiler"))
    arguments["callbacks"] = _callbacks(
        container, extra_callbacks, arguments, environment=environment, record=record, is_inference=is_inference
    )
    _complete_switches(arguments)
    trainer = _construct(container, arguments)
    _use_atomic_checkpoints(trainer, given.get("plugins"), record=record)
    return trainer, storing_logger


def _limits(container: LightningContainer) -> dict[str, Any]:
    """Returns the arguments that say how much to train and evaluate."""
    return {
        "max_epochs": container.max_epochs,
        "limit_train_batches": batch_limit(container.pl_limit_train_batches),
        "limit_val_batches": batch_limit(container.pl_limit_val_batches),
        "limit_test_batches": batch_limit(container.pl_limit_test_batches),
        "fast_dev_run": container.pl_fast_dev_run,
        "num_sanity_val_steps": container.pl_num_sanity_val_steps,
        "check_val_every_n_epoch": container.pl_check_val_every_n_epoch,
        "accumulate_grad_batches": container.pl_accumulate_grad_batches,
        "log_every_n_steps": container.pl_log_every_n_steps,
    }


def batch_limit(value: float | None) -> int | float | None:
    """Returns a limit as Lightning reads it: a whole number of batches as int, a fraction as float, all as None.

    0 stands for no batch, 1 for one batch, and 1.0 for 100 % of them.
    """
    if value is None:
        return None
    if isinstance(value, int) or value > 1:
        return int(value)
    return float(value)


def _behaviour(container: LightningContainer, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that say how to compute."""
    is_deterministic = given.get("deterministic", container.pl_deterministic)
    return {
        "detect_anomaly": container.detect_anomaly,
        "deterministic": True if container.pl_deterministic else None,
        "benchmark": not is_deterministic,  # the fastest of several algorithms is not the same one each time
        "use_distributed_sampler": container.pl_replace_sampler_ddp,
    }


def _devices(
    container: LightningContainer, given: Mapping[str, Any], *, num_nodes: int, is_inference: bool
) -> dict[str, Any]:
    """Returns the arguments that say where to compute."""
    devices = choose_devices(container, given, is_inference=is_inference)
    nodes = int(given.get("num_nodes", num_nodes))
    _warn_about_duplicates(container, devices, is_inference=is_inference)
    return {
        "accelerator": devices.accelerator,
        "devices": devices.devices,
        "num_nodes": nodes,
        "strategy": create_strategy(container, devices, num_nodes=nodes),
        "precision": choose_precision(container, devices),
        "sync_batchnorm": _has_synchronised_batch_norm(container, devices),
    }


def _start_local_ranks(arguments: dict[str, Any], environment: RunEnvironment) -> None:
    """Lets Lightning start the processes of this machine in an AzureML job, unless the user has another plan.

    Left to itself, it would take the MPI with which AzureML has started one process on each machine for its own.
    """
    from lightning_fabric.plugins import ClusterEnvironment
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    plugins = _as_list(arguments.get("plugins"))
    if environment.is_in_azureml and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        arguments["plugins"] = [*plugins, LightningEnvironment()]


def _has_synchronised_batch_norm(container: LightningContainer, devices: Devices) -> bool:
    """Returns what the flag says; on the CPU False, where a model with batch norm would fail in its first step."""
    if devices.accelerator != "cpu":
        return bool(container.pl_sync_batchnorm)
    if container.pl_sync_batchnorm and "pl_sync_batchnorm" in container.typed_parameters:
        logger.warning("--pl_sync_batchnorm has no effect on the CPU: torch synchronises batch norm on GPUs only.")
    return False


def _warn_about_duplicates(container: LightningContainer, devices: Devices, *, is_inference: bool) -> None:
    if is_inference and devices.count > 1 and container.pl_replace_sampler_ddp:
        logger.warning(
            f"Inference on {devices.count} GPUs repeats some samples, so that each GPU gets the same number. For exact "
            "metrics, use --max_num_gpus_inference=1 or --pl_replace_sampler_ddp=False with your own sampler."
        )


def _loggers(
    container: LightningContainer, extra: Any, storing_logger: StoringLogger, *, record: RunRecord | None
) -> list[Logger]:
    """Returns the logger of the record first, then the one in memory, then those of the user."""
    own: list[Logger] = [RunLogger(container.run_paths.lightning_logs, record=record), storing_logger]
    if extra is None or isinstance(extra, bool):
        return own
    return [*own, *_as_list(extra)]


_PROFILERS: Mapping[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def create_profiler(container: LightningContainer, from_container: Profiler | str | None) -> Profiler | str | None:
    """Returns the profiler that ``--pl_profiler`` names, else that of the container, else None.

    :raises ArgumentsError: If there is no profiler of that name.
    """
    name = container.pl_profiler
    if not name:
        return from_container
    if name not in _PROFILERS:
        raise ArgumentsError(f"Unsupported profiler {name!r}.", f"Choose one of {', '.join(_PROFILERS)}.")
    folder = container.outputs_folder / PROFILER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    profiler: Profiler = _PROFILERS[name](dirpath=str(folder), filename=name)
    return profiler


# --- callbacks --------------------------------------------------------------------------------------------------------


def _callbacks(
    container: LightningContainer,
    extra: Iterable[Callback],
    arguments: Mapping[str, Any],
    *,
    environment: RunEnvironment,
    record: RunRecord | None,
    is_inference: bool,
) -> list[Callback]:
    """Returns the callbacks of the user, then those that the flags ask for, then the checkpoints of the run."""
    callbacks = [*_checked(container, "get_trainer_arguments", extra), *_own_callbacks_of(container)]
    prepare_model_checkpoints(callbacks, container.checkpoint_folder)
    callbacks = _with_progress_bar(container, callbacks, arguments, environment=environment)
    callbacks.extend(_monitors(container))
    if is_inference:
        return callbacks
    return [ExactResume(record), *callbacks, *_checkpoints(container, container.checkpoint_folder)]


def _own_callbacks_of(container: LightningContainer) -> list[Callback]:
    return _checked(container, "get_callbacks", _as_list(container.get_callbacks()))


def _checked(container: LightningContainer, method: str, callbacks: Iterable[Any]) -> list[Callback]:
    checked = list(callbacks)
    for callback in checked:
        if not isinstance(callback, Callback):
            raise ContainerError(
                f"{type(container).__name__}.{method} returned {callback!r} as a callback.",
                "Each has to be an object of a class that derives from pytorch_lightning.Callback.",
            )
    return checked


def _with_progress_bar(
    container: LightningContainer,
    callbacks: list[Callback],
    arguments: Mapping[str, Any],
    *,
    environment: RunEnvironment,
) -> list[Callback]:
    """Returns the callbacks with one progress bar, the user's own if there is one, or none if that was asked for."""
    if container.pl_progress_bar_refresh_rate == 0 or arguments.get("enable_progress_bar") is False:
        return [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if any(isinstance(callback, ProgressBar) for callback in callbacks):
        return callbacks
    return [*callbacks, create_progress_bar(container.pl_progress_bar_refresh_rate, environment=environment)]


def create_progress_bar(refresh_rate: int | None, *, environment: RunEnvironment) -> ProgressBar:
    """Returns a live bar on a terminal, and one that prints lines elsewhere.

    :param refresh_rate: Number of batches between two updates; None: what suits the place.
    """
    if sys.stdout.isatty() and not environment.is_in_azureml:
        return LiveProgressBar(refresh_rate=refresh_rate or 1)
    return LineProgressBar() if refresh_rate is None else AzureMLProgressBar(refresh_rate=refresh_rate)


def _monitors(container: LightningContainer) -> list[Callback]:
    monitors: list[Callback] = []
    if container.monitor_loading:
        monitors.append(BatchTimeCallback())
    if container.monitor_training:
        monitors.append(TrainingDiagnosticsCallback())
    if container.monitor_gpu:
        monitors.append(GpuStatsCallback())
    return monitors


def _checkpoints(container: LightningContainer, folder: Path) -> list[Callback]:
    checkpoints: list[Callback] = [LastCheckpoint(folder)]
    if container.autosave_every_n_val_epochs > 0:
        checkpoints.append(AutosaveCheckpoint(folder, every_n_val_epochs=container.autosave_every_n_val_epochs))
    return checkpoints


def _complete_switches(arguments: dict[str, Any]) -> None:
    """Sets the switches that Lightning checks against the list of callbacks."""
    callbacks = arguments["callbacks"]
    arguments["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in callbacks)
    arguments["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)


_TRAINER_VARIABLES = "PL_TRAINER_"

# --- construction -----------------------------------------------------------------------------------------------------


def _construct(container: LightningContainer, arguments: dict[str, Any]) -> Trainer:
    # Lightning would take arguments from the environment: no flag, file or record would say so.
    ignored = sorted(name for name in process_environment() if name.startswith(_TRAINER_VARIABLES))
    if ignored:
        logger.warning(f"Ignored: {', '.join(ignored)}. Give --trainer.<argument>=<value> instead.")
    try:
        with environment_variables(dict.fromkeys(ignored)):
            return Trainer(**arguments)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ContainerError(
            f"The Lightning Trainer refuses its arguments for {type(container).__name__}: {error}",
            "Check get_trainer_arguments, get_callbacks and --trainer.<argument>.",
        ) from error


def _use_atomic_checkpoints(trainer: Trainer, plugins: Any, *, record: RunRecord | None) -> None:
    """Writes checkpoints atomically, unless the user or the strategy has another way of writing them."""
    from lightning_fabric.plugins import CheckpointIO

    has_own = any(isinstance(plugin, CheckpointIO) for plugin in _as_list(plugins))
    if not has_own and isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        trainer.strategy.checkpoint_io = AtomicCheckpointIO(record)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
