"""Real checkpoints, written once by torch and by the Lightning Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def checkpoint_content(epoch: int = 3, step: int = 17, **more: Any) -> dict[str, Any]:
    model = torch.nn.Linear(64, 32)
    return {"epoch": epoch, "global_step": step, "state_dict": model.state_dict(), **more}


def save(path: Path, epoch: int = 3, step: int = 17, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint_content(epoch, step, **more), path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / "given.ckpt")


@pytest.fixture(scope="session")
def lightning_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pytorch_lightning.demos.boring_classes import BoringModel

    from tests.helpers.training import quiet_trainer

    folder = tmp_path_factory.mktemp("lightning")
    trainer = quiet_trainer(default_root_dir=folder, max_epochs=2, limit_train_batches=3, limit_val_batches=0)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"
