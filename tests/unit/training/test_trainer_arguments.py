"""What a container gives to the Trainer directly, and what wins over what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from health_ml.cli.parse import parse
from health_ml.errors import ContainerError
from health_ml.training.checkpoint_io import AtomicCheckpointIO
from health_ml.training.loggers.run_logger import RunLogger
from health_ml.training.loggers.storing_logger import StoringLogger
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import TinyContainer, tiny_container


class Marker(Callback):
    """Does nothing."""


def test_container_arguments_reach_the_trainer(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.arguments = {"gradient_clip_val": 0.5, "max_steps": 7, "reload_dataloaders_every_n_epochs": 2}

    trainer, _ = create_lightning_trainer(container)

    assert trainer.gradient_clip_val == 0.5
    assert trainer.max_steps == 7
    assert trainer.reload_dataloaders_every_n_epochs == 2


def test_container_arguments_win_over_the_default_of_a_flag(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.arguments = {"log_every_n_steps": 3, "limit_train_batches": 5}

    trainer, _ = create_lightning_trainer(container)

    assert trainer.log_every_n_steps == 3
    assert trainer.limit_train_batches == 5


def test_typed_flags_win_over_container_arguments(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, pl_log_every_n_steps=4)
    container.arguments = {"log_every_n_steps": 3, "limit_train_batches": 5}
    container.set_typed_parameters(["pl_log_every_n_steps"])

    trainer, _ = create_lightning_trainer(container)

    assert trainer.log_every_n_steps == 4
    assert trainer.limit_train_batches == 5


def test_the_command_line_says_which_flags_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = ["--model=HelloWorld", "--pl_log_every_n_steps=4", "--trainer.gradient_clip_val=0.5"]
    container = parse(command, start_directory=tmp_path).container

    assert "pl_log_every_n_steps" in container.typed_parameters
    assert "max_epochs" not in container.typed_parameters


def test_overrides_win_over_everything(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.arguments = {"gradient_clip_val": 0.5}
    container.trainer_argument_overrides.update({"gradient_clip_val": 0.25, "precision": "64-true"})
    container.set_typed_parameters(["use_mixed_precision"])

    trainer, _ = create_lightning_trainer(container)

    assert trainer.gradient_clip_val == 0.25
    assert trainer.precision == "64-true"


def test_callbacks_come_from_both_methods(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    first, second = Marker(), Marker()
    container.arguments = {"callbacks": first}
    container.callbacks = [second]

    trainer, _ = create_lightning_trainer(container)

    assert [callback for callback in trainer.callbacks if isinstance(callback, Marker)] == [first, second]


def test_own_loggers_come_after_those_of_the_run(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    own = CSVLogger(str(tmp_path / "csv"))
    container.arguments = {"logger": own}

    trainer, results = create_lightning_trainer(container)

    assert isinstance(trainer.loggers[0], RunLogger)
    assert trainer.loggers[1:] == [results, own]
    assert isinstance(results, StoringLogger)


@pytest.mark.parametrize("value", [True, False, None])
def test_the_record_is_written_whatever_the_container_says_of_loggers(tmp_path: Path, value: Any) -> None:
    container = tiny_container(tmp_path)
    container.arguments = {"logger": value}

    trainer, results = create_lightning_trainer(container)

    assert isinstance(trainer.logger, RunLogger)
    assert trainer.loggers[1:] == [results]


def test_unknown_argument(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.arguments = {"gradient_clip_value": 1, "gpus": 2}

    with pytest.raises(
        ContainerError, match=r"no argument 'gradient_clip_value'. Did you mean .gradient_clip_val"
    ) as e:
        create_lightning_trainer(container)

    assert "TinyContainer.get_trainer_arguments" in str(e.value)
    assert "no argument 'gpus'. Use devices and accelerator" in str(e.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_checkpointing": False}, "enable_checkpointing=False is not possible: the runner keeps last.ckpt"),
        ({"barebones": True}, "barebones=True is not possible"),
        (["max_steps"], r"returned \['max_steps'\]. Return a dictionary"),
        ({"callbacks": [print]}, "get_trainer_arguments returned <built-in function print> as a callback"),
        ({"precision": "17"}, "The Lightning Trainer refuses its arguments for TinyContainer"),
        ({"val_check_interval": 1.5}, "refuses its arguments for TinyContainer: You have passed invalid value 1.5"),
    ],
)
def test_arguments_that_cannot_be_used(tmp_path: Path, arguments: Any, message: str) -> None:
    container = tiny_container(tmp_path)
    container.arguments = arguments

    with pytest.raises(ContainerError, match=message):
        create_lightning_trainer(container)


def test_callbacks_that_are_none(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.callbacks = [TinyContainer]

    with pytest.raises(ContainerError, match=r"get_callbacks returned <class .*TinyContainer'> as a callback"):
        create_lightning_trainer(container)


def test_nothing_returned_means_no_arguments(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.arguments = None
    container.callbacks = None

    trainer, _ = create_lightning_trainer(container)

    assert trainer.max_epochs == 2


def test_inference_leaves_out_the_processes_of_the_training(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    container.arguments = {"num_nodes": 3}
    container.trainer_argument_overrides.update({"accelerator": "cpu", "devices": 2, "strategy": "ddp"})

    trainer, _ = create_lightning_trainer(container, is_inference=True)

    assert trainer.world_size == 1


def test_own_checkpoint_io_stays(tmp_path: Path) -> None:
    class OwnIO(AtomicCheckpointIO):
        """The user's own."""

    container = tiny_container(tmp_path)
    container.arguments = {"plugins": OwnIO()}

    trainer, _ = create_lightning_trainer(container)

    assert type(trainer.strategy.checkpoint_io) is OwnIO


def test_model_checkpoint_of_the_user_is_the_first(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    own = ModelCheckpoint(monitor="val/loss")
    container.callbacks = [own]

    trainer, _ = create_lightning_trainer(container)

    assert trainer.checkpoint_callback is own
