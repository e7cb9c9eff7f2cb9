"""A training that was stopped and resumed ends with the same weights, metrics and data as one that never stopped."""

from __future__ import annotations

import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from health_ml.environment import restored_environment
from health_ml.training.callbacks.exact_resume import (
    CHECKPOINT_KEY,
    ExactResume,
    get_random_states,
    set_random_states,
)
from health_ml.training.callbacks.stop_on_signal import StopOnSignal
from health_ml.training.signals import RunInterrupted, SignalGuard

BATCHES = 6
Moment = tuple[str, int, int]


class NoisyData(Dataset[Any]):
    """Numbers with noise from all three generators, as augmentations add it."""

    def __len__(self) -> int:
        return 4 * BATCHES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(1))
        return torch.tensor([float(index)]), torch.tensor([0.1 * noise])


class NoisyModel(LightningModule):
    """A model with dropout that notes which data it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.dropout = torch.nn.Dropout(0.3)
        self.seen: list[tuple[int, int, list[float]]] = []

    def on_train_epoch_start(self) -> None:
        torch.rand(1)

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        x, y = batch
        self.seen.append((self.current_epoch, batch_index, [*x.flatten().tolist(), *y.flatten().tolist()]))
        loss = ((self.line(self.dropout(x / 10)) - y) ** 2).mean()
        self.log("train", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_index: int) -> None:
        x, y = batch
        self.log("val", ((self.line(x / 10) - y) ** 2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class SignalAt(Callback):
    """Sends the signal at one moment: the name of a hook, the epoch and the training batch."""

    def __init__(self, guard: SignalGuard, moment: Moment) -> None:
        self._guard = guard
        self._moment = moment

    def _signal_if(self, trainer: Trainer, hook: str) -> None:
        if (hook, trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx) == self._moment:
            self._guard._received = signal.SIGTERM

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._signal_if(trainer, "batch")

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self._signal_if(trainer, "validation")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 2:
            self._signal_if(trainer, "validation batch")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._signal_if(trainer, "epoch")


def train(
    *,
    checkpoint: Path | None = None,
    stop: tuple[Path, Moment] | None = None,
    workers: int = 0,
    is_exact: bool = True,
    limit: float | None = None,
    own: ModelCheckpoint | None = None,
    validate_every: int | None = None,
) -> tuple[NoisyModel, Trainer]:
    """Returns the model and its Trainer, after four epochs or the stop."""
    model = NoisyModel()
    callbacks: list[Callback] = [ExactResume()] if is_exact else []
    if own is not None:
        callbacks += [own, StopOnSignal(SignalGuard(), None)]
    if stop is not None:
        guard = SignalGuard()
        callbacks += [SignalAt(guard, stop[1]), StopOnSignal(guard, stop[0])]
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False,
        enable_checkpointing=stop is not None or own is not None, enable_model_summary=False, num_sanity_val_steps=1,
        limit_train_batches=limit, val_check_interval=validate_every,
    )  # fmt: skip
    loaders = [
        DataLoader(NoisyData(), batch_size=4, shuffle=is_train, num_workers=workers) for is_train in (True, False)
    ]
    trainer.fit(model, *loaders, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    return model, trainer


@pytest.fixture(autouse=True)
def seeds() -> Any:
    """The same seed for each training, and no trace of it in the environment afterwards."""
    with restored_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def seeded_training(**arguments: Any) -> tuple[NoisyModel, Trainer]:
    seed_everything(1, workers=True, verbose=False)
    return train(**arguments)


def check_resume(folder: Path, moment: Moment, **arguments: Any) -> None:
    expected, expected_trainer = seeded_training(**arguments)
    checkpoint = folder / "stopped.ckpt"
    with pytest.raises(RunInterrupted, match="SIGTERM"):
        seeded_training(stop=(checkpoint, moment), **arguments)
    resumed, resumed_trainer = seeded_training(checkpoint=checkpoint, **arguments)

    assert 0 < len(resumed.seen) < len(expected.seen)
    assert resumed.seen == expected.seen[-len(resumed.seen) :]
    assert torch.equal(resumed.line.weight, expected.line.weight)
    assert {name: float(value) for name, value in resumed_trainer.callback_metrics.items()} == {
        name: float(value) for name, value in expected_trainer.callback_metrics.items()
    }


MOMENTS: list[Moment] = [
    ("batch", 0, 2),
    ("batch", 1, 2),
    ("batch", 2, BATCHES - 1),
    ("validation", 0, BATCHES - 1),
    ("validation batch", 1, BATCHES - 1),
    ("epoch", 0, BATCHES - 1),
    ("epoch", 1, BATCHES - 1),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]} {moment[2]} of epoch {moment[1]}")
def test_resumed_training_is_exact(moment: Moment, tmp_path: Path) -> None:
    check_resume(tmp_path, moment)


@pytest.mark.parametrize("moment", [("batch", 0, 2), ("batch", 1, 2), ("epoch", 1, BATCHES - 1)])
def test_resumed_training_is_exact_with_processes_that_load_data(moment: Moment, tmp_path: Path) -> None:
    check_resume(tmp_path, moment, workers=2)


def test_resumed_training_is_exact_with_a_part_of_the_batches(tmp_path: Path) -> None:
    check_resume(tmp_path, ("batch", 1, 1), limit=0.5)


@pytest.mark.parametrize(
    ("settings", "validate_every", "batches_left"),
    [
        pytest.param({"monitor": "val"}, None, [18, 12, 6], id="after each validation"),
        pytest.param({"monitor": "val"}, 3, [21, 18, 15, 12, 9, 6], id="after validations within an epoch"),
        pytest.param({"every_n_train_steps": 4}, None, [20, 16, 12, 8], id="also at the last batch of an epoch"),
        pytest.param({"every_n_train_steps": 6}, None, [18, 12, 6], id="at the last batch of each epoch"),
    ],
)
def test_checkpoints_of_the_user_are_resumed_exactly(
    settings: dict[str, Any], validate_every: int | None, batches_left: list[int], tmp_path: Path
) -> None:
    own = ModelCheckpoint(tmp_path, filename="{step:02d}", save_top_k=-1, **settings)
    expected, expected_trainer = seeded_training(own=own, validate_every=validate_every)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    for checkpoint, left in zip(checkpoints, batches_left, strict=False):
        resumed, trainer = seeded_training(
            checkpoint=checkpoint, own=ModelCheckpoint(tmp_path / "resumed"), validate_every=validate_every
        )
        assert resumed.seen == expected.seen[-left:], checkpoint
        assert torch.equal(resumed.line.weight, expected.line.weight), checkpoint
        assert trainer.callback_metrics == expected_trainer.callback_metrics, checkpoint
    assert len(checkpoints) > len(batches_left)


def test_training_that_is_not_resumed_is_as_without_the_callback() -> None:
    exact, _ = seeded_training()
    plain, _ = seeded_training(is_exact=False)
    assert exact.seen == plain.seen


def test_checkpoint_from_elsewhere_is_resumed_without_states(tmp_path: Path) -> None:
    checkpoint = tmp_path / "foreign.ckpt"
    with pytest.raises(RunInterrupted, match="SIGTERM"):
        seeded_training(stop=(checkpoint, ("epoch", 1, BATCHES - 1)), is_exact=False)
    assert CHECKPOINT_KEY not in torch.load(checkpoint, weights_only=True)
    resumed, _ = seeded_training(checkpoint=checkpoint)
    assert [(epoch, batch) for epoch, batch, _ in resumed.seen] == [(e, b) for e in (2, 3) for b in range(BATCHES)]


def test_states_survive_the_safe_loader(tmp_path: Path) -> None:
    random.gauss(0, 1)
    np.random.normal()
    torch.save(get_random_states(), tmp_path / "states.pt")
    expected = (random.gauss(0, 1), random.random(), np.random.normal(), float(torch.rand(1)))
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert (random.gauss(0, 1), random.random(), np.random.normal(), float(torch.rand(1))) == expected
