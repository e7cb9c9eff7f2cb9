"""The arguments that a user gives to the Lightning Trainer directly, and which of two values for one thing wins."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from health_ml.errors import ContainerError, did_you_mean

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer

FLAGS_OF_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "max_epochs": ("max_epochs",),
    "accumulate_grad_batches": ("pl_accumulate_grad_batches",),
    "log_every_n_steps": ("pl_log_every_n_steps",),
    "check_val_every_n_epoch": ("pl_check_val_every_n_epoch",),
    "limit_train_batches": ("pl_limit_train_batches",),
    "limit_val_batches": ("pl_limit_val_batches",),
    "limit_test_batches": ("pl_limit_test_batches",),
    "fast_dev_run": ("pl_fast_dev_run",),
    "num_sanity_val_steps": ("pl_num_sanity_val_steps",),
    "deterministic": ("pl_deterministic",),
    "benchmark": ("pl_deterministic",),
    "sync_batchnorm": ("pl_sync_batchnorm",),
    "use_distributed_sampler": ("pl_replace_sampler_ddp",),
    "profiler": ("pl_profiler",),
    "detect_anomaly": ("detect_anomaly",),
    "precision": ("use_mixed_precision",),
    "devices": ("max_num_gpus",),
    "accelerator": ("max_num_gpus",),
    "strategy": ("pl_find_unused_parameters", "pl_static_graph"),
    "enable_progress_bar": ("pl_progress_bar_refresh_rate",),
    "num_nodes": ("num_nodes",),
}
"""Arguments of the Trainer, and the flags that decide the same thing."""

FORMER_NAMES: Mapping[str, str] = {
    "replace_sampler_ddp": "It is called use_distributed_sampler now.",
    "gpus": "Use devices and accelerator, or leave it to --max_num_gpus.",
    "resume_from_checkpoint": "Use --resume_training with --src_checkpoint.",
    "weights_summary": "Use enable_model_summary.",
    "checkpoint_callback": "The runner keeps checkpoints; return further callbacks from get_callbacks.",
    "progress_bar_refresh_rate": "Use --pl_progress_bar_refresh_rate.",
    "terminate_on_nan": "Use --detect_anomaly.",
    "multiple_trainloader_mode": "Return a CombinedLoader with that mode from train_dataloader.",
    "auto_lr_find": "Add the callback LearningRateFinder in get_callbacks.",
    "auto_scale_batch_size": "Add the callback BatchSizeFinder in get_callbacks.",
    "track_grad_norm": "Log pytorch_lightning.utilities.grad_norm in on_before_optimizer_step.",
    "stochastic_weight_avg": "Add the callback StochasticWeightAveraging in get_callbacks.",
}
"""Arguments that older versions of Lightning had, and what to use instead."""

_NOT_FOR_CONTAINERS: Mapping[str, str] = {
    "enable_checkpointing": "the runner keeps last.ckpt, from which it tests and resumes",
    "barebones": "it turns off the logging and the checkpoints that a run consists of",
}
"""Arguments that may not be True (barebones) or False (enable_checkpointing), and why."""

_PROCESS_ARGUMENTS = ("devices", "strategy", "num_nodes")


def user_arguments(
    container: LightningContainer, *, typed: Collection[str] = (), is_inference: bool = False
) -> dict[str, Any]:
    """Returns what the user gives to the Trainer directly: what a flag cannot say, or says less specifically.

    Arguments from ``--trainer.<argument>`` win over everything. Those from ``get_trainer_arguments`` of the container
    win over flags that have their default value, but not over flags that the user typed. Inference has its own number
    of processes, so those of the training are left out there.

    :param typed: Names of the parameters that the user typed.
    :raises ContainerError: If the container returns something else than a dictionary of arguments.
    """
    arguments = _container_arguments(container)
    for name in list(arguments):
        if any(flag in typed for flag in FLAGS_OF_ARGUMENTS.get(name, ())):
            del arguments[name]
    arguments.update(container.trainer_argument_overrides)
    if is_inference:
        for name in _PROCESS_ARGUMENTS:
            arguments.pop(name, None)
    return arguments


def _container_arguments(container: LightningContainer) -> dict[str, Any]:
    name = type(container).__name__
    arguments: Any = container.get_trainer_arguments()
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise ContainerError(
            f"{name}.get_trainer_arguments returned {arguments!r}.",
            "Return a dictionary with arguments of the Lightning Trainer.",
        )
    problems = [*_name_problems(arguments), *_value_problems(arguments)]
    if problems:
        raise ContainerError(
            f"{name}.get_trainer_arguments returned arguments that the Trainer does not take. {' '.join(problems)}",
            "See the signature of pytorch_lightning.Trainer.",
        )
    return dict(arguments)


def _name_problems(arguments: Mapping[str, Any]) -> list[str]:
    from pytorch_lightning import Trainer

    known = set(inspect.signature(Trainer).parameters)
    problems = []
    for name in arguments:
        if name not in known:
            advice = FORMER_NAMES.get(str(name)) or did_you_mean(str(name), known)
            problems.append(f"There is no argument {name!r}. {advice}".strip())
    return problems


def _value_problems(arguments: Mapping[str, Any]) -> list[str]:
    refused = {"enable_checkpointing": False, "barebones": True}
    return [
        f"{name}={value} is not possible: {_NOT_FOR_CONTAINERS[name]}."
        for name, value in refused.items()
        if name in arguments and arguments[name] is value
    ]
