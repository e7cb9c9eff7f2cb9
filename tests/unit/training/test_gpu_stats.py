"""What is logged about GPUs, with a stand-in for nvidia-smi where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from health_ml.training.callbacks.gpu_stats import GpuStatsCallback, parse_gpu_table
from health_ml.training.loggers.storing_logger import StoringLogger
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import TinyData, TinyModel, tiny_container


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def train(folder: Path) -> StoringLogger:
    trainer, results = create_lightning_trainer(tiny_container(folder, max_epochs=1, monitor_gpu=True))
    trainer.fit(TinyModel(), datamodule=TinyData())
    return results


def test_metrics_of_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "echo '0, 87, 1024, 40000, 61'; echo '1, [N/A], 5, 39000, 40'")

    results = train(tmp_path)

    # One value each: the 8 batches are over before it is time for another question.
    assert {name: value for name, value in results.results_per_epoch[0].items() if name.startswith("gpu/")} == {
        "gpu/0/utilization [%]": 87,
        "gpu/0/memory_used [MB]": 1024,
        "gpu/0/memory_free [MB]": 40000,
        "gpu/0/temperature [C]": 61,
        "gpu/1/memory_used [MB]": 5,
        "gpu/1/memory_free [MB]": 39000,
        "gpu/1/temperature [C]": 40,
    }


def test_metrics_while_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "echo '0, 87, 1024, 40000, 61'")
    container = tiny_container(tmp_path, monitor_gpu=True)
    for method in ("validate", "test"):
        trainer, results = create_lightning_trainer(container, is_inference=True)
        getattr(trainer, method)(TinyModel(), datamodule=TinyData(), verbose=False)
        assert results.results_per_epoch[0]["gpu/0/utilization [%]"] == 87, method


def test_asked_with_the_right_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/question')

    train(tmp_path)

    assert (tmp_path / "question").read_text().split() == [
        "--query-gpu=index,utilization.gpu,memory.used,memory.free,temperature.gpu",
        "--format=csv,noheader,nounits",
    ]


def test_failing_program_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "exit 9")

    results = train(tmp_path)

    assert not [name for name in results.results_per_epoch[0] if name.startswith("gpu/")]
    assert caplog.text.count("--monitor_gpu stops: nvidia-smi failed") == 1


def test_nothing_to_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    results = train(tmp_path)

    assert caplog.text.count("--monitor_gpu has nothing to monitor") == 1
    assert "val/loss" in results.results_per_epoch[0]


@pytest.mark.parametrize("text", ["", "No devices were found", "0, 1\n"])
def test_other_output_gives_no_metrics(text: str) -> None:
    assert parse_gpu_table(text) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path: Path) -> None:
    assert GpuStatsCallback()._program is not None

    metrics = train(tmp_path).results_per_epoch[0]

    assert metrics["gpu/0/memory_used [MB]"] > 0
