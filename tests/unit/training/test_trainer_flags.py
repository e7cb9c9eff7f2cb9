"""Every flag of the Trainer has its effect on a real training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError
from health_ml.training.callbacks.diagnostics import TrainingDiagnoticsCallback
from health_ml.training.callbacks.progress_bar import AzureMLProgressBar, LineProgressBar, LiveProgressBar
from health_ml.training.loggers.storing_logger import StoringLogger
from health_ml.training.trainer import batch_limit, create_lightning_trainer, create_progress_bar
from tests.unit.training.tiny import TinyContainer, TinyData, TinyModel, tiny_container


def fit(
    folder: Path, *, model: TinyModel | None = None, **parameters: Any
) -> tuple[Trainer, TinyModel, StoringLogger, TinyContainer]:
    container = tiny_container(folder, **parameters)
    trainer, results = create_lightning_trainer(container)
    model = model or TinyModel()
    trainer.fit(model, datamodule=TinyData())
    return trainer, model, results, container


def test_max_epochs(tmp_path: Path) -> None:
    trainer, model, results, _ = fit(tmp_path, max_epochs=3)

    assert trainer.current_epoch == 3
    assert model.trained == 3 * list(range(8))
    assert list(results.epochs) == [0, 1, 2]


def test_all_batches_by_default(tmp_path: Path) -> None:
    trainer, model, _, _ = fit(tmp_path, max_epochs=1)
    trainer.test(model, datamodule=TinyData(), verbose=False)

    assert (len(model.trained), len(model.validated), len(model.tested)) == (8, 8, 8)


@pytest.mark.parametrize(("limit", "batches"), [(3, 3), (3.0, 3), (0.5, 4), (1, 1), (1.0, 8)])
def test_limits(tmp_path: Path, limit: float, batches: int) -> None:
    limits = {f"pl_limit_{stage}_batches": limit for stage in ("train", "val", "test")}
    trainer, model, _, _ = fit(tmp_path, max_epochs=1, **limits)
    trainer.test(model, datamodule=TinyData(), verbose=False)

    assert (len(model.trained), len(model.validated), len(model.tested)) == (batches, batches, batches)


def test_limits_are_independent(tmp_path: Path) -> None:
    trainer, model, _, _ = fit(
        tmp_path, max_epochs=1, pl_limit_train_batches=1, pl_limit_val_batches=2, pl_limit_test_batches=3
    )
    trainer.test(model, datamodule=TinyData(), verbose=False)

    assert (len(model.trained), len(model.validated), len(model.tested)) == (1, 2, 3)


@pytest.mark.parametrize("limit", [0, 0.0])
def test_zero_batches_are_none(tmp_path: Path, limit: float) -> None:
    trainer, model, _, _ = fit(tmp_path, max_epochs=1, pl_limit_val_batches=limit, pl_limit_test_batches=limit)
    trainer.test(model, datamodule=TinyData(), verbose=False)

    assert (len(model.trained), len(model.validated), len(model.tested)) == (8, 0, 0)


def test_no_limit_is_no_argument() -> None:
    assert batch_limit(None) is None


def test_sanity_validation(tmp_path: Path) -> None:
    _, model, _, _ = fit(tmp_path, max_epochs=1, pl_num_sanity_val_steps=2)

    assert model.validated == [0, 1, *range(8)]


def test_all_sanity_validation_batches(tmp_path: Path) -> None:
    _, model, _, _ = fit(tmp_path, max_epochs=1, pl_num_sanity_val_steps=-1)

    assert len(model.validated) == 16


def test_validation_every_n_epochs(tmp_path: Path) -> None:
    _, model, _, _ = fit(tmp_path, max_epochs=5, pl_check_val_every_n_epoch=2)

    assert len(model.validated) == 2 * 8


def test_accumulated_gradients(tmp_path: Path) -> None:
    trainer, _, _, _ = fit(tmp_path, max_epochs=2, pl_accumulate_grad_batches=4)

    assert trainer.global_step == 2 * 8 // 4


@pytest.mark.parametrize(("every", "logged"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (4, [3, 7])])
def test_log_every_n_steps(tmp_path: Path, every: int, logged: list[int]) -> None:
    _, _, results, _ = fit(tmp_path, max_epochs=1, pl_log_every_n_steps=every)

    assert results.results_per_epoch[0]["train/step"] == logged


def test_fast_dev_run_trains_and_tests_a_few_batches_and_keeps_nothing(tmp_path: Path) -> None:
    trainer, model, results, container = fit(tmp_path, pl_fast_dev_run=2)
    inference, _ = create_lightning_trainer(container, is_inference=True)
    inference.test(model, datamodule=TinyData(), verbose=False)

    assert (model.trained, model.validated, model.tested) == ([0, 1], [0, 1], [0, 1])
    assert trainer.current_epoch == 1
    assert not results.results_per_epoch
    assert not list(container.checkpoint_folder.iterdir())


def test_deterministic_mode(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1, pl_deterministic=True)

    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_deterministic_mode_of_the_container_turns_the_benchmark_off_too(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, max_epochs=1)
    container.arguments = {"deterministic": True}
    trainer, _ = create_lightning_trainer(container)
    trainer.fit(TinyModel(), datamodule=TinyData())

    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_fast_mode_by_default(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1)

    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


class NaNModel(TinyModel):
    """Its loss has a gradient that is not a number."""

    def _loss(self, batch: Any) -> torch.Tensor:
        return torch.sqrt(-(self.layer(batch[0]) ** 2)).mean()


def test_anomaly_detection(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="SqrtBackward0' returned nan"):
        fit(tmp_path, model=NaNModel(), max_epochs=1, detect_anomaly=True)


def test_no_anomaly_detection_by_default(tmp_path: Path) -> None:
    trainer, _, _, _ = fit(tmp_path, model=NaNModel(), max_epochs=1)

    assert trainer.current_epoch == 1


# --- profilers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "profiler", "text"),
    [
        ("simple", SimpleProfiler, "run_training_epoch"),
        ("advanced", AdvancedProfiler, "function calls"),
        ("pytorch", PyTorchProfiler, "aten::linear"),
    ],
)
def test_profiler_writes_to_the_profiler_folder(tmp_path: Path, name: str, profiler: type, text: str) -> None:
    trainer, _, _, container = fit(tmp_path, max_epochs=1, pl_profiler=name)

    assert type(trainer.profiler) is profiler
    reports = list((container.outputs_folder / "profiler").glob("fit-*.txt"))
    assert any(text in report.read_text() for report in reports)


def test_profiler_of_the_container(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    own = SimpleProfiler()
    container.arguments = {"profiler": own}

    trainer, _ = create_lightning_trainer(container)

    assert trainer.profiler is own


def test_profiler_flag_wins_over_that_of_the_container(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, pl_profiler="advanced")
    container.arguments = {"profiler": SimpleProfiler()}

    trainer, _ = create_lightning_trainer(container)

    assert isinstance(trainer.profiler, AdvancedProfiler)


def test_unknown_profiler(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, pl_profiler="quick")

    with pytest.raises(ArgumentsError, match=r"Unsupported profiler 'quick'. Choose one of simple, advanced, pytorch"):
        create_lightning_trainer(container)


# --- progress bar -----------------------------------------------------------------------------------------------------


def test_default_progress_bar_off_a_terminal(tmp_path: Path) -> None:
    trainer, _ = create_lightning_trainer(tiny_container(tmp_path, pl_progress_bar_refresh_rate=None))

    assert type(trainer.progress_bar_callback) is LineProgressBar


def test_no_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _, _, _ = fit(tmp_path, pl_progress_bar_refresh_rate=0)

    assert trainer.progress_bar_callback is None
    assert "Training epoch" not in capsys.readouterr().out


def test_refresh_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, max_epochs=1, pl_progress_bar_refresh_rate=3)

    lines = [line for line in capsys.readouterr().out.splitlines() if "Training epoch 0" in line]
    assert [line.split(": ")[1].split("/")[0].strip() for line in lines] == ["3", "6", "8"]


def test_live_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    live = create_progress_bar(7, environment=RunEnvironment())
    in_a_job = create_progress_bar(7, environment=RunEnvironment(is_in_azureml=True))

    assert isinstance(live, LiveProgressBar)
    assert live.refresh_rate == 7
    assert type(in_a_job) is AzureMLProgressBar


def test_own_progress_bar_stays(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, pl_progress_bar_refresh_rate=None)
    own = TQDMProgressBar()
    container.callbacks = [own]

    trainer, _ = create_lightning_trainer(container)

    assert trainer.progress_bar_callback is own


def test_own_progress_bar_is_turned_off_too(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, pl_progress_bar_refresh_rate=0)
    container.callbacks = [TQDMProgressBar()]

    trainer, _ = create_lightning_trainer(container)

    assert trainer.progress_bar_callback is None


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_monitor_loading(tmp_path: Path) -> None:
    _, _, results, _ = fit(tmp_path, max_epochs=1, monitor_loading=True)

    names = results.extract_by_prefix(0, "timing/")
    assert {name.split("/")[0] for name in names} == {"train", "val"}
    assert results.results_per_epoch[0]["timing/train/epoch_time [sec]"] > 0


def test_monitor_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer, _, _, _ = fit(tmp_path, max_epochs=1, monitor_training=True)

    assert any(isinstance(callback, TrainingDiagnoticsCallback) for callback in trainer.callbacks)
    for stage in ("on_fit_start", "on_train_epoch_start", "on_validation_epoch_end", "on_train_end", "teardown"):
        assert f": {stage}" in caplog.text


def test_no_monitors_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _, _, results, _ = fit(tmp_path, max_epochs=1)

    assert not results.extract_by_prefix(0, "timing/")
    assert "on_train_epoch_start" not in caplog.text


# --- inference --------------------------------------------------------------------------------------------------------


def test_inference_keeps_no_checkpoints(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    trainer, _ = create_lightning_trainer(container, is_inference=True)

    [metrics] = trainer.test(TinyModel(), datamodule=TinyData(), verbose=False)

    assert metrics["test/loss"] > 0
    assert not trainer.checkpoint_callbacks
    assert not list(container.checkpoint_folder.iterdir())


def test_default_root_directory_is_the_outputs_folder(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    trainer, _ = create_lightning_trainer(container)

    assert trainer.default_root_dir == str(container.outputs_folder)


def test_model_without_validation(tmp_path: Path) -> None:
    class TrainOnly(TinyModel):
        validation_step = LightningModule.validation_step

    trainer, _, results, container = fit(tmp_path, model=TrainOnly(), max_epochs=2)

    assert trainer.current_epoch == 2
    assert "val/loss" not in results.results_per_epoch[1]
    assert (container.checkpoint_folder / "last.ckpt").is_file()
