"""Stops a trial between two epochs if others do better, by the policy of its fan-out."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from health_ml.environment import RunEnvironment
from health_ml.planning.early_termination import EarlyTerminationPolicy, Goal, decide_stop
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan
from health_ml.records.metric_history import MetricHistory
from health_ml.records.reader import read_document

CHECKPOINT_KEY = "health_ml_stopped_early"


class EarlyTermination(Checkpoint):
    """Decides at the end of each epoch that has logged the primary metric whether the training goes on.

    What the other trials have logged is in their records. The decision is made by the first process for all of them.

    Lightning calls a Checkpoint at the end of an epoch after the model, so that what the model logs there counts. It
    has to come before those that save the checkpoint, which holds the decision.

    :param folder: Files of the fan-out.
    :param index: Number of this trial.
    :param policy: When a trial is stopped.
    :param metric: Name of the primary metric.
    :param goal: Whether less or more of it is better.
    """

    def __init__(
        self, folder: FanOutFolder, index: int, *, policy: EarlyTerminationPolicy, metric: str, goal: Goal
    ) -> None:
        super().__init__()
        self.reason = ""
        """Why the trial was stopped, or an empty text."""
        self._folder = folder
        self._index = index
        self._policy = policy
        self._metric = metric
        self._goal = goal
        self._histories: dict[int, MetricHistory] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops again where the trial was stopped before it was interrupted."""
        if self.reason:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides. Has to run in every process."""
        reason = self._decide(trainer) if trainer.is_global_zero else ""
        self.reason = trainer.strategy.broadcast(reason) or self.reason
        if self.reason:
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the decision. As the state of the callback, Lightning would miss it in every run that loads the file."""
        if self.reason:
            checkpoint[CHECKPOINT_KEY] = self.reason

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over the decision."""
        self.reason = str(checkpoint.get(CHECKPOINT_KEY, ""))

    def _decide(self, trainer: Trainer) -> str:
        own = self._own_history(trainer)
        if not own or not self._policy.is_due(len(own)):
            return ""
        histories = {index: list(self._history(index).values()) for index in self._folder.trial_indices()}
        return decide_stop(self._policy, self._index, histories={**histories, self._index: own}, goal=self._goal)

    def _own_history(self, trainer: Trainer) -> list[float]:
        """Returns what this trial has logged, empty if this epoch has not logged the metric."""
        epoch = trainer.current_epoch
        history = self._history(self._index)
        # What the training step logs gets into the record right after this hook. The public callback_metrics has it
        # too, but mixed with what earlier epochs have logged.
        logged_now = trainer._logger_connector.metrics["callback"]
        if self._metric in logged_now:
            return [*history.values(before_epoch=epoch), float(logged_now[self._metric])]
        return list(history.values(before_epoch=epoch + 1)) if history.has(epoch) else []

    def _history(self, index: int) -> MetricHistory:
        if index not in self._histories:
            self._histories[index] = MetricHistory(self._folder.trial_record(index), self._metric)
        return self._histories[index]


def add_early_termination(trainer: Trainer, environment: RunEnvironment) -> EarlyTermination | None:
    """Returns the callback after adding it, or None if this is no trial, or one of a fan-out without a policy."""
    if environment.fan_out_folder is None or environment.run_folder is None:
        return None
    folder = FanOutFolder(environment.fan_out_folder)
    space = JobPlan.from_json(read_document(folder.plan_file)).search_space
    if space is None or space.early_termination is None or space.primary_metric is None:
        return None
    callback = EarlyTermination(
        folder,
        int(environment.run_folder.name),
        policy=space.early_termination,
        metric=space.primary_metric,
        goal=space.goal,
    )
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    others = [number for number, each in enumerate(callbacks) if isinstance(each, Checkpoint)]
    callbacks.insert(others[0] if others else len(callbacks), callback)
    return callback
