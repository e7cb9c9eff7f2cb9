"""A run that is stopped at any moment and started again ends exactly like one that never stopped."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer

from faults.compare import differences, metric_rows
from faults.demanding import TRAIN_BATCHES, VAL_BATCHES, Demanding
from health_ml.environment import RunEnvironment
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.training.callbacks.stop_on_signal import StopOnSignal
from tests.helpers.runs import run_container

EPOCHS = 3
MOMENTS = EPOCHS * (TRAIN_BATCHES + 1 + VAL_BATCHES + 1)
"""Each training batch, start of a validation, validation batch and end of an epoch."""


class StopAt(Callback):
    """Does what a signal does, at the moment with the given number."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._numbers = itertools.count()

    def _count(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.sanity_checking or next(self._numbers) != self._number:
            return
        (stopper,) = (each for each in trainer.callbacks if isinstance(each, StopOnSignal))  # type: ignore[attr-defined]
        stopper._guard._received = signal.SIGTERM

    on_train_batch_start = on_validation_start = on_validation_batch_start = on_train_epoch_end = _count


class Stopping(Demanding):
    def __init__(
        self,
        number: int | None = None,
        trainer: dict[str, Any] | None = None,
        has_validation: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.has_validation = has_validation
        self.stop_at = StopAt(number)
        self.trainer_argument_overrides.update(trainer or {})

    def create_model(self) -> LightningModule:
        model = super().create_model()
        if not self.has_validation:
            model.monitor = "train/loss"
        return model

    def get_data_module(self) -> LightningDataModule:
        data = super().get_data_module()
        if not self.has_validation:
            data.val_dataloader = lambda: []  # type: ignore[method-assign]
        return data

    def get_callbacks(self) -> list[Callback]:
        callbacks = super().get_callbacks() if self.has_validation else []
        return [*callbacks, self.stop_at]


def run(folder: Path, number: int | None = None, **kwargs: Any) -> RunStatus:
    environment = RunEnvironment(run_folder=folder, run_id="run")
    return run_container(Stopping(number, **kwargs), folder.parent, environment=environment).status


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert run(folder) is RunStatus.FINISHED
    return folder


def test_the_uninterrupted_run_logs_every_kind_of_row(uninterrupted: Path) -> None:
    rows = metric_rows(uninterrupted)
    names = [{name for name, _ in metrics} for _, _, metrics in rows]
    assert sum("train/loss_step" in row for row in names) == EPOCHS * (TRAIN_BATCHES // 2 + 1)
    assert (
        sum({"train/loss_epoch", "train/spread", "group/rmse", "train/error_epoch"} <= row for row in names) == EPOCHS
    )


@pytest.mark.parametrize("number", range(MOMENTS))
def test_stopped_and_started_again(number: int, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, number) is RunStatus.PREEMPTED
    assert run(folder) is RunStatus.FINISHED
    assert differences(folder, uninterrupted) == []
    assert [row["attempt"] for row in read_record(folder).attempts] == [0, 1]


VALIDATIONS_WITHIN = {"trainer": {"val_check_interval": 2}, "pl_accumulate_grad_batches": 3}


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        pytest.param(VALIDATIONS_WITHIN, (0, 1, 3, 7, 12, 19, 24), id="validations within an epoch"),
        pytest.param({"has_validation": False}, (1, 5, 9), id="no validation"),
        pytest.param({"trainer": {"max_steps": 8}}, (2, 4, 9, 12), id="limit of steps"),
    ],
)
def test_other_settings(settings: dict[str, Any], numbers: tuple[int, ...], tmp_path: Path) -> None:
    expected = tmp_path / "uninterrupted"
    run(expected, **settings)
    for number in numbers:
        folder = tmp_path / f"stopped_{number}"
        assert run(folder, number, **settings) is RunStatus.PREEMPTED
        assert run(folder, **settings) is RunStatus.FINISHED
        assert differences(folder, expected) == [], number


def test_stopped_again_and_again(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    statuses = []
    while RunStatus.FINISHED not in statuses:
        statuses.append(run(folder, VAL_BATCHES + 3))  # fewer would never get beyond a validation
    assert 4 < len(statuses) < 10
    assert differences(folder, uninterrupted) == []
