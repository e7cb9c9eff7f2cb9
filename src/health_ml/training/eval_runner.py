"""Tests a model on the data that its container sets aside for evaluation."""

from __future__ import annotations

import logging

from health_ml.environment import restored_environment
from health_ml.errors import ContainerError
from health_ml.lightning_container import LightningContainer
from health_ml.training.result import RunOutcome
from health_ml.training.runner_base import RunnerBase

logger = logging.getLogger(__name__)


class EvalRunner(RunnerBase):
    """Runs ``--mode=eval_full``."""

    def run(self) -> RunOutcome:
        """Tests the checkpoint that the user gave, and returns the test metrics."""
        self.setup()
        checkpoint = self.required_source_checkpoint("--mode=eval_full")
        if not self.container.has_custom_test_step():
            raise ContainerError(
                f"--mode=eval_full tests the model, but {type(self.container.model).__name__} has no test_step.",
                "Override test_step in the model.",
            )
        if type(self.container).get_eval_data_module is LightningContainer.get_eval_data_module:
            logger.warning(
                f"{type(self.container).__name__} does not override get_eval_data_module, so --mode=eval_full tests on "
                "the ordinary test data, those of get_data_module."
            )
        self.write_summary()
        with restored_environment():
            data = self.get_data("get_eval_data_module", ["test_step"])
            trainer = self.create_trainer(is_inference=True)
            self.check_not_skipped(trainer, "test_step")
            self.start_evaluation()
            metrics = self.evaluate(trainer, data, checkpoint, steps=["test_step"])
        return RunOutcome(metrics, checkpoint=checkpoint)
