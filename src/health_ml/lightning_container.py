"""What a user subclasses: the container that says what to train, and a module with a ready-made optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import param
from pytorch_lightning import LightningModule

from health_ml.deep_learning_config import (
    DatasetParams,
    OptimizerParams,
    OutputParams,
    TrainerParams,
    WorkflowParams,
)
from health_ml.errors import ArgumentsError, ContainerError
from health_ml.experiment_config import RunnerMode
from health_ml.planning.secrets import mask_text, mask_value
from health_ml.records.encoding import encode_value
from health_ml.settings import LAST_CHECKPOINT

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningDataModule

    from health_ml.experiment_config import ExperimentConfig


class LightningContainer(WorkflowParams, DatasetParams, OutputParams, TrainerParams, OptimizerParams):
    """Everything that one training needs: the model, its data, and the defaults of its parameters.

    Subclass it, override :meth:`create_model` and :meth:`get_data_module`, and run it with
    ``himl-runner --model=<class name>``. Every ``param`` field that a subclass declares becomes a flag.

    The runner calls the methods in this order: ``__init__``, :meth:`set_model_variant`,
    :meth:`update_experiment_config`, :meth:`validate`, :meth:`get_additional_environment_variables`, :meth:`setup`,
    :meth:`create_model`, :meth:`before_training_on_global_rank_zero`, :meth:`before_training_on_local_rank_zero`,
    :meth:`before_training_on_all_ranks`, :meth:`get_data_module`, :meth:`get_trainer_arguments`,
    :meth:`get_callbacks`; then it trains, and for validation and test asks for :meth:`get_checkpoint_to_test`, the
    Trainer arguments, the callbacks and the data module again.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._model: LightningModule | None = None
        self._model_name = type(self).__name__
        self.num_nodes = 1
        self.runner_mode = RunnerMode.TRAIN
        self._trained_weights_path: Path | None = None
        self._has_read_trained_weights_path = False

    # --- what a subclass has to say -----------------------------------------------------------------------------------

    def create_model(self) -> LightningModule:
        """Returns the model to train. Called once, after :meth:`setup`."""
        raise NotImplementedError(f"{type(self).__name__} has to override create_model and return a LightningModule.")

    def get_data_module(self) -> LightningDataModule:
        """Returns the data to train, validate and test on."""
        raise NotImplementedError(
            f"{type(self).__name__} has to override get_data_module and return a LightningDataModule."
        )

    # --- what a subclass may say --------------------------------------------------------------------------------------

    def set_model_variant(self, variant_name: str) -> None:
        """Changes the defaults to those of a named variant. Called with "" if no variant was asked for.

        :raises ArgumentsError: If the container has no variant of that name.
        """
        if variant_name:
            raise ArgumentsError(
                f"{type(self).__name__} has no model variant {variant_name!r}.",
                "Leave out --model_variant, or override set_model_variant in the container.",
            )

    def update_experiment_config(self, experiment_config: ExperimentConfig) -> None:
        """Changes where and how the experiment runs; what is given on the command line wins."""

    def validate(self) -> None:
        """Checks the parameters before anything starts.

        :raises ArgumentsError: With everything that is wrong with them.
        """
        problems = [
            *self.workflow_problems(),
            *self.dataset_problems(),
            *self.optimizer_problems(),
            *self.trainer_problems(),
        ]
        if problems:
            raise ArgumentsError(" ".join(problems))

    def setup(self) -> None:
        """Prepares whatever the model needs. Runs in every process, after the datasets are there."""

    def get_eval_data_module(self) -> LightningDataModule:
        """Returns the data to test on in ``--mode=eval_full``. Default: that of :meth:`get_data_module`."""
        return self.get_data_module()

    def get_callbacks(self) -> list[Callback]:
        """Returns additional callbacks for the Trainer."""
        return []

    def get_trainer_arguments(self) -> dict[str, Any]:
        """Returns additional arguments for the Trainer; may hold "callbacks" and "profiler" too."""
        return {}

    def get_checkpoint_to_test(self) -> Path:
        """Returns the checkpoint to validate and test after training. Default: ``last.ckpt``."""
        return self.checkpoint_folder / LAST_CHECKPOINT

    def before_training_on_global_rank_zero(self) -> None:
        """Called right before training, in the first process of the whole run only."""

    def before_training_on_local_rank_zero(self) -> None:
        """Called right before training, in the first process of each machine."""

    def before_training_on_all_ranks(self) -> None:
        """Called right before training, in every process."""

    def on_run_extra_validation_epoch(self) -> None:
        """Called before the extra validation epoch. Default: calls the method of that name of the model, if any."""
        hook = getattr(self._model, "on_run_extra_validation_epoch", None)
        if callable(hook):
            hook()

    def load_model_checkpoint(self, checkpoint_path: Path) -> None:
        """Replaces the model by the one in a checkpoint."""
        if self._model is None:
            raise ContainerError("No Lightning module has been set yet.", "Call create_lightning_module first.")
        self._model = type(self._model).load_from_checkpoint(str(checkpoint_path), weights_only=True)

    def get_additional_environment_variables(self) -> dict[str, str]:
        """Returns environment variables to set before the model is built, here and in a job."""
        return {}

    def get_additional_aml_run_tags(self) -> dict[str, str]:
        """Returns tags for the run in tracking services."""
        return {}

    def get_parameter_tuning_config(self, run_config: Any) -> Any:
        """Returns a HyperDriveConfig of version 1 of the AzureML SDK, for ``--hyperdrive``."""
        raise NotImplementedError(f"{type(self).__name__} has to override get_parameter_tuning_config.")

    def get_parameter_tuning_args(self) -> Mapping[str, Any]:
        """Returns the search space and its settings, for ``--hyperdrive``."""
        raise NotImplementedError(f"{type(self).__name__} has to override get_parameter_tuning_args.")

    # --- what the runner uses -----------------------------------------------------------------------------------------

    @property
    def trained_weights_path(self) -> Path | None:
        """The file that ``--src_checkpoint`` names, from :meth:`setup` on: take from it what you like."""
        self._has_read_trained_weights_path = True
        return self._trained_weights_path

    @trained_weights_path.setter
    def trained_weights_path(self, path: Path | None) -> None:
        self._trained_weights_path = path

    @property
    def has_read_trained_weights_path(self) -> bool:
        """True if somebody has asked for :attr:`trained_weights_path`, so that the file is not ignored."""
        return self._has_read_trained_weights_path

    @property
    def model(self) -> LightningModule:
        """The model, from :meth:`create_lightning_module` on.

        :raises ValueError: If it has not been created yet.
        """
        if self._model is None:
            raise ValueError("No Lightning module has been set yet.")
        return self._model

    @property
    def model_name(self) -> str:
        """Name of the container."""
        return self._model_name

    @property
    def effective_experiment_name(self) -> str:
        """Name of the experiment: ``--experiment``, else the name of the container."""
        return self.experiment or self._model_name

    def create_lightning_module(self) -> LightningModule:
        """Creates the model with :meth:`create_model`, hands it the optimizer parameters, and returns it.

        :raises ContainerError: If ``create_model`` returns something else than a LightningModule.
        """
        model = self.create_model()
        if not isinstance(model, LightningModule):
            raise ContainerError(
                f"{type(self).__name__}.create_model returned {model!r}, which is not a LightningModule.",
                "Return the model at the end of create_model.",
            )
        if isinstance(model, LightningModuleWithOptimizer):
            model.set_optimizer_and_trainer(self, self)
        self._model = model
        return model

    def has_custom_test_step(self) -> bool:
        """True if the model overrides ``test_step``, so that there is something to test."""
        return _overrides(self.model, "test_step")

    def __str__(self) -> str:
        """Returns one line per parameter and public attribute, with secrets masked: ``experiment_summary.txt``."""
        values = {name: getattr(self, name) for name in self.param.objects(instance=False) if name != "name"}
        values["trained_weights_path"] = self._trained_weights_path
        attributes = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        lines = [f"\t{name:40}: {_shown(name, value)}" for name, value in sorted({**values, **attributes}.items())]
        return "\n".join([f"Container {type(self).__name__}", *lines])


class LightningModuleWithOptimizer(LightningModule):
    """A LightningModule whose optimizer and learning rate come from the container's flags.

    Override everything of a LightningModule but ``configure_optimizers``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._optimizer_params = OptimizerParams()
        self._trainer_params = TrainerParams()

    def set_optimizer_and_trainer(self, optimizer_params: OptimizerParams, trainer_params: TrainerParams) -> None:
        """Copies the parameters of the container, so that later changes of the container do not reach the model."""
        self._optimizer_params = _copy_of(optimizer_params, OptimizerParams)
        self._optimizer_params.min_l_rate = optimizer_params.min_l_rate
        self._trainer_params = _copy_of(trainer_params, TrainerParams)

    @property
    def optimizer_params(self) -> OptimizerParams:
        """Parameters of the optimizer and the learning rate."""
        return self._optimizer_params

    @property
    def trainer_params(self) -> TrainerParams:
        """Parameters of the Trainer, of which ``max_epochs`` determines the learning-rate schedule."""
        return self._trainer_params

    def configure_optimizers(self) -> Any:
        """Returns one optimizer and one learning-rate scheduler, as two lists."""
        from health_ml.optim.lr_scheduler import SchedulerWithWarmUp
        from health_ml.optim.optimizers import create_optimizer

        optimizer = create_optimizer(self._optimizer_params, self.parameters())
        scheduler = SchedulerWithWarmUp(
            self._optimizer_params, optimizer, num_epochs=int(self._trainer_params.max_epochs)
        )
        return [optimizer], [scheduler]


def _copy_of(source: param.Parameterized, cls: type[Any]) -> Any:
    from health_ml.deep_learning_config import create_from_matching_params

    return create_from_matching_params(source, cls)


def _shown(name: str, value: Any) -> str:
    """Returns the text of a value without what is secret in it."""
    is_collection = isinstance(value, (dict, list, tuple, set))
    return mask_text(str(encode_value(value, name=name) if is_collection else mask_value(name, value)))


def _overrides(model: LightningModule, method: str) -> bool:
    return getattr(type(model), method, None) is not getattr(LightningModule, method, None)
