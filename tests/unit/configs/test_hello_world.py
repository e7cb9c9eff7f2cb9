"""HelloWorld: its data, its folds, and what it learns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from health_ml.configs.hello_world import HelloWorld, load_points, split_rows
from health_ml.environment import working_directory
from tests.helpers.training import quiet_trainer


def test_points_lie_near_the_documented_line() -> None:
    x, y = load_points().T
    slope, offset = np.polyfit(x, y, deg=1)
    assert len(x) == 100
    assert (slope, offset) == pytest.approx((1.5, 0.5), abs=0.05)
    assert np.std(y - 1.5 * x - 0.5) == pytest.approx(0.1, abs=0.03)


def test_fixed_split_uses_each_row_once() -> None:
    parts = split_rows(100)
    assert [len(part) for part in parts] == [60, 20, 20]
    assert sorted(np.concatenate(parts)) == list(range(100))


@pytest.mark.parametrize("count", [2, 3, 5, 7, 80])
def test_each_row_validates_in_exactly_one_fold(count: int) -> None:
    validated: Counter[int] = Counter()
    test_rows = set(split_rows(100)[2])
    for index in range(count):
        train, validation, test = split_rows(100, crossval_count=count, crossval_index=index)
        assert sorted(np.concatenate([train, validation, test])) == list(range(100))
        assert set(test) == test_rows
        assert abs(len(validation) - 80 / count) < 1
        validated.update(validation)
    assert validated == Counter(set(range(100)) - test_rows)


def test_container_hands_its_fold_to_the_data_module() -> None:
    container = HelloWorld()
    container.crossval_count = 4
    seen: list[float] = []
    for index in range(4):
        container.crossval_index = index
        data = container.get_data_module()
        assert len(data.val_dataloader().dataset) == 20
        seen.extend(x.item() for x, _ in data.val_dataloader().dataset)
    held_out = [x.item() for x, _ in data.test_dataloader().dataset]
    assert sorted([*seen, *held_out]) == sorted(load_points()[:, 0].tolist())


def test_training_fits_the_line_and_writes_the_test_errors(tmp_path: Path) -> None:
    container = HelloWorld()
    torch.manual_seed(1)
    model, data = container.create_lightning_module(), container.get_data_module()
    trainer = quiet_trainer(max_epochs=container.max_epochs, default_root_dir=tmp_path)
    with working_directory(tmp_path):
        trainer.fit(model, data)
        losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (metrics,) = trainer.test(model, data, verbose=False)
    assert container.has_custom_test_step()
    assert losses["train/loss"] < 0.02
    assert losses["val/loss"] < 0.02
    assert metrics["test/mse"] < 0.02
    assert model.line.weight.item() == pytest.approx(1.5, abs=0.1)
    assert float((tmp_path / "test_mse.txt").read_text()) == pytest.approx(metrics["test/mse"])
    assert float((tmp_path / "test_mae.txt").read_text()) == pytest.approx(metrics["test/mae"])
    x, y = data.test_data.tensors
    assert metrics["test/mae"] == pytest.approx((model(x) - y).abs().mean().item(), rel=1e-5)
