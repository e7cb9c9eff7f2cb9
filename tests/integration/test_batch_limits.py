"""Zero batches of a kind are none: what is skipped leaves no metrics, and a run that would do nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import ModelCheckpoint

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.errors import ArgumentsError, CheckpointError
from health_ml.experiment_config import RunnerMode
from health_ml.records.reader import read_record
from health_ml.training.result import RunResult
from tests.helpers.containers import LineContainer
from tests.helpers.runs import run_container


def logged(result: RunResult) -> set[str]:
    """Returns the names of all metrics in the record of a run."""
    return {name for row in read_record(result.paths.record).metrics for name in row.metrics} - {"epoch"}


def test_without_validation_batches_nothing_is_validated(tmp_path: Path) -> None:
    result = run_container(LineContainer(pl_limit_val_batches=0, run_extra_val_epoch=True), tmp_path)
    assert set(result.metrics) == logged(result) == {"train/loss", "test/loss"}
    assert result.checkpoint == result.paths.checkpoints / "last.ckpt"


def test_without_test_batches_nothing_is_tested(tmp_path: Path) -> None:
    result = run_container(LineContainer(pl_limit_test_batches=0), tmp_path)
    assert set(result.metrics) == logged(result) == {"train/loss", "val/loss"}
    inference = LineContainer(
        run_inference_only=True, src_checkpoint=CheckpointParser(str(result.checkpoint)), pl_limit_test_batches=0
    )
    again = run_container(inference, tmp_path)
    assert set(again.metrics) == logged(again) == {"val/loss"}


class ArgumentsContainer(LineContainer):
    """Gives limits to the Trainer itself."""

    limits: tuple[str, ...] = ()

    def get_trainer_arguments(self) -> dict[str, Any]:
        return {f"limit_{kind}_batches": 0 for kind in self.limits}


@pytest.mark.parametrize(
    ("limits", "parameters", "mode", "message"),
    [
        (("train",), {"resume_training": True}, RunnerMode.TRAIN, "With limit_train_batches=0 there is nothing to do"),
        (("test",), {}, RunnerMode.EVAL_FULL, "With limit_test_batches=0 there is"),
        (
            ("val", "test"),
            {"run_inference_only": True},
            RunnerMode.TRAIN,
            "With limit_val_batches=0 and limit_test_batches=0 there is nothing",
        ),
    ],
)
def test_a_run_that_would_do_nothing_is_refused(
    tmp_path: Path, limits: tuple[str, ...], parameters: dict[str, Any], mode: RunnerMode, message: str
) -> None:
    trained = run_container(LineContainer(), tmp_path)
    container = ArgumentsContainer(**parameters, src_checkpoint=CheckpointParser(str(trained.checkpoint)))
    container.limits = limits
    with pytest.raises(ArgumentsError, match=message):
        run_container(container, tmp_path, mode=mode)


class BestContainer(LineContainer):
    """Tests the checkpoint with the lowest validation loss."""

    def get_callbacks(self) -> list[Any]:
        self.best = ModelCheckpoint(monitor="val/loss")
        return [self.best]

    def get_checkpoint_to_test(self) -> Path:
        return Path(self.best.best_model_path)


def test_a_best_checkpoint_by_a_metric_that_is_skipped_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"get_checkpoint_to_test returned .*, which does not exist\."):
        run_container(BestContainer(pl_limit_val_batches=0), tmp_path)
