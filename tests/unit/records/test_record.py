from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from health_ml.errors import OutputError
from health_ml.records.reader import read_record
from health_ml.records.record import RunRecord, RunStatus
from tests.helpers.disk import largest_file


class Colour(Enum):
    RED = "red"
    GREEN = 2


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@contextmanager
def new_record(folder: Path, attempt: int = 0) -> Iterator[RunRecord]:
    record = RunRecord.create(folder, run_id="r1", attempt=attempt)
    yield record
    record.close()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    with new_record(tmp_path / "run") as record:
        record.log_metrics({"loss": 0.5, "n": 3}, step=1, epoch=0)
        record.log_metrics({"loss": np.float32(0.25), "tensor": np.array(2.0)}, step=2, epoch=0)
        record.log_metrics({"loss": math.nan, "up": math.inf, "down": -math.inf}, step=None)
        record.log_hyperparameters({"l_rate": 0.1})
        record.log_hyperparameters({"l_rate": 0.2, "name": "x"})
        record.log_tags({"kind": "test"})
        record.write_document("config", {"a": Path("/b")})
        record.set_status(RunStatus.FINISHED, "done")
    view = read_record(tmp_path)
    assert view.run_id == "r1"
    assert [(row.step, row.epoch, row.attempt) for row in view.metrics] == [(1, 0, 0), (2, 0, 0), (None, None, 0)]
    assert view.metrics[1].metrics == {"loss": 0.25, "tensor": 2.0}
    assert math.isnan(view.last_values["loss"])
    assert (view.last_values["up"], view.last_values["down"], view.last_values["n"]) == (math.inf, -math.inf, 3)
    assert view.hyperparameters == {"l_rate": 0.2, "name": "x"}
    assert view.tags == {"kind": "test"}
    assert view.document("config") == {"a": "/b"}
    assert (view.status.status, view.status.message) == (RunStatus.FINISHED, "done")
    assert view.metrics[0].time == pytest.approx(view.status.time, abs=60)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Colour.RED, "red"),
        (Colour.GREEN, "GREEN"),
        (Path("/a/b"), "/a/b"),
        ({"b", "a"}, ["a", "b"]),
        ((1, [2, None]), [1, [2, None]]),
        (math.inf, "inf"),
        (np.float64(1.5), 1.5),
        (np.int32(7), 7),
        (np.array(True), True),
        ({"x": {"y": np.nan}, 3: 4}, {"x": {"y": "nan"}, "3": 4}),
        (Rude(), "<Rude whose repr raises RuntimeError>"),
        (range(3), "range(0, 3)"),
        ("\udcff é", "\udcff é"),
        (2**70, 2**70),
    ],
)
def test_any_hyperparameter_can_be_stored(tmp_path: Path, value: object, stored: object) -> None:
    with new_record(tmp_path) as record:
        record.log_hyperparameters({"value": value})
    assert read_record(tmp_path).hyperparameters == {"value": stored}


def test_a_value_that_contains_itself_and_a_very_long_one(tmp_path: Path) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    with new_record(tmp_path) as record:
        record.log_hyperparameters(
            {"loop": loop, "long": range(10), "big": type("X", (), {"__repr__": lambda _: "x" * 99999})()}
        )
    stored = read_record(tmp_path).hyperparameters
    assert stored["loop"][0] == 1
    assert stored["big"].endswith("… (99999 characters)")


def test_secrets_are_nowhere_in_the_record(tmp_path: Path) -> None:
    secret = "hunter2hunter2hunter2"
    with new_record(tmp_path) as record:
        record.log_hyperparameters({"hub_token": secret, "nested": {"passwords": [secret], "api_key": {"x": secret}}})
        record.log_tags({"url": f"https://me:{secret}@host"})
        command_line = ["himl-runner", "--hub_token", secret, f"--password={secret}", "--l_rate=1"]
        record.write_document("run", {"command_line": command_line})
        record.write_document("config", {"password": {"value": secret, "source": "flag"}, "identity_based_auth": False})
        record.write_text("uncommitted.patch", f"+url = 'https://me:{secret}@host'\n")
        record.set_status(RunStatus.FAILED, f"cannot reach https://me:{secret}@host")
    for path in tmp_path.iterdir():
        assert secret not in path.read_text(), path
    assert json.loads((tmp_path / "run.json").read_text())["command_line"][-1] == "--l_rate=1"
    assert json.loads((tmp_path / "config.json").read_text())["identity_based_auth"] is False


def test_names_of_packages_are_no_secrets(tmp_path: Path) -> None:
    with new_record(tmp_path) as record:
        record.write_document("packages", {"azure-keyvault-secrets": "4.8", "token": "1.0"})
    assert read_record(tmp_path).document("packages") == {"azure-keyvault-secrets": "4.8", "token": "1.0"}


WRITE_FOREVER = """
import sys
from pathlib import Path
from health_ml.records.record import RunRecord
record = RunRecord.create(Path(sys.argv[1]), run_id="r1")
for step in range(10**9):
    record.log_metrics({"loss": step}, step=step)
    print(step, flush=True)
"""


def test_a_killed_process_loses_nothing_and_is_known_to_be_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(200):
            line = process.stdout.readline()
        assert read_record(tmp_path).status.status is RunStatus.RUNNING
        process.send_signal(signal.SIGKILL)
        steps = [int(text) for text in (line + process.stdout.read()).splitlines() if text]
    view = read_record(tmp_path)
    assert [row.step for row in view.metrics][: steps[-1] + 1] == list(range(steps[-1] + 1))
    assert view.status.status is RunStatus.KILLED
    assert view.status.is_derived


def test_a_resumed_attempt_appends_and_half_a_line_costs_only_itself(tmp_path: Path) -> None:
    with new_record(tmp_path) as record:
        record.log_metrics({"loss": 1.0}, step=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 12, "step": 2, "metr')
    assert len(read_record(tmp_path).metrics) == 1
    with new_record(tmp_path, attempt=1) as record:
        record.log_metrics({"loss": 3.0}, step=3)
        record.set_status(RunStatus.FINISHED)
    view = read_record(tmp_path)
    assert [(row.step, row.attempt) for row in view.metrics] == [(1, 0), (3, 1)]
    assert (view.status.status, view.status.attempt) == (RunStatus.FINISHED, 1)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with new_record(tmp_path) as record:
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(
            OutputError, match=r"Cannot write .*metrics\.jsonl: No space left on device.*Free some space"
        ):
            record.log_metrics({"loss": 1.0}, step=1)


def test_after_a_write_that_did_not_fit_the_next_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with new_record(tmp_path) as record:
        record.log_metrics({"loss": 1.0}, step=1)
        with (
            largest_file(path.stat().st_size + 20),
            pytest.raises(OutputError, match=r"metrics\.jsonl: File too large"),
        ):
            record.log_metrics({"loss": 2.0}, step=2)
        record.log_metrics({"loss": 3.0}, step=3)
    assert [row.step for row in read_record(tmp_path).metrics] == [1, 3]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*file/run: Not a directory"):
        RunRecord.create(tmp_path / "file" / "run", run_id="r1")


def test_a_document_is_replaced_as_a_whole(tmp_path: Path) -> None:
    with new_record(tmp_path) as record:
        record.write_document("config", {"a": 1})
        (tmp_path / "plan.json").mkdir()
        with pytest.raises(OutputError, match=r"plan\.json: Is a directory"):
            record.write_document("plan", {"a": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "plan.json", "run.json", "status.jsonl"]


def test_nobody_else_may_write(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with new_record(tmp_path / "a" / "run") as record:
            record.log_metrics({"loss": 1.0}, step=1)
    finally:
        os.umask(umask)
    for path in [tmp_path / "a" / "run", *(tmp_path / "a" / "run").iterdir()]:
        assert path.stat().st_mode & 0o002 == 0, path
