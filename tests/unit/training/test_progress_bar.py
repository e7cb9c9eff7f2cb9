"""What the progress bars print, and when."""

from __future__ import annotations

import logging
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from health_ml.training.callbacks import progress_bar
from health_ml.training.callbacks.progress_bar import AzureMLProgressBar, LineProgressBar, LiveProgressBar
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import TinyData, TinyModel, tiny_container


def run(
    folder: Path, bar: Any, *, model: TinyModel | None = None, data: TinyData | None = None, **more: Any
) -> Trainer:
    container = tiny_container(folder, pl_progress_bar_refresh_rate=None, **{"max_epochs": 1, **more})
    container.callbacks = [bar]
    trainer, _ = create_lightning_trainer(container)
    trainer.fit(model or TinyModel(), datamodule=data or TinyData())
    return trainer


def lines_of(capsys: pytest.CaptureFixture[str], stage: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if stage in line]


class LoggingModel(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("shown", float(batch_idx), prog_bar=True)
        return loss


def test_lines_of_all_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run(tmp_path, AzureMLProgressBar(refresh_rate=4, print_timestamp=False), max_epochs=2)
    trainer.test(TinyModel(), datamodule=TinyData(), verbose=False)
    trainer.predict(PredictingModel(), dataloaders=TinyData().test_dataloader())

    out = capsys.readouterr().out
    tail = r"00:00 since epoch start, estimated total epoch time ~ 00:00"
    assert re.search(rf"^Training epoch 0 \(step 4\):    4/8 \( 50%\) completed\. {tail}$", out, re.MULTILINE)
    assert re.search(rf"^Training epoch 1 \(step 16\):    8/8 \(100%\) completed\. {tail}$", out, re.MULTILINE)
    assert re.search(rf"^Validation epoch 1:    4/8 \( 50%\) completed\. {tail}$", out, re.MULTILINE)
    assert re.search(rf"^Testing:    8/8 \(100%\) completed\. {tail}$", out, re.MULTILINE)
    assert re.search(rf"^Prediction:    4/8 \( 50%\) completed\. {tail}$", out, re.MULTILINE)


class PredictingModel(TinyModel):
    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.zeros(1)


def test_timestamp_in_utc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, AzureMLProgressBar(refresh_rate=8))

    [line] = lines_of(capsys, "Training epoch")
    moment = time.strptime(line.split(" ")[0], "%Y-%m-%dT%H%M%SZ")
    assert abs(time.mktime(moment) - time.mktime(time.gmtime())) < 60


def test_writes_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, AzureMLProgressBar(refresh_rate=8, print_timestamp=False, write_to_logging_info=True))

    assert "Training epoch 0 (step 8):    8/8 (100%) completed." in caplog.text
    assert not lines_of(capsys, "Training epoch")


def test_disabled_bar_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = AzureMLProgressBar(refresh_rate=1)
    bar.disable()
    run(tmp_path, bar)

    assert bar.is_disabled
    assert not lines_of(capsys, "Training epoch")
    bar.enable()
    assert bar.is_enabled
    assert AzureMLProgressBar(refresh_rate=0).is_disabled


def test_training_goes_on_after_validation_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = tiny_container(tmp_path, max_epochs=1)
    container.pl_progress_bar_refresh_rate = 2
    container.arguments = {"val_check_interval": 4}
    trainer, _ = create_lightning_trainer(container)

    trainer.fit(TinyModel(), datamodule=TinyData())

    counts = [re.search(r"(\d+)/8", line) for line in lines_of(capsys, "Training epoch")]
    assert [int(count[1]) for count in counts if count] == [2, 4, 6, 8]


def test_endless_data(capsys: pytest.CaptureFixture[str]) -> None:
    bar = AzureMLProgressBar(refresh_rate=5, print_timestamp=False)
    bar.start_stage(bar.PROGRESS_STAGE_TEST, math.inf)

    for batch in range(1, 11):
        bar.update_progress(batch)

    assert capsys.readouterr().out.splitlines() == [
        "Testing:    5 batches completed, 00:00 since epoch start",
        "Testing:   10 batches completed, 00:00 since epoch start",
    ]


# --- the default off a terminal ---------------------------------------------------------------------------------------


def test_short_epochs_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, LineProgressBar(), max_epochs=3)

    lines = lines_of(capsys, " epoch ")
    assert [re.search(r"Training epoch \d", line)[0] for line in lines] == [  # type: ignore[index]
        "Training epoch 0",
        "Training epoch 1",
        "Training epoch 2",
    ]


class Clock:
    """Time that passes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("batches", "seconds_per_batch", "lines"),
    [
        (100, 0.5, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),  # 10 % each
        (
            50,
            12.0,
            [3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40, 43, 45, 48, 50],
        ),  # 30 s each, and 10 %
        (4, 1.5, [1, 2, 3, 4]),
        (1000, 0.001, [1000]),  # no flood
    ],
)
def test_one_line_per_tenth_or_half_minute(
    monkeypatch: pytest.MonkeyPatch, batches: int, seconds_per_batch: float, lines: list[int]
) -> None:
    clock = Clock(monkeypatch)
    bar = LineProgressBar()
    bar.start_stage(bar.PROGRESS_STAGE_TRAIN, batches)
    due = []

    for batch in range(1, batches + 1):
        clock.now += seconds_per_batch
        if bar.is_due(batch):
            due.append(batch)

    assert due == lines


def test_endless_data_gets_a_line_per_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    bar = LineProgressBar()
    bar.start_stage(bar.PROGRESS_STAGE_TRAIN, math.inf)
    due = []

    for batch in range(1, 100):
        clock.now += 1.0
        if bar.is_due(batch):
            due.append(batch)

    assert due == [30, 60, 90]


# --- on a terminal ----------------------------------------------------------------------------------------------------


def test_live_bar_shows_metrics_but_no_version(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, LiveProgressBar(), model=LoggingModel())

    captured = capfd.readouterr()
    out = captured.out + captured.err
    assert "shown=7.000" in out
    assert "100%" in out
    assert "v_num" not in out
