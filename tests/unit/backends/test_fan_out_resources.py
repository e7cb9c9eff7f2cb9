"""Cores and GPUs for trials that run at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.backends import fan_out_resources
from health_ml.backends.fan_out_resources import Slots, share_out, visible_gpus
from health_ml.environment import environment_variables
from health_ml.errors import PlanError
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.plan import PlannedTrials
from health_ml.planning.search_space import SearchSpace


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out_resources, "usable_cores", lambda: 16)


def seeds(count: int, max_concurrent: int | None = None) -> SearchSpace:
    space = build_search_space(FanOutOptions(different_seeds=count, settings={"max_concurrent": max_concurrent}))
    assert space is not None
    return space


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
FOUR_GPUS = {"CUDA_VISIBLE_DEVICES": "4,5,GPU-6,7"}


@pytest.mark.parametrize(
    ("trials", "max_concurrent", "environment", "expected"),
    [
        (20, None, NO_GPU, Slots(8, 2)),
        (3, None, NO_GPU, Slots(3, 5)),
        (20, 12, NO_GPU, Slots(12, 1)),
        (20, 100, NO_GPU, Slots(20, 1)),
        (20, None, {**NO_GPU, "OMP_NUM_THREADS": "7"}, Slots(8, None)),
        (20, None, FOUR_GPUS, Slots(4, 4, (("4",), ("5",), ("GPU-6",), ("7",)))),
        (20, 2, FOUR_GPUS, Slots(2, 8, (("4",), ("5",)))),
    ],
)
def test_cores_and_gpus_are_shared_out(
    trials: int, max_concurrent: int | None, environment: dict[str, str], expected: Slots
) -> None:
    assert share_out(seeds(trials, max_concurrent), PlannedTrials(), environment) == expected


@pytest.mark.parametrize(
    ("max_num_gpus", "expected"),
    [
        (0, Slots(8, 2)),
        (2, Slots(2, 8, (("4", "5"), ("GPU-6", "7")))),
        (3, Slots(1, 16, (("4", "5", "GPU-6"),))),
        (9, Slots(1, 16, (("4", "5", "GPU-6", "7"),))),
    ],
)
def test_gpus_of_a_trial(max_num_gpus: int, expected: Slots) -> None:
    slots = share_out(seeds(20), PlannedTrials(max_num_gpus=max_num_gpus), FOUR_GPUS)
    assert slots == expected
    if slots.gpus:
        assert slots.environment(0) == {"CUDA_VISIBLE_DEVICES": ",".join(expected.gpus[0])}
    else:
        assert slots.environment(0) == {}


def test_slots_are_described() -> None:
    assert Slots(2, 1, (("0",), ("1",))).describe() == " with 1 CPU thread and 1 GPU each"
    assert Slots(1, 16, (("0", "1"),)).describe() == " with 16 CPU threads and 2 GPUs each"
    assert Slots(8).describe() == ""
    assert Slots(8, 2).shared_environment == {"OMP_NUM_THREADS": "2"}
    assert Slots(8).shared_environment == {}


@pytest.mark.parametrize(
    ("max_num_gpus", "environment", "match"),
    [
        (-1, FOUR_GPUS, r"--max_concurrent_trials=5 needs 5 GPUs, and this machine has 4 \(1 for each trial\)\. Use "),
        (
            2,
            FOUR_GPUS,
            r"needs 10 GPUs, and this machine has 4 \(2 for each trial\)\. Use --max_concurrent_trials=2 or",
        ),
        (1, NO_GPU, r"needs 5 GPUs, and this machine has 0 .*--max_num_gpus=0 to train on the CPU"),
    ],
)
def test_more_trials_than_gpus(max_num_gpus: int, environment: dict[str, str], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        share_out(seeds(20, 5), PlannedTrials(max_num_gpus=max_num_gpus), environment)


def test_gpus_that_cuda_sees() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 3"}) == ("2", "3")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,-1,3"}) == ("2",)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


@pytest.mark.parametrize(("program", "expected"), [("printf '0\\n1\\n'", ("0", "1")), ("exit 9", ())])
def test_the_driver_is_asked_for_gpus(program: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{program}\n")
    file.chmod(0o755)
    with environment_variables({"PATH": f"{tmp_path}:/usr/bin:/bin"}):
        assert visible_gpus({}) == expected
