"""What the libraries say during a run that a user can do nothing about does not reach the console."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.training.quiet import quiet_libraries
from tests.helpers.containers import LineContainer, LineData, LineModel
from tests.helpers.runs import run_container

NOISE = ("litlogger", "litmodels", "GPU available", "TPU available", "LeafSpec", "pin_memory", "not resumable")


class PinningData(LineData):
    def _loader(self, *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(super()._loader(shuffle=shuffle).dataset, batch_size=4, shuffle=shuffle, pin_memory=True)


class StoppingModel(LineModel):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


class NoisyContainer(LineContainer):
    model_class: type[LightningModule] = LineModel

    def create_model(self) -> LightningModule:
        return self.model_class()

    def get_data_module(self) -> LightningDataModule:
        return PinningData()


class StoppingContainer(NoisyContainer):
    model_class = StoppingModel


def test_a_run_says_nothing_that_nobody_can_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stopped = run_container(StoppingContainer(), tmp_path)
        parser = CheckpointParser(stopped.run_id)
        run_container(NoisyContainer(resume_training=True, src_checkpoint=parser), tmp_path)
    said = "\n".join([caplog.text, *(str(warning.message) for warning in caught)])
    assert [text for text in NOISE if text in said] == []
    assert "Training on the CPU, precision 32-true." in said
    assert "Training continues from" in said
    assert "smaller than the logging interval" in said, "what a user can act on stays"


def test_other_messages_pass_and_nothing_stays_behind(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    filters = warnings.filters[:]
    with quiet_libraries(), caplog.at_level(logging.INFO, logger=logger.name):
        logger.info("GPU available: False, used: False")
        logger.info("GPU available: True (cuda), used: False")
    assert [record.getMessage() for record in caplog.records] == ["GPU available: True (cuda), used: False"]
    assert warnings.filters[:] == filters
    assert not logger.filters
