"""The checkpoints of a run: there after every epoch, complete, and apart from those of the user."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from health_ml.errors import OutputError
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import TinyContainer, TinyData, TinyModel, TrainOnlyModel, tiny_container


class Watcher(Callback):
    """Notes which checkpoints there are at the start of each epoch, and which epoch they hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, int]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(epochs_in(self.folder))


def epochs_in(folder: Path) -> dict[str, int]:
    files = sorted(folder.iterdir())
    return {path.name: torch.load(path, weights_only=True)["epoch"] for path in files}


def train(container: TinyContainer, model: TinyModel | None = None, **arguments: Any) -> tuple[Trainer, Watcher]:
    watcher = Watcher(container.checkpoint_folder)
    container.callbacks = [*container.callbacks, watcher]
    trainer, _ = create_lightning_trainer(container)
    trainer.fit(model or TinyModel(), datamodule=TinyData(), **arguments)
    return trainer, watcher


@pytest.mark.parametrize("model", [TinyModel, TrainOnlyModel])
def test_last_and_autosave_after_every_epoch(tmp_path: Path, model: type[TinyModel]) -> None:
    container = tiny_container(tmp_path, max_epochs=3)

    _, watcher = train(container, model())

    assert watcher.seen == [{}, {"autosave.ckpt": 0, "last.ckpt": 0}, {"autosave.ckpt": 1, "last.ckpt": 1}]
    assert epochs_in(container.checkpoint_folder) == {"last.ckpt": 2}


def test_autosave_every_n_epochs_with_validation(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, max_epochs=6, autosave_every_n_val_epochs=2, pl_check_val_every_n_epoch=2)

    _, watcher = train(container)

    assert [seen.get("autosave.ckpt") for seen in watcher.seen] == [None, None, None, None, 3, 3]
    assert [seen.get("last.ckpt") for seen in watcher.seen] == [None, 0, 1, 2, 3, 4]


def test_no_autosave(tmp_path: Path) -> None:
    _, watcher = train(tiny_container(tmp_path, max_epochs=3, autosave_every_n_val_epochs=0))

    assert watcher.seen[-1] == {"last.ckpt": 1}


class FailingModel(TinyModel):
    """Fails in the second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 1:
            raise RuntimeError("the model fails")
        return super().training_step(batch, batch_idx)


def test_failed_training_keeps_both(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)

    with pytest.raises(RuntimeError, match="the model fails"):
        train(container, FailingModel())

    assert epochs_in(container.checkpoint_folder) == {"autosave.ckpt": 0, "last.ckpt": 0}


def test_training_continues_at_the_next_epoch(tmp_path: Path) -> None:
    first = tiny_container(tmp_path / "first", max_epochs=2)
    train(first)
    second = tiny_container(tmp_path / "second", max_epochs=4)
    model = TinyModel()

    trainer, _ = train(second, model, ckpt_path=str(first.checkpoint_folder / "last.ckpt"), weights_only=True)

    assert trainer.current_epoch == 4
    assert model.trained == 2 * list(range(8))
    assert epochs_in(second.checkpoint_folder) == {"last.ckpt": 3}


def test_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    weights = []
    torch.manual_seed(1)
    start = TinyModel().state_dict()
    for name, epochs in (("whole", [4]), ("parts", [2, 4])):
        checkpoint = None
        for index, max_epochs in enumerate(epochs):
            container = tiny_container(tmp_path / f"{name}{index}", max_epochs=max_epochs)
            model = TinyModel()
            model.load_state_dict(start)
            train(container, model, ckpt_path=checkpoint, weights_only=True)
            checkpoint = str(container.checkpoint_folder / "last.ckpt")
        weights.append(model.layer.weight)

    assert torch.equal(*weights)


def test_early_stopping_in_the_middle_keeps_the_last_epoch(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, max_epochs=10)
    container.callbacks = [EarlyStopping("val/loss", mode="max", patience=2)]

    trainer, _ = train(container)

    assert trainer.current_epoch == 3
    assert epochs_in(container.checkpoint_folder) == {"last.ckpt": 2}


def test_stopping_in_the_middle_of_an_epoch_keeps_its_steps(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.arguments = {"max_steps": 11}

    train(container)

    assert torch.load(container.checkpoint_folder / "last.ckpt", weights_only=True)["global_step"] == 11


# --- checkpoints of the user ------------------------------------------------------------------------------------------


def test_model_checkpoints_with_equal_settings_work_together(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.callbacks = [
        ModelCheckpoint(monitor="val/loss", filename="one", auto_insert_metric_name=False),
        ModelCheckpoint(monitor="val/loss", filename="two", auto_insert_metric_name=False),
        ModelCheckpoint(monitor="val/loss", filename="three", dirpath=tmp_path / "elsewhere"),
    ]

    trainer, _ = train(container)

    assert set(epochs_in(container.checkpoint_folder)) == {"last.ckpt", "one.ckpt", "two.ckpt"}
    assert (tmp_path / "elsewhere" / "three.ckpt").is_file()
    own = trainer.checkpoint_callbacks[:3]
    assert all(isinstance(callback, ModelCheckpoint) for callback in own)
    assert len({callback.state_key for callback in own}) == 3
    states = torch.load(container.checkpoint_folder / "last.ckpt", weights_only=True)["callbacks"]
    assert Path(states[own[1].state_key]["best_model_path"]).name == "two.ckpt"


def test_states_of_equal_model_checkpoints_come_back(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:  # the loss falls, so the first epoch stays the best
        return [ModelCheckpoint(monitor="val/loss", mode="max", filename=name) for name in ("one", "two")]

    first = tiny_container(tmp_path, max_epochs=1)
    first.callbacks = callbacks()
    train(first)
    second = tiny_container(tmp_path, max_epochs=2)
    second.callbacks = callbacks()

    trainer, _ = train(second, ckpt_path=str(first.checkpoint_folder / "last.ckpt"), weights_only=True)

    best = [Path(callback.best_model_path).name for callback in trainer.checkpoint_callbacks[:2]]
    assert best == ["one.ckpt", "two.ckpt"]
    assert epochs_in(second.checkpoint_folder) == {"last.ckpt": 1, "one.ckpt": 0, "two.ckpt": 0}


@pytest.mark.parametrize("save_last", [True, "link"])
def test_users_own_last_checkpoint_does_not_spoil_ours(tmp_path: Path, save_last: Any) -> None:
    container = tiny_container(tmp_path, max_epochs=3)
    container.callbacks = [ModelCheckpoint(monitor="val/loss", filename="best", save_last=save_last)]

    _, watcher = train(container)

    assert [seen.get("last.ckpt") for seen in watcher.seen] == [None, 0, 1]
    assert epochs_in(container.checkpoint_folder)["last.ckpt"] == 2
    assert not (container.checkpoint_folder / "last.ckpt").is_symlink()


# --- what is in them --------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class ModelWithHyperparameters(TinyModel):
    def __init__(self, folder: Path | str, colour: Colour | str = Colour.RED, nested: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_paths_and_enums_do_not_make_a_checkpoint_unreadable(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.callbacks = [ModelCheckpoint(filename="weights", save_weights_only=True)]
    train(container, ModelWithHyperparameters(tmp_path, Colour.RED, nested={"paths": [tmp_path]}))

    last = container.checkpoint_folder / "last.ckpt"
    loaded = ModelWithHyperparameters.load_from_checkpoint(str(last), weights_only=True)

    assert dict(loaded.hparams) == {"folder": str(tmp_path), "colour": "red", "nested": {"paths": [str(tmp_path)]}}
    assert epochs_in(container.checkpoint_folder) == {"last.ckpt": 1, "weights.ckpt": 1}


def test_hyperparameters_of_the_running_model_keep_their_types(tmp_path: Path) -> None:
    model = ModelWithHyperparameters(tmp_path)

    train(tiny_container(tmp_path), model)

    assert model.hparams["folder"] == tmp_path
    assert model.hparams["colour"] is Colour.RED


def test_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.checkpoint_folder.rmdir()
    container.checkpoint_folder.write_text("a file where the folder should be")
    trainer, _ = create_lightning_trainer(container)

    with pytest.raises(OutputError, match=r"Cannot write the checkpoint .*checkpoints/last\.ckpt: "):
        trainer.fit(TinyModel(), datamodule=TinyData())
