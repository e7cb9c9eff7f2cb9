"""Refuses combinations of flags that contradict each other or would have no effect.

Nothing that a user typed may be silently ignored. Only what was given on the command line, or in a config file with
a value other than the container's own, counts as typed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from health_ml.cli.config_file import TRAINER_PREFIX
from health_ml.cli.trainer_arguments import clashes
from health_ml.deep_learning_config import OptimizerParams
from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError
from health_ml.experiment_config import JOB_FLAGS, ExperimentConfig, RunnerMode
from health_ml.planning.preemption import parse_preemption

if TYPE_CHECKING:
    from health_ml.backends.base import Backend
    from health_ml.lightning_container import LightningContainer

SNAPSHOT_FLAGS = ("max_snapshot_mb", "allow_secret_files")
"""Flags about the files that travel with a job."""

WORKSPACE_FLAGS = ("auth", "datastore", "workspace_config_path")
"""Flags about AzureML that a run on this machine heeds if it needs something from there."""

TRAINING_FLAGS = (
    "max_epochs",
    "autosave_every_n_val_epochs",
    "detect_anomaly",
    "different_seeds",
    "pl_num_sanity_val_steps",
    "pl_find_unused_parameters",
    "pl_static_graph",
    "pl_limit_train_batches",
    "pl_accumulate_grad_batches",
    "pl_check_val_every_n_epoch",
    "pl_log_every_n_steps",
    "run_extra_val_epoch",
    "simulate_preemption",
    "max_num_gpus",
    *(name for name in OptimizerParams.param.objects(instance=False) if name != "name"),
)
"""Flags that only a training heeds."""

VALIDATION_FLAGS = ("run_extra_val_epoch", "pl_num_sanity_val_steps")
"""Flags that only a run with validation heeds."""

TRAINING_ARGUMENTS = (
    "devices",
    "strategy",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "val_check_interval",
)
"""Arguments of the Lightning Trainer that only a training heeds; inference has its own number of processes."""

TRIAL_FLAGS = (
    "max_epochs",
    "autosave_every_n_val_epochs",
    "pl_num_sanity_val_steps",
    "pl_limit_train_batches",
    "pl_limit_val_batches",
    "pl_limit_test_batches",
    "pl_check_val_every_n_epoch",
)
"""Flags that --pl_fast_dev_run overrides."""

TRIAL_ARGUMENTS = ("max_steps", "val_check_interval")
"""Arguments of the Lightning Trainer that it overrides too."""

REGRESSION_TEST_FLAGS = ("regression_test_csv_tolerance",)
"""Flags that only a comparison with expected results heeds."""


def check_combination(
    config: ExperimentConfig,
    container: LightningContainer,
    typed: Mapping[str, Any],
    *,
    environment: RunEnvironment,
    backend: type[Backend] | None = None,
) -> list[str]:
    """Returns a sentence for each contradiction and each flag without effect.

    :param typed: The values that the user typed, by name; Trainer arguments as ``trainer.<argument>``.
    :param backend: Where the job is to run, or None to run in this process.
    :raises PlanError: If what is asked for needs a back end that does not exist.
    """
    in_effect = {name for name, value in typed.items() if value is not False}
    return [
        *_evaluation_problems(config, container),
        *_training_problems(config, container, in_effect),
        *_limit_problems(config, container, in_effect),
        *_trial_problems(container, in_effect),
        *_job_problems(config, container, in_effect, backend, environment=environment),
        *_place_problems(config, container, backend, environment=environment),
        *_regression_test_problems(container, in_effect),
        *_logging_problems(container, in_effect, backend, environment=environment),
        *_trust_problems(config, container, in_effect, environment=environment),
        *_preemption_problems(config, container, backend, environment=environment),
        *clashes(container.trainer_argument_overrides, typed),
    ]


def _logging_problems(
    container: LightningContainer, typed: set[str], backend: type[Backend] | None, *, environment: RunEnvironment
) -> Iterable[str]:
    if not container.log_from_vm or environment.is_in_azureml:
        return
    if "tracking_uri" in typed:
        yield "--log_from_vm and --tracking_uri contradict each other: give one of them."
    if backend is not None and "log_from_vm" in typed:
        yield "--log_from_vm has no effect with --cluster: it is for a training in this process. Leave it out."


def _evaluation_problems(config: ExperimentConfig, container: LightningContainer) -> Iterable[str]:
    if config.mode is not RunnerMode.EVAL_FULL:
        return
    if not container.src_checkpoint:
        yield (
            "To use model evaluation, you need to provide a checkpoint: add --src_checkpoint=<file, URL or run id> to "
            "--mode=eval_full."
        )
    for name in ("run_inference_only", "resume_training"):
        if getattr(container, name):
            yield f"--{name} and --mode=eval_full contradict each other: give one of them."


def _training_problems(config: ExperimentConfig, container: LightningContainer, typed: set[str]) -> Iterable[str]:
    modes = []
    if container.run_inference_only:
        modes.append("--run_inference_only")
    if config.mode is RunnerMode.EVAL_FULL:
        modes.append("--mode=eval_full")
    arguments = [TRAINER_PREFIX + name for name in TRAINING_ARGUMENTS]
    idle = [name for name in (*TRAINING_FLAGS, *arguments) if name in typed]
    if config.mode is RunnerMode.EVAL_FULL and "pl_limit_val_batches" in typed:
        yield "--pl_limit_val_batches has no effect with --mode=eval_full, which only tests: leave it out."
    if modes and idle:
        advice = f"leave out one or the other.{_gpu_hint(idle)}"
        yield f"{_flags(idle)} no effect with {modes[0]}, which does not train: {advice}"


def _limit_problems(config: ExperimentConfig, container: LightningContainer, typed: set[str]) -> Iterable[str]:
    """Yields what has no effect, or leaves nothing to do, because there are to be no batches for it."""
    if container.pl_fast_dev_run:
        return
    validates, tests = container.pl_limit_val_batches != 0, container.pl_limit_test_batches != 0
    if config.mode is RunnerMode.EVAL_FULL:
        if not tests:
            yield "--pl_limit_test_batches=0 leaves --mode=eval_full nothing to do: give a number above 0."
        return
    if container.run_inference_only and not (validates or tests):
        yield (
            "--pl_limit_val_batches=0 and --pl_limit_test_batches=0 leave --run_inference_only nothing to do: give a "
            "number above 0 for one of them."
        )
    idle = [name for name in VALIDATION_FLAGS if name in typed and getattr(container, name)]
    if idle and not validates:
        yield f"{_flags(idle)} no effect with --pl_limit_val_batches=0, which skips the validation: leave out one."


def _trial_problems(container: LightningContainer, typed: set[str]) -> Iterable[str]:
    """Yields what a trial run, which has limits of its own and keeps no checkpoints, does not heed."""
    arguments = [TRAINER_PREFIX + name for name in TRIAL_ARGUMENTS]
    idle = [name for name in (*TRIAL_FLAGS, *arguments) if name in typed]
    if container.pl_fast_dev_run and idle:
        yield (
            f"{_flags(idle)} no effect with --pl_fast_dev_run, which runs {container.pl_fast_dev_run} batches of each "
            "kind in one epoch: leave out one or the other."
        )


def _gpu_hint(idle: list[str]) -> str:
    return " The GPUs for inference are those of --max_num_gpus_inference." if "max_num_gpus" in idle else ""


def _job_problems(
    config: ExperimentConfig,
    container: LightningContainer,
    typed: set[str],
    backend: type[Backend] | None,
    *,
    environment: RunEnvironment,
) -> Iterable[str]:
    if environment.is_in_azureml:
        return
    if backend is None:
        in_use = WORKSPACE_FLAGS if _uses_workspace(container) else ()
        idle = [name for name in (*sorted(JOB_FLAGS), *SNAPSHOT_FLAGS) if name in typed and name not in in_use]
        if idle:
            yield f"{_flags(idle)} no effect on this machine, only in a job that --cluster submits."
        return
    idle = sorted((JOB_FLAGS - backend.job_flags | backend.idle_flags).intersection(typed))
    if idle:
        yield f"{_flags(idle)} no effect with --cluster={config.cluster}: leave out."


def _uses_workspace(container: LightningContainer) -> bool:
    """True if a run on this machine asks AzureML for something."""
    has_remote_data = bool(container.azure_datasets and not container.local_datasets)
    checkpoint = container.src_checkpoint
    has_remote_checkpoint = checkpoint is not None and checkpoint.is_aml_run_id
    return has_remote_data or has_remote_checkpoint or container.log_from_vm


def _place_problems(
    config: ExperimentConfig,
    container: LightningContainer,
    backend: type[Backend] | None,
    *,
    environment: RunEnvironment,
) -> Iterable[str]:
    is_here = not environment.is_in_azureml and (backend is None or backend.is_on_this_machine)
    is_elsewhere = backend is not None and not is_here and not environment.is_in_azureml
    checkpoint = container.src_checkpoint
    if is_elsewhere and checkpoint is not None and checkpoint.is_local_file:
        yield (
            f"--src_checkpoint={checkpoint} is a file of this machine, which a job there cannot read: give the id of "
            "the run that wrote it, or a URL."
        )
    is_distributed = environment.world_size > 1 or environment.main_address is not None
    if is_here and backend is None and config.num_nodes > 1 and not is_distributed:
        yield (
            f"--num_nodes={config.num_nodes} would wait for ever for other machines: nothing has started this process "
            "on them. Use it with --cluster, under torchrun or MPI, or leave it out."
        )


def _regression_test_problems(container: LightningContainer, typed: set[str]) -> Iterable[str]:
    if container.regression_test_folder is None:
        idle = [name for name in REGRESSION_TEST_FLAGS if name in typed]
        if idle:
            yield f"{_flags(idle)} no effect without --regression_test_folder."


def _trust_problems(
    config: ExperimentConfig, container: LightningContainer, typed: set[str], *, environment: RunEnvironment
) -> Iterable[str]:
    may_recover = environment.run_folder is not None or environment.is_in_azureml
    is_loaded = container.resume_training or container.run_inference_only or config.mode is RunnerMode.EVAL_FULL
    if "trust_checkpoint" in typed and not may_recover and not (container.src_checkpoint and is_loaded):
        yield (
            "--trust_checkpoint has no effect here: it needs --src_checkpoint with --resume_training, "
            "--run_inference_only or --mode=eval_full. A container that loads trained_weights_path itself decides how."
        )


def _preemption_problems(
    config: ExperimentConfig,
    container: LightningContainer,
    backend: type[Backend] | None,
    *,
    environment: RunEnvironment,
) -> Iterable[str]:
    if not config.simulate_preemption:
        return
    try:
        preemption = parse_preemption(config.simulate_preemption)
    except ArgumentsError as error:
        yield str(error)
        return
    flag = f"--simulate_preemption={config.simulate_preemption}"
    if environment.is_in_azureml or (backend is not None and not backend.is_on_this_machine):
        yield f"{flag} works on this machine only: in this process's place, or with --cluster=local."
    if environment.is_one_of_several and environment.simulated_preemption is None:
        yield (
            f"{flag}: torchrun, MPI or SLURM has started this process as one of several, and would not start it again. "
            "Type the command without them: the runner itself starts a process for each GPU."
        )
    if config.num_nodes > 1:
        yield f"{flag} has no effect with --num_nodes={config.num_nodes}: use one machine."
    if preemption.unit == "epoch" and preemption.number >= container.max_epochs:
        yield (
            f"{flag}: the training has {container.max_epochs} epochs (--max_epochs), so it is over before it could be "
            f"interrupted {preemption.moment}. Epochs are counted from 0."
        )
    if container.pl_fast_dev_run:
        yield f"{flag} has no effect with --pl_fast_dev_run, which keeps no checkpoints: leave out one or the other."


def _flags(names: list[str]) -> str:
    """Returns the names as flags with the verb that fits: ``--a has`` or ``--a and --b have``."""
    flags = [f"--{name}" for name in names]
    if len(flags) == 1:
        return f"{flags[0]} has"
    return f"{', '.join(flags[:-1])} and {flags[-1]} have"
