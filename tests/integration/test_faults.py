"""A short part of the fault campaign; ``make faults`` runs all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.campaign import Report, render
from faults.compare import differences, is_equal
from faults.trial import Outcome, Trial
from tests.helpers.police import REPOSITORY


@pytest.mark.slow
def test_short_campaign(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "faults", "--interruptions=16", "--starts=8", f"--folder={tmp_path / 'all'}"]
    finished = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for promise in (
        "metrics lost",
        "wrong exit codes",
        "silent restarts",
        "secrets leaked",
        "damaged final checkpoints",
    ):
        assert f"| {promise} | 0 | 0 |" in finished.stdout


# --- the campaign itself notices what goes wrong ---------------------------------------------------------------------


def test_broken_promises_are_counted() -> None:
    bad = Outcome("killed", 3, interruptions=2, resumes=1, epochs_lost=0.5, problems=[("metrics lost", "a row")])
    report = Report([Outcome("killed", 0, interruptions=1), Outcome.from_json(bad.to_json())], seconds=3.2)
    assert not report.is_kept
    text = render(report)
    assert "| metrics lost | 1 | 0 |" in text
    assert "| interruptions | 3 | |" in text
    assert "| epochs lost by one interruption, at most | 0.50 | 1 |" in text


def test_too_many_lost_epochs_break_the_promise() -> None:
    assert Report([Outcome("killed", 0, epochs_lost=1.0)]).is_kept
    assert not Report([Outcome("killed", 0, epochs_lost=1.4)]).is_kept


def test_differences_are_found(tmp_path: Path) -> None:
    import json

    import torch

    folders = [tmp_path / name for name in ("ours", "theirs")]
    for number, folder in enumerate(folders):
        (folder / "run").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / "run" / "status.jsonl").write_text('{"status": "FINISHED"}\n')
        rows = [{"step": step, "epoch": 0, "attempt": 0, "metrics": {"loss": 1.0}} for step in range(3 - number)]
        (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        states = {"lr_schedulers": [], "callbacks": {"path": f"{folder}/x"}, "epoch": 1, "global_step": 3}
        weights = {"weight": torch.tensor([1.0, float(number)])}
        torch.save(
            {**states, "state_dict": weights, "optimizer_states": [number]}, folder / "checkpoints" / "last.ckpt"
        )
    assert differences(folders[0], folders[0]) == []
    found = differences(*folders)
    assert found[0].startswith("1 rows of metrics are wrong or double")
    assert found[1:] == ["state_dict differs", "optimizer_states differs"]
    assert differences(folders[1], folders[0])[0].startswith("1 rows of metrics are missing")


def test_equal_means_the_same_bits() -> None:
    import torch

    assert is_equal({"a": [torch.ones(2), 1]}, {"a": (torch.ones(2), 1)})
    assert not is_equal(torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert not is_equal(torch.ones(2), torch.ones(2) + 1e-7)


def test_leaked_secret_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    from faults import trial as module

    monkeypatch.setattr(module, "differences", lambda ours, theirs: [])
    trial = Trial(tmp_path, tmp_path, tmp_path, 1.0, random.Random(0), Outcome("killed", 0))
    (tmp_path / "attempt_1.log").write_text(f"the token is {module.TOKEN}")
    trial.compare()
    assert [promise for promise, _ in trial.outcome.problems] == ["damaged final checkpoints", "secrets leaked"]
