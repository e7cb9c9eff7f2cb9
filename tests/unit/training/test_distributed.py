"""Which devices, strategy and precision the flags lead to, on machines with and without GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy

from health_ml.environment import RunEnvironment
from health_ml.training.distributed import (
    PROCESS_GROUP_TIMEOUT,
    Devices,
    child_environment,
    choose_devices,
    choose_precision,
    create_strategy,
    device_count,
)
from health_ml.training.trainer import _devices, create_lightning_trainer
from tests.unit.training.tiny import tiny_container


def machine_with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, has_bfloat16: bool = True) -> None:
    """Pretends that this machine has GPUs; nothing here computes on them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)


@pytest.mark.parametrize(
    ("wanted", "available", "accelerator", "devices"),
    [(-1, 0, "cpu", 1), (-1, 4, "gpu", 4), (0, 4, "cpu", 1), (1, 4, "gpu", 1), (3, 4, "gpu", 3), (8, 4, "gpu", 4)],
)
def test_max_num_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, available: int, accelerator: str, devices: int
) -> None:
    machine_with_gpus(monkeypatch, available)
    container = tiny_container(tmp_path, max_num_gpus=wanted)

    assert choose_devices(container, {}, is_inference=False) == Devices(accelerator, devices, devices)


@pytest.mark.parametrize(("wanted", "devices"), [(1, 1), (2, 2), (-1, 4)])
def test_max_num_gpus_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, devices: int) -> None:
    machine_with_gpus(monkeypatch, 4)
    container = tiny_container(tmp_path, max_num_gpus=3, max_num_gpus_inference=wanted)

    chosen = choose_devices(container, {"devices": 3, "accelerator": "gpu"}, is_inference=True)

    assert chosen == Devices("gpu", devices, devices)


def test_no_gpu_for_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with_gpus(monkeypatch, 4)

    chosen = choose_devices(tiny_container(tmp_path, max_num_gpus_inference=0), {}, is_inference=True)

    assert chosen == Devices("cpu", 1, 1)


@pytest.mark.parametrize("parameters", [{}, {"max_num_gpus": 0}, {"max_num_gpus_inference": 0}])
@pytest.mark.parametrize("is_inference", [False, True])
def test_no_warning_on_a_machine_without_gpus(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, parameters: dict[str, int], is_inference: bool
) -> None:
    create_lightning_trainer(tiny_container(tmp_path, **parameters), is_inference=is_inference)

    assert not [entry for entry in caplog.records if entry.levelname == "WARNING"]


def test_one_warning_if_gpus_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine_with_gpus(monkeypatch, 0)

    create_lightning_trainer(tiny_container(tmp_path, max_num_gpus=2))

    warnings = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert warnings == ["--max_num_gpus=2 was asked for, but this machine has 0: using the CPU."]


def test_warning_if_some_gpus_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine_with_gpus(monkeypatch, 2)

    choose_devices(tiny_container(tmp_path, max_num_gpus_inference=4), {}, is_inference=True)

    assert "--max_num_gpus_inference=4 was asked for, but this machine has 2: using 2." in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"accelerator": "cpu", "devices": 2}, Devices("cpu", 2, 2)),
        ({"devices": 2}, Devices("gpu", 2, 2)),
        ({"devices": "1,3"}, Devices("gpu", "1,3", 2)),
        ({"devices": [0, 1, 2]}, Devices("gpu", [0, 1, 2], 3)),
        ({"devices": "auto"}, Devices("gpu", "auto", 4)),
        ({"accelerator": "gpu"}, Devices("gpu", 4, 4)),
        ({"accelerator": "mps"}, Devices("mps", 1, 1)),
    ],
)
def test_devices_given_to_the_trainer_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], expected: Devices
) -> None:
    machine_with_gpus(monkeypatch, 4)

    assert choose_devices(tiny_container(tmp_path), given, is_inference=False) == expected


@pytest.mark.parametrize(
    ("devices", "count"), [(-1, 4), ("-1", 4), ("auto", 4), (2, 2), ("2", 2), ("0,2", 2), ([1], 1)]
)
def test_device_count(devices: Any, count: int) -> None:
    assert device_count(devices, available=4) == count


def test_one_process_needs_no_strategy(tmp_path: Path) -> None:
    assert create_strategy(tiny_container(tmp_path), Devices("cpu", 1, 1), num_nodes=1) == "auto"


@pytest.mark.parametrize(("count", "nodes"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("flag", [True, False])
def test_several_processes_use_ddp(tmp_path: Path, count: int, nodes: int, flag: bool) -> None:
    container = tiny_container(tmp_path, pl_find_unused_parameters=flag, pl_static_graph=not flag)

    strategy = create_strategy(container, Devices("cpu", count, count), num_nodes=nodes)

    assert isinstance(strategy, DDPStrategy)
    assert strategy._timeout == PROCESS_GROUP_TIMEOUT
    assert strategy._ddp_kwargs == {"find_unused_parameters": flag, "static_graph": not flag}


@pytest.mark.parametrize(
    ("is_mixed", "devices", "has_bfloat16", "expected"),
    [
        (True, Devices("gpu", 1, 1), True, "bf16-mixed"),
        (True, Devices("gpu", 1, 1), False, "16-mixed"),
        (False, Devices("gpu", 1, 1), True, "32-true"),
        (True, Devices("cpu", 1, 1), True, "32-true"),
    ],
)
def test_precision(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_mixed: bool,
    devices: Devices,
    has_bfloat16: bool,
    expected: str,
) -> None:
    machine_with_gpus(monkeypatch, 1, has_bfloat16=has_bfloat16)

    assert choose_precision(tiny_container(tmp_path, use_mixed_precision=is_mixed), devices) == expected


def test_full_precision_on_the_cpu(tmp_path: Path) -> None:
    trainer, _ = create_lightning_trainer(tiny_container(tmp_path, use_mixed_precision=True))

    assert trainer.precision == "32-true"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_on_a_gpu(tmp_path: Path) -> None:
    trainer, _ = create_lightning_trainer(tiny_container(tmp_path, max_num_gpus=1))

    assert trainer.strategy.root_device.type == "cuda"
    assert trainer.precision in ("bf16-mixed", "16-mixed")


def test_warning_about_repeated_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine_with_gpus(monkeypatch, 2)
    container = tiny_container(tmp_path, max_num_gpus_inference=2)

    _devices(container, {}, num_nodes=1, is_inference=True)

    assert "Inference on 2 GPUs repeats some samples" in caplog.text


@pytest.mark.parametrize("flag", [True, False])
def test_synchronised_batch_norm_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: bool) -> None:
    machine_with_gpus(monkeypatch, 2)

    arguments = _devices(tiny_container(tmp_path, pl_sync_batchnorm=flag), {}, num_nodes=1, is_inference=False)

    assert arguments["sync_batchnorm"] is flag


def test_no_synchronised_batch_norm_on_the_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    container = tiny_container(tmp_path)
    assert _devices(container, {}, num_nodes=1, is_inference=False)["sync_batchnorm"] is False
    assert not caplog.records

    container.set_typed_parameters(["pl_sync_batchnorm"])
    create_lightning_trainer(container)

    assert "--pl_sync_batchnorm has no effect on the CPU" in caplog.text


def test_child_environment(tmp_path: Path) -> None:
    paths = tiny_container(tmp_path / "run").run_paths

    variables = child_environment(paths, RunEnvironment(attempt=2), start_directory=tmp_path)

    child = RunEnvironment.from_env({**variables, "LOCAL_RANK": "1"})
    assert (child.run_id, child.run_folder, child.start_directory) == ("tiny_run", tmp_path / "run", tmp_path)
    assert (child.attempt, child.rank) == (2, 1)


def test_child_environment_in_a_job(tmp_path: Path) -> None:
    paths = tiny_container(tmp_path).run_paths

    variables = child_environment(paths, RunEnvironment(is_in_azureml=True), start_directory=tmp_path)

    assert RunEnvironment.from_env(variables).run_folder is None
