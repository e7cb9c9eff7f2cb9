"""The runner calls the methods of a container in the documented order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
from pytorch_lightning import LightningDataModule, LightningModule

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.experiment_config import RunnerMode
from tests.helpers.containers import LineContainer, LineModel
from tests.helpers.runs import run_container


class TracingModel(LineModel):
    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    def on_fit_start(self) -> None:
        self.calls.append(f"fit in {Path.cwd().name}")

    def on_validation_start(self) -> None:
        if not self.trainer.training and self.trainer.state.fn == "validate":
            self.calls.append(f"validate in {Path.cwd().name}")

    def on_test_start(self) -> None:
        self.calls.append(f"test in {Path.cwd().name}")

    def on_run_extra_validation_epoch(self) -> None:
        self.calls.append("model.on_run_extra_validation_epoch")


def _traced(name: str) -> Any:
    def method(self: TracingContainer, *args: Any) -> Any:
        self.calls.append(name)
        return getattr(LineContainer, name)(self, *args)

    return method


class TracingContainer(LineContainer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"max_epochs": 1, **kwargs})
        self.calls: list[str] = []

    def create_model(self) -> LightningModule:
        self.calls.append("create_model")
        return TracingModel(self.calls)

    get_additional_environment_variables = _traced("get_additional_environment_variables")
    get_additional_aml_run_tags = _traced("get_additional_aml_run_tags")
    setup = _traced("setup")
    before_training_on_global_rank_zero = _traced("before_training_on_global_rank_zero")
    before_training_on_local_rank_zero = _traced("before_training_on_local_rank_zero")
    before_training_on_all_ranks = _traced("before_training_on_all_ranks")
    get_data_module = _traced("get_data_module")
    get_trainer_arguments = _traced("get_trainer_arguments")
    get_callbacks = _traced("get_callbacks")
    on_run_extra_validation_epoch = _traced("on_run_extra_validation_epoch")
    get_checkpoint_to_test = _traced("get_checkpoint_to_test")

    def get_eval_data_module(self) -> LightningDataModule:
        self.calls.append("get_eval_data_module")
        return LineContainer.get_data_module(self)


@pytest.fixture
def seeded_container(monkeypatch: pytest.MonkeyPatch) -> TracingContainer:
    """A container that also traces when the random number generators are seeded."""
    container = TracingContainer()

    def traced_seed(seed: int, workers: bool = False, verbose: bool = True) -> int:
        container.calls.append(f"seed {seed} workers={workers}")
        return seed

    monkeypatch.setattr(pytorch_lightning, "seed_everything", traced_seed)
    return container


SETUP = [
    "get_additional_environment_variables",
    "get_additional_aml_run_tags",
    "seed 42 workers=False",
    "setup",
    "create_model",
]
SEED = "seed 42 workers=True"
BEFORE_TRAINING = [
    "before_training_on_global_rank_zero",
    "before_training_on_local_rank_zero",
    "before_training_on_all_ranks",
    SEED,
    "get_data_module",
]
TRAINER = ["get_trainer_arguments", "get_callbacks"]


def test_training(seeded_container: TracingContainer, tmp_path: Path) -> None:
    result = run_container(seeded_container, tmp_path)
    folder = result.paths.outputs.name
    assert seeded_container.calls == [
        *SETUP,
        *BEFORE_TRAINING,
        *TRAINER,
        SEED,
        f"fit in {folder}",
        "get_checkpoint_to_test",
        *TRAINER,
        SEED,
        "get_data_module",
        SEED,
        f"test in {folder}",
    ]


def test_training_with_extra_validation_epoch(seeded_container: TracingContainer, tmp_path: Path) -> None:
    seeded_container.run_extra_val_epoch = True
    result = run_container(seeded_container, tmp_path)
    folder = result.paths.outputs.name
    after_fit = seeded_container.calls[seeded_container.calls.index(f"fit in {folder}") + 1 :]
    assert after_fit == [
        "on_run_extra_validation_epoch",
        "model.on_run_extra_validation_epoch",
        "get_checkpoint_to_test",
        *TRAINER,
        SEED,
        "get_data_module",
        SEED,
        f"validate in {folder}",
        SEED,
        f"test in {folder}",
    ]


@pytest.fixture
def checkpoint(tmp_path: Path) -> CheckpointParser:
    result = run_container(LineContainer(max_epochs=1), tmp_path / "before")
    assert result.checkpoint is not None
    return CheckpointParser(str(result.checkpoint))


def test_inference_only(checkpoint: CheckpointParser, seeded_container: TracingContainer, tmp_path: Path) -> None:
    seeded_container.run_inference_only = True
    seeded_container.src_checkpoint = checkpoint
    result = run_container(seeded_container, tmp_path)
    folder = result.paths.outputs.name
    assert seeded_container.calls == [
        *SETUP,
        *TRAINER,
        SEED,
        "get_data_module",
        SEED,
        f"validate in {folder}",
        SEED,
        f"test in {folder}",
    ]


def test_eval_full(checkpoint: CheckpointParser, seeded_container: TracingContainer, tmp_path: Path) -> None:
    seeded_container.src_checkpoint = checkpoint
    result = run_container(seeded_container, tmp_path, mode=RunnerMode.EVAL_FULL)
    assert seeded_container.calls == [
        *SETUP,
        SEED,
        "get_eval_data_module",
        *TRAINER,
        SEED,
        f"test in {result.paths.outputs.name}",
    ]
