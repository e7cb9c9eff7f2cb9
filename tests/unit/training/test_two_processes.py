"""A training in two processes on the CPU, for real, and inference on one process afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.police import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), str(folder)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (folder / "output.txt").write_text(finished.stdout + finished.stderr)
    return folder


@pytest.fixture
def ranks(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads((run_folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_each_process_trains_on_its_part(ranks: list[dict[str, Any]]) -> None:
    assert [rank["default"]["world_size"] for rank in ranks] == [2, 2]
    assert [rank["default"]["batches"] for rank in ranks] == [4, 4]
    assert ranks[0]["default"]["weight"] == ranks[1]["default"]["weight"]


def test_own_sampler_stays(ranks: list[dict[str, Any]]) -> None:
    assert [rank["own_sampler"]["batches"] for rank in ranks] == [8, 8]


def test_static_graph(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["static"]["is_static"] is True
    assert ranks[0]["static"]["batches"] == 4
    assert ranks[0]["default"]["is_static"] is False


def test_unused_parameters(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["unused"]["batches"] == 4
    assert "error" not in ranks[0]["unused"]
    assert "parameters that were not used in producing the loss" in ranks[0]["unused_not_found"]["error"]


def test_batch_norm_trains_on_the_cpu(ranks: list[dict[str, Any]]) -> None:
    assert "error" not in ranks[0]["batch_norm"]
    assert ranks[0]["batch_norm"]["batches"] == 4


def test_inference_on_one_process_sees_all_data(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["inference"] == {"world_size": 1, "batches": 8}
    assert "inference" not in ranks[1]


def test_one_process_writes_record_and_checkpoints(run_folder: Path) -> None:
    folder = run_folder / "default"
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]

    assert len([row for row in rows if "val/loss" in row["metrics"]]) == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not list((run_folder / "own_sampler").rglob("events.out.tfevents*"))
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_times_come_from_the_first_process_without_a_warning(run_folder: Path) -> None:
    rows = [json.loads(line) for line in (run_folder / "default" / "run" / "metrics.jsonl").read_text().splitlines()]

    assert len([row for row in rows if "timing/train/epoch_time [sec]" in row["metrics"]]) == 1
    output = (run_folder / "output.txt").read_text()
    assert "sync_dist" in output  # about the metrics of the model, which says nothing about it
    assert not [line for line in output.splitlines() if "sync_dist" in line and "timing/" in line]
