"""The container outside the package: its dataset, its folds, its errors, its preset, and how well it learns."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.digits import Digits, DigitsData, read_digits, split_digits
from configs.make_digits_dataset import write_digits
from health_ml.cli.model_search import find_container
from health_ml.cli.parse import parse
from health_ml.errors import DatasetError
from tests.helpers.police import REPOSITORY
from tests.helpers.training import quiet_trainer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits")).parent


def test_script_writes_what_the_container_reads(tmp_path: Path) -> None:
    script = REPOSITORY / "configs" / "make_digits_dataset.py"
    folder = tmp_path / "new" / "folder"
    finished = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=True)
    assert f"--local_datasets={folder}" in finished.stdout
    images, digits = read_digits(folder)
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    assert sorted(set(digits.tolist())) == list(range(10))


def test_split_has_the_same_share_of_every_digit(dataset: Path) -> None:
    digits = read_digits(dataset)[1].numpy()
    parts = split_digits(digits)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))
    for digit in range(10):
        count = (digits == digit).sum()
        assert (digits[parts["test"]] == digit).sum() == count // 5
        assert abs((digits[parts["val"]] == digit).sum() - count / 5) < 1


@pytest.mark.parametrize("count", [2, 5, 7])
def test_each_image_validates_in_exactly_one_fold(count: int, dataset: Path) -> None:
    digits = read_digits(dataset)[1].numpy()
    test = split_digits(digits)["test"].tolist()
    validated: Counter[int] = Counter()
    for index in range(count):
        parts = split_digits(digits, crossval_count=count, crossval_index=index)
        assert parts["test"].tolist() == test
        assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))
        assert abs(len(parts["val"]) - (1797 - len(test)) / count) < 10
        validated.update(parts["val"].tolist())
    assert validated == Counter(set(range(1797)) - set(test))


def test_container_hands_its_fold_to_the_data(dataset: Path) -> None:
    container = Digits(local_datasets=[dataset], crossval_count=7, crossval_index=3)
    expected = DigitsData(dataset, batch_size=32, crossval_count=7, crossval_index=3)
    found = container.get_data_module()
    assert found.parts["val"].tensors[0].equal(expected.parts["val"].tensors[0])


def test_training_reaches_the_accuracy(dataset: Path, tmp_path: Path) -> None:
    container = Digits(local_datasets=[dataset])
    container.validate()
    container.setup()
    torch.manual_seed(container.get_effective_random_seed())
    model, data = container.create_lightning_module(), container.get_data_module()
    trainer = quiet_trainer(max_epochs=container.max_epochs, default_root_dir=tmp_path)
    trainer.fit(model, data)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.0], abs=1e-9)  # the cosine schedule of the flags has arrived
    assert trainer.callback_metrics.keys() >= {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    (metrics,) = trainer.test(model, data, verbose=False)
    assert metrics["test/accuracy"] >= 0.95


def test_missing_data_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"needs a dataset folder\. Write it with: python .*--local_datasets="):
        Digits().setup()
    container = Digits(local_datasets=[tmp_path])
    with pytest.raises(DatasetError, match=re.escape(f"{tmp_path} has no file digits.csv. Write it with: python")):
        container.setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("digit,pixel0\n3,1\n", r"does not hold digits: its table has the shape \(1, 2\)"),
        ("digit\n" + ",".join(["11"] + ["0"] * 64) + "\n", "does not hold digits"),
        ("digit\nnot,numbers\n", "is not a table of numbers"),
        ("digit\n1,2\n1\n", "is not a table of numbers"),
    ],
)
def test_other_data_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "digits.csv").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_digits(tmp_path)


def test_container_is_found_from_the_root_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    assert find_container("configs.Digits", folder=REPOSITORY) is Digits
    assert find_container("configs.digits.Digits", folder=REPOSITORY) is Digits


def test_preset_is_a_config_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    command = parse(["--config=configs/digits.yaml", "--l_rate=0.02"], start_directory=REPOSITORY)
    assert isinstance(command.container, Digits)
    assert command.container.channels == 32
    assert command.container.l_rate_warmup_epochs == 2
    assert command.container.l_rate == 0.02
