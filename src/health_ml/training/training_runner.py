"""Trains a model, and validates and tests what came out."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_ml.checkpoints.recovery import find_recovery_checkpoint, recovery_folder
from health_ml.environment import restored_environment, working_directory
from health_ml.errors import (
    EXIT_USAGE,
    ArgumentsError,
    CheckpointError,
    ContainerError,
    HimlError,
    RankFailedError,
    exiting_with,
)
from health_ml.planning.preemption import NOT_INTERRUPTED, parse_preemption
from health_ml.records.lines import read_rows
from health_ml.settings import LAST_CHECKPOINT, RECORD_CHECKPOINTS_FILE
from health_ml.training.callbacks.early_termination import EarlyTermination, add_early_termination
from health_ml.training.callbacks.stop_on_signal import StopOnSignal
from health_ml.training.checkpoint_io import copy_checkpoint
from health_ml.training.distributed import choose_devices
from health_ml.training.effective import check_checkpoint_is_read
from health_ml.training.rank_launcher import RankLauncher, is_lost_connection, use_rank_launcher
from health_ml.training.result import RunOutcome
from health_ml.training.runner_base import RunnerBase, as_numbers, has_batches
from health_ml.training.user_code import explained_refusal, user_code
from health_ml.training.weights import (
    LoadableCheckpoint,
    check_epochs_left,
    check_training_left,
    check_weights,
    examine_checkpoint,
    explained_loading,
    is_trusted,
)

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule, Trainer

logger = logging.getLogger(__name__)


class TrainingRunner(RunnerBase):
    """Runs ``--mode=train``: training, an optional validation with the final weights, and the test."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start: LoadableCheckpoint | None = None
        self._launcher: RankLauncher | None = None
        self._has_failed = True
        self._has_checkpoints = True
        self._is_inference_distributed = False
        self._early_termination: EarlyTermination | None = None

    def run(self) -> RunOutcome:
        """Trains unless only inference was asked for, validates and tests, and returns what came out.

        Ranks that take no part in the inference return right after the training.
        """
        self.setup()
        self.write_summary()
        if self.container.run_inference_only:
            source = self.required_source_checkpoint("--run_inference_only")
            self._check_something_to_infer()
            self._announce_extra_validation()
            self.start_evaluation()
            metrics = self._infer(source)
            return RunOutcome(metrics, checkpoint=source)
        with ExitStack() as distributed_training:
            distributed_training.enter_context(restored_environment())
            distributed_training.callback(self._end_ranks)
            metrics = self._train()
            if not self._is_inference_distributed:
                distributed_training.close()
                if not self.environment.is_global_rank_zero:
                    return RunOutcome(metrics)
            self._announce_extra_validation()
            checkpoint = self._checkpoint_to_test()
            metrics.update(self._infer(checkpoint))
        termination = self._early_termination
        messages = (termination.reason,) if termination is not None and termination.reason else ()
        return RunOutcome(metrics, checkpoint=checkpoint, messages=messages)

    def check_before_model(self) -> None:
        """Checks the checkpoint to continue from, before the user's code builds data and model."""
        if self._is_checkpoint_for_container and self.source_checkpoint is not None:
            check_weights(self.source_checkpoint)
        self._start = self._find_start()

    def check_model(self) -> None:
        """Checks that the checkpoint that the user named will be read."""
        self._check_checkpoint_is_read(may_be_read_later=True)

    @property
    def _is_checkpoint_for_container(self) -> bool:
        """True if what is done with the checkpoint that the user named is left to the container."""
        container = self.container
        return bool(container.src_checkpoint) and not (container.resume_training or container.run_inference_only)

    def _check_checkpoint_is_read(self, *, may_be_read_later: bool) -> None:
        if self._is_checkpoint_for_container:
            with exiting_with(EXIT_USAGE):
                check_checkpoint_is_read(self.container, may_be_read_later=may_be_read_later)

    # --- training -----------------------------------------------------------------------------------------------------

    def _train(self) -> dict[str, float]:
        """Trains the model, and returns the last value of every metric."""
        data = self._prepare_training()
        trainer = self.create_trainer(is_inference=False)
        self._check_checkpoint_is_read(may_be_read_later=False)
        self.check_not_skipped(trainer, "training_step")
        logger.info(f"Training on {_place_of(trainer)}, precision {trainer.precision}.")
        self._has_checkpoints = not getattr(trainer, "fast_dev_run", False)
        self._is_inference_distributed = self._needs_all_ranks_for_inference(trainer)
        last = self.container.checkpoint_folder / LAST_CHECKPOINT if self._has_checkpoints else None
        self._early_termination = add_early_termination(trainer, self.environment)
        self._add_preemption(trainer)
        trainer.callbacks.append(StopOnSignal(self.guard, last))  # type: ignore[attr-defined]
        self._launcher = use_rank_launcher(
            trainer, argv=self.argv, folder=self.start_directory, on_rank_failed=self.on_rank_failed
        )
        start = self._start
        if start is not None and start.path == self.source_checkpoint:
            check_training_left(start, trainer)
        arguments: dict[str, Any] = {"datamodule": data}
        if start is not None:
            logger.info(f"Training continues from {start.path}")
            arguments.update(ckpt_path=str(start.path), weights_only=start.is_weights_only)
        try:
            with (
                working_directory(self.container.outputs_folder),
                explained_refusal(self.container),
                explained_loading(start.path if start else None),
            ):
                self.seed()  # a data module that splits its data in setup has to split them as in the test
                trainer.fit(self.container.model, **arguments)
        except RuntimeError as error:
            self._raise_cause(error)
            raise
        finally:
            self.metrics = as_numbers(trainer.callback_metrics)
            self.guard.stop_deferring()
        self.guard.raise_if_received()
        self._has_failed = False
        return dict(self.metrics)

    def _add_preemption(self, trainer: Trainer) -> None:
        """Lets the training be interrupted, if this process was started for that."""
        text = self.environment.simulated_preemption
        if self.record is None or text is None or text == NOT_INTERRUPTED:
            return
        from health_ml.training.callbacks.preempt import Preempt

        trainer.callbacks.insert(0, Preempt(parse_preemption(text), self.record))  # type: ignore[attr-defined]

    def _raise_cause(self, error: RuntimeError) -> None:
        """Raises an error that names the process that has failed, if that is why this one has lost the connection."""
        if self._launcher is None or not is_lost_connection(error):
            return
        if (failure := self._launcher.failed_rank()) is not None:
            raise RankFailedError(str(failure), "The run can be continued from its checkpoint.") from error

    def _prepare_training(self) -> LightningDataModule:
        for method, is_mine in (
            ("before_training_on_global_rank_zero", self.environment.is_global_rank_zero),
            ("before_training_on_local_rank_zero", self.environment.is_local_rank_zero),
            ("before_training_on_all_ranks", True),
        ):
            if is_mine:
                with user_code(self.container, method):
                    getattr(self.container, method)()
        evaluated = [step for step in ("validation_step", "test_step") if self.has_step(step)]
        return self.get_data("get_data_module", ["training_step", *evaluated])

    def _needs_all_ranks_for_inference(self, trainer: Trainer) -> bool:
        """True if validation and test after the training use the same processes as the training.

        :raises ArgumentsError: If they are to use several processes, but not as many as the training.
        """
        wanted = self.container.max_num_gpus_inference
        if trainer.world_size == 1 or wanted in (0, 1) or trainer.strategy.root_device.type != "cuda":
            return False
        count = choose_devices(self.container, {}, is_inference=True).count
        if trainer.num_nodes == 1 and count == trainer.num_devices:
            return True
        raise ArgumentsError(
            f"--max_num_gpus_inference={wanted} stands for {count} GPUs here, and the training uses "
            f"{trainer.num_devices} on each of {trainer.num_nodes} machines.",
            "On one machine, inference can use one GPU, or as many as the training; on several, one.",
        )

    def _end_ranks(self) -> None:
        """Ends the communication with the other processes, and waits for those that this one started."""
        from torch import distributed

        if self._launcher is not None and self._has_failed:  # else the process group would wait for the others
            self._launcher.end(is_failed=True)
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        if self._launcher is not None:
            self._launcher.end(is_failed=False)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _fetch_source_checkpoint(self) -> Path | None:
        """Returns the checkpoint that the user names. A run that continues from its own can do without it."""
        try:
            return super()._fetch_source_checkpoint()
        except HimlError as error:
            if not self.container.resume_training or self._find_own_checkpoint() is None:
                raise
            logger.warning("%s It is not needed: the run continues from its own checkpoint.", error.message)
            return None

    def _find_own_checkpoint(self) -> Path | None:
        """Returns the newest checkpoint of an earlier attempt of this run, or None."""
        if not self._may_have_been_restarted:
            return None
        outputs, node = self.container.outputs_folder, self.environment.node_rank
        return find_recovery_checkpoint(recovery_folder(outputs, node_rank=node))

    def _find_start(self) -> LoadableCheckpoint | None:
        """Returns where training continues: after a restart the newest checkpoint of this run, else the user's."""
        if self.container.run_inference_only:
            return None
        recovered = self._find_own_checkpoint()
        if recovered is not None:
            start = examine_checkpoint(recovered, is_trusted=self.trusts(recovered))
            return replace(start, path=self._as_last_checkpoint(recovered))
        self._warn_of_lost_progress()
        if not self.container.resume_training:
            return None
        path = self.required_source_checkpoint("--resume_training")
        start = examine_checkpoint(path, is_trusted=is_trusted(path, self.container))
        check_epochs_left(start, self.container)
        return start

    def _warn_of_lost_progress(self) -> None:
        """Says that an earlier attempt has written checkpoints, and that there is none any more."""
        if self.record is None or not (written := read_rows(self.record.folder / RECORD_CHECKPOINTS_FILE)):
            return
        last = written[-1]
        folder = recovery_folder(self.container.outputs_folder, node_rank=self.environment.node_rank)
        logger.warning(
            f"An earlier attempt of this run has written checkpoints to {folder}, the last one in epoch "
            f"{last.get('epoch')} at step {last.get('global_step')}, and there is none any more: this attempt starts "
            f"{'where --src_checkpoint says' if self.container.resume_training else 'from the beginning'}. To continue "
            "there instead, stop it, put one of the checkpoints back, and start it again."
        )

    def _as_last_checkpoint(self, recovered: Path) -> Path:
        """Returns the checkpoint after making it ``last.ckpt``, if it is one of the user's or ``autosave.ckpt``.

        It can be that of the end of the training, and then nothing would write another one.
        """
        last = self.container.checkpoint_folder / LAST_CHECKPOINT
        if recovered == last or not self.environment.is_global_rank_zero:
            return recovered
        copy_checkpoint(recovered, last)
        return last

    @property
    def _may_have_been_restarted(self) -> bool:
        environment = self.environment
        return environment.attempt > 0 or environment.run_folder is not None or environment.is_in_azureml

    def _checkpoint_to_test(self) -> Path | None:
        """Returns the checkpoint that the container chooses; None if the run keeps none, to test what is in memory."""
        if not self._has_checkpoints:
            return None
        with user_code(self.container, "get_checkpoint_to_test", "It has to return the path of a checkpoint."):
            checkpoint = Path(self.container.get_checkpoint_to_test())
        if not checkpoint.is_absolute():
            checkpoint = self.container.outputs_folder / checkpoint
        if not checkpoint.is_file():
            raise CheckpointError(
                f"{type(self.container).__name__}.get_checkpoint_to_test returned {checkpoint}, which does not exist.",
                f"These do: {', '.join(self._checkpoint_names()) or 'none'}.",
            )
        return checkpoint

    def _checkpoint_names(self) -> list[str]:
        return sorted(path.name for path in self.container.checkpoint_folder.glob("*.ckpt"))

    # --- inference ----------------------------------------------------------------------------------------------------

    def _announce_extra_validation(self) -> None:
        if self.container.run_extra_val_epoch:
            with user_code(self.container, "on_run_extra_validation_epoch"):
                self.container.on_run_extra_validation_epoch()

    def _check_something_to_infer(self) -> None:
        """Raises if the model can neither be validated nor tested, so that a run without training would do nothing."""
        if not (self.has_step("validation_step") or self.has_step("test_step")):
            raise ContainerError(
                "--run_inference_only validates and tests the model, but "
                f"{type(self.container.model).__name__} has neither validation_step nor test_step.",
                "Override one of them in the model.",
            )

    def _infer(self, checkpoint: Path | None) -> dict[str, float]:
        """Validates if asked to, tests if the model can, neither without batches, and returns the metrics."""
        has_validation = self.container.run_extra_val_epoch or self.container.run_inference_only
        steps = ["validation_step"] if has_validation and self.has_step("validation_step") else []
        if self.container.has_custom_test_step():
            steps.append("test_step")
        if not steps:
            return {}
        with restored_environment():
            trainer = self.create_trainer(is_inference=True)
            if self.container.run_inference_only:
                self.check_not_skipped(trainer, *steps)
            steps = [step for step in steps if has_batches(trainer, step)]
            if not steps:
                return {}
            data = self.get_data("get_data_module", steps)
            return self.evaluate(trainer, data, checkpoint, steps=steps)


def _place_of(trainer: Trainer) -> str:
    """Returns where a Trainer computes: ``the CPU``, ``one GPU``, ``4 GPUs`` or ``2 processes on the CPU``."""
    kind = {"cpu": "CPU", "cuda": "GPU"}.get(trainer.strategy.root_device.type, trainer.strategy.root_device.type)
    if kind == "CPU":
        return "the CPU" if trainer.world_size == 1 else f"{trainer.world_size} processes on the CPU"
    return f"one {kind}" if trainer.world_size == 1 else f"{trainer.world_size} {kind}s"
