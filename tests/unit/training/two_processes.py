"""Trains in two processes on the CPU, one setting after the other, and then tests on one process.

Each process writes what it saw to ``rank<n>.json`` in the folder given as the argument.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from health_ml.environment import RunEnvironment, process_environment, restored_environment
from health_ml.records.record import RunRecord
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import TinyContainer, TinyData, TinyModel, tiny_container


class UnusedModel(TinyModel):
    """Has a layer that takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Linear(2, 1)


class BatchNormModel(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))  # type: ignore[assignment]


class Wrapping(Callback):
    """Notes how torch was told to treat the graph; the wrapped model is gone after the training."""

    def __init__(self) -> None:
        self.is_static: bool | None = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_static = trainer.model.static_graph  # type: ignore[union-attr, assignment]


def container_for(folder: Path, **parameters: Any) -> TinyContainer:
    container = tiny_container(folder, max_epochs=1, **parameters)
    container.trainer_argument_overrides.update({"accelerator": "cpu", "devices": 2})
    return container


def train(folder: Path, model: TinyModel, **parameters: Any) -> dict[str, Any]:
    container = container_for(folder, **parameters)
    environment = RunEnvironment.from_env(process_environment())
    record = RunRecord.create(container.run_paths.record, run_id="two") if environment.is_global_rank_zero else None
    wrapping = Wrapping()
    container.callbacks = [wrapping]
    trainer, _ = create_lightning_trainer(container, environment=environment, record=record)
    seen: dict[str, Any] = {}
    try:
        trainer.fit(model, datamodule=TinyData())
    except RuntimeError as error:
        seen["error"] = str(error)
    return {
        **seen,
        "world_size": trainer.world_size,
        "batches": len(model.trained),
        "weight": [parameter.sum().item() for parameter in model.parameters()],
        "is_static": wrapping.is_static,
    }


def infer_on_one_process(folder: Path) -> dict[str, Any]:
    torch.distributed.destroy_process_group()
    container = container_for(folder)
    trainer, _ = create_lightning_trainer(container, is_inference=True)
    model = TinyModel()
    checkpoint = container.checkpoint_folder / "last.ckpt"
    trainer.test(model, datamodule=TinyData(), ckpt_path=str(checkpoint), weights_only=True, verbose=False)
    return {"world_size": trainer.world_size, "batches": len(model.tested)}


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.WARNING)
    environment = RunEnvironment.from_env(process_environment())
    with restored_environment():
        results = {
            "default": train(folder / "default", TinyModel(), monitor_loading=True),
            "own_sampler": train(folder / "own_sampler", TinyModel(), pl_replace_sampler_ddp=False),
            "static": train(folder / "static", TinyModel(), pl_static_graph=True),
            "batch_norm": train(folder / "batch_norm", BatchNormModel()),
            "unused": train(folder / "unused", UnusedModel(), pl_find_unused_parameters=True),
            "unused_not_found": train(folder / "unused_not_found", UnusedModel()),
        }
    if environment.rank == 0:
        results["inference"] = infer_on_one_process(folder / "default")
    (folder / f"rank{environment.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
