"""What a training run and an evaluation have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import LightningDataModule

from health_ml.checkpoints.fetch import resolve_checkpoint
from health_ml.environment import RunEnvironment, working_directory
from health_ml.errors import ArgumentsError, CheckpointError, ContainerError, OutputError
from health_ml.experiment_config import ExperimentConfig
from health_ml.lightning_container import LightningContainer
from health_ml.records.record import RunRecord
from health_ml.training.result import RunOutcome
from health_ml.training.seeds import seed_all
from health_ml.training.signals import SignalGuard
from health_ml.training.stores import stores_for
from health_ml.training.trainer import create_lightning_trainer
from health_ml.training.user_code import explained_refusal, user_code
from health_ml.training.weights import examine_checkpoint, explained_loading, is_trusted

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from health_ml.training.rank_launcher import RankFailure

logger = logging.getLogger(__name__)

LOADERS_OF_STEPS = {
    "training_step": "train_dataloader",
    "validation_step": "val_dataloader",
    "test_step": "test_dataloader",
}
"""Which method of the data module feeds which method of the model."""

LIMITS_OF_STEPS = {
    "training_step": "limit_train_batches",
    "validation_step": "limit_val_batches",
    "test_step": "limit_test_batches",
}
"""Which argument of the Trainer says how often each method of the model is called."""


class RunnerBase:
    """Sets up the model, and validates and tests it.

    :param experiment_config: Where and how to run.
    :param container: What to train. Its folders have to be set.
    :param environment: Where this process runs.
    :param record: Where to write metrics; None in every process but the first.
    :param project_root: Where the user typed the command.
    :param argv: The command line, for the other processes of a distributed training.
    :param guard: Knows whether somebody asked the run to stop.
    """

    def __init__(
        self,
        experiment_config: ExperimentConfig,
        container: LightningContainer,
        *,
        environment: RunEnvironment,
        record: RunRecord | None,
        project_root: Path,
        argv: Sequence[str] = (),
        guard: SignalGuard | None = None,
    ) -> None:
        self.experiment_config = experiment_config
        self.container = container
        self.environment = environment
        self.record = record
        self.project_root = project_root
        self.argv = tuple(argv)
        self.guard = guard or SignalGuard()
        self.source_checkpoint: Path | None = None
        self.metrics: dict[str, float] = {}  # known so far, also after an interruption
        self.on_rank_failed: Callable[[RankFailure], None] = lambda failure: None
        self.on_model_created: Callable[[], None] = lambda: None

    def run(self) -> RunOutcome:
        """Does everything that was asked for, and returns what came out."""
        raise NotImplementedError(f"{type(self).__name__} has to implement run.")

    @property
    def start_directory(self) -> Path:
        """The folder that relative paths of the user refer to."""
        return self.environment.start_directory or self.project_root

    def setup(self) -> None:
        """Seeds everything, fetches the checkpoint to start from, and creates the model."""
        seed_all(self.container.get_effective_random_seed())
        self.source_checkpoint = self._fetch_source_checkpoint()
        self.container.trained_weights_path = self.source_checkpoint
        self.check_before_model()
        with user_code(self.container, "setup"):
            self.container.setup()
        with user_code(self.container, "create_model", "It has to return a LightningModule."):
            self.container.create_lightning_module()
        self.on_model_created()
        self.check_model()

    def check_before_model(self) -> None:
        """Checks what can be checked before the user's code runs for long."""

    def check_model(self) -> None:
        """Checks what can be checked as soon as there is a model."""

    def write_summary(self) -> None:
        """Writes every parameter of the container to ``experiment_summary.txt``."""
        if not self.environment.is_global_rank_zero:
            return
        path = self.container.run_paths.summary_file
        try:
            path.write_text(f"{self.container}\n", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise OutputError(f"Cannot write {path}: {error.strerror or error}.", "Free some space there.") from error

    # --- data ---------------------------------------------------------------------------------------------------------

    def get_data(self, method: str, steps: Sequence[str]) -> LightningDataModule:
        """Returns the data module from a method of the container, with a loader for each step that will run.

        The random seed is set before, so that a method that draws its data draws the same ones after any training.

        :param method: Name of the method of the container.
        :param steps: Names of the model's methods that will run.
        :raises ContainerError: If it returns something else, or a loader is missing.
        """
        self.seed()
        with user_code(self.container, method, "It has to return a LightningDataModule."):
            data = getattr(self.container, method)()
        name = type(self.container).__name__
        if not isinstance(data, LightningDataModule):
            raise ContainerError(
                f"{name}.{method} returned {data!r}, which is not a LightningDataModule.",
                f"Return the data at the end of {method}.",
            )
        missing = [step for step in steps if not _has_loader(data, LOADERS_OF_STEPS[step])]
        if missing:
            lacking = " and ".join(f"{LOADERS_OF_STEPS[step]} (for {step})" for step in missing)
            raise ContainerError(
                f"The data module {type(data).__name__} that {name}.{method} returned lacks {lacking}.",
                "Override each in the data module and return a DataLoader, or remove the step from the model.",
            )
        return data

    def seed(self) -> None:
        """Sets the random seed before data are made or used: what came before must not change them."""
        seed_all(self.container.get_effective_random_seed(), has_workers=True)

    def has_step(self, step: str) -> bool:
        """True if the model overrides a method like ``validation_step``."""
        from pytorch_lightning import LightningModule

        return getattr(type(self.container.model), step, None) is not getattr(LightningModule, step)

    # --- inference ----------------------------------------------------------------------------------------------------

    def create_trainer(self, *, is_inference: bool) -> Trainer:
        """Returns a Trainer for the container."""
        with user_code(self.container, "get_trainer_arguments or get_callbacks"):
            trainer, _ = create_lightning_trainer(
                self.container,
                1 if is_inference else self.experiment_config.num_nodes,
                environment=self.environment,
                record=self.record,
                is_inference=is_inference,
            )
        return trainer

    def check_not_skipped(self, trainer: Trainer, *steps: str) -> None:
        """Raises if the Trainer is told to run none of these steps, so that it would do nothing.

        :raises ArgumentsError: If so.
        """
        if any(has_batches(trainer, step) for step in steps):
            return
        limits = " and ".join(f"{LIMITS_OF_STEPS[step]}=0" for step in steps)
        raise ArgumentsError(
            f"With {limits} there is nothing to do.",
            "Give a number above 0 as --pl_limit_…_batches or in get_trainer_arguments, or leave it out.",
        )

    def trusts(self, checkpoint: Path) -> bool:
        """Returns True for a checkpoint of which this user knows who wrote it, so that torch may load all of it.

        In AzureML, what is in the outputs of a job was written by this job, maybe on another machine, which had another
        key to sign with.
        """
        is_of_job = self.environment.is_in_azureml and checkpoint.is_relative_to(self.container.outputs_folder)
        return is_of_job or is_trusted(checkpoint, self.container)

    def start_evaluation(self) -> None:
        """Lets the metrics of an evaluation that is started again take the place of those of the attempts before."""
        if self.record is not None and self.environment.attempt > 0:
            self.record.start_training(0)

    def evaluate(
        self, trainer: Trainer, data: LightningDataModule, checkpoint: Path | None, *, steps: Sequence[str]
    ) -> dict[str, float]:
        """Validates and tests, and returns the metrics.

        :param checkpoint: Weights to load first; None: the model as it is in memory.
        :param steps: What to do: ``validation_step``, ``test_step`` or both.
        """
        metrics: dict[str, float] = {}
        arguments: dict[str, Any] = {"datamodule": data, "verbose": False}
        if checkpoint is not None:
            examined = examine_checkpoint(checkpoint, is_trusted=self.trusts(checkpoint))
            arguments.update(ckpt_path=str(checkpoint), weights_only=examined.is_weights_only)
            examined.place(trainer)
        with (
            working_directory(self.container.outputs_folder),
            explained_refusal(self.container),
            explained_loading(checkpoint),
        ):
            if "validation_step" in steps:
                self.seed()
                metrics.update(as_numbers(*trainer.validate(self.container.model, **arguments)))
            if "test_step" in steps:
                self.seed()  # the test is the same with and without a validation before it
                metrics.update(as_numbers(*trainer.test(self.container.model, **arguments)))
        return metrics

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _fetch_source_checkpoint(self) -> Path | None:
        parser = self.container.src_checkpoint
        if not parser:
            return None
        path = resolve_checkpoint(
            parser,
            start_directory=self.start_directory,
            project_root=self.project_root,
            download_folder=self.container.outputs_folder,
            output_to=self.container.output_to,
            other_stores=stores_for(parser, self.experiment_config, self.start_directory),
        )
        return path.absolute()

    def required_source_checkpoint(self, purpose: str) -> Path:
        """Returns the checkpoint that the user gave.

        :raises CheckpointError: If there is none.
        """
        if self.source_checkpoint is None:
            raise CheckpointError(
                f"{purpose} needs a checkpoint.", "Add --src_checkpoint=<file, URL or run id> to the command."
            )
        return self.source_checkpoint


def as_numbers(*results: Mapping[str, Any]) -> dict[str, float]:
    """Returns metrics as plain numbers, without those that have more than one value."""
    numbers: dict[str, float] = {}
    for result in results:
        for name, value in result.items():
            if not hasattr(value, "numel") or value.numel() == 1:
                numbers[name] = float(value)
    return numbers


def has_batches(trainer: Trainer, step: str) -> bool:
    """True unless the Trainer is told to call this step for no batch at all."""
    return bool(getattr(trainer, LIMITS_OF_STEPS[step]))


def _has_loader(data: LightningDataModule, method: str) -> bool:
    """True if the data module defines the method, in its class or, like ``from_datasets``, in the object."""
    return method in vars(data) or getattr(type(data), method) is not getattr(LightningDataModule, method)
