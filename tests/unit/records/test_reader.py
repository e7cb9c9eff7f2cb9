from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from health_ml.errors import RunNotFoundError
from health_ml.records.process_identity import is_dead, process_identity
from health_ml.records.reader import get_mlflow_run_id, read_record, read_status
from health_ml.records.record import RunRecord, RunStatus


def make_run(root: Path, run_id: str) -> Path:
    record = RunRecord.create(root / run_id / "run", run_id=run_id)
    record.set_status(RunStatus.FINISHED)
    record.close()
    return root / run_id


def rewrite_status(folder: Path, **changes: Any) -> None:
    identity = {"status": "RUNNING", "attempt": 0, "time": 1.0, "run_id": "r1", **process_identity(), **changes}
    (folder / "status.jsonl").write_text(json.dumps(identity) + "\n")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, RunStatus.RUNNING),
        ({"process_start": 1}, RunStatus.KILLED),  # the process id was given to another process
        ({"boot": "another"}, RunStatus.KILLED),
        ({"pid": 2**22 + 1}, RunStatus.KILLED),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, RunStatus.RUNNING),
        ({"pid": 2**22 + 1, "pid_namespace": "pid:[1]"}, RunStatus.RUNNING),
        ({"pid": None}, RunStatus.RUNNING),
    ],
)
def test_a_run_is_killed_if_its_process_is_certainly_gone(
    tmp_path: Path, changes: dict[str, Any], status: RunStatus
) -> None:
    rewrite_status(tmp_path, **changes)
    assert read_status(tmp_path).status is status
    assert read_status(tmp_path).is_derived == (status is RunStatus.KILLED)


def test_what_is_said_late_about_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    first = RunRecord.create(tmp_path, run_id="r1")
    second = RunRecord.create(tmp_path, run_id="r1", attempt=1)
    first.set_status(RunStatus.KILLED)
    first.close()
    second.close()
    assert (read_status(tmp_path).status, read_status(tmp_path).attempt) == (RunStatus.RUNNING, 1)


def test_a_child_that_ended_and_was_not_waited_for_is_dead() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    is_child_dead = is_dead({**process_identity(), "pid": child, "process_start": None})
    os.waitpid(child, 0)
    assert is_child_dead


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"There is no record of a run in .*status\.jsonl"):
        read_record(tmp_path)


def test_the_id_in_mlflow(tmp_path: Path) -> None:
    assert get_mlflow_run_id(tmp_path) is None
    (tmp_path / "mirror.json").write_text('{"mlflow_run_id": "abc"}')
    assert get_mlflow_run_id(tmp_path) == "abc"


def test_lines_that_nobody_expects_are_skipped(tmp_path: Path) -> None:
    make_run(tmp_path, "r1")
    record = tmp_path / "r1" / "run"
    (record / "metrics.jsonl").write_bytes(
        b'\xff\xfe\n[1]\n{"metrics": {"a": "text", "b": 2}}\n{"metrics": null}\n{"metrics": {"c": 1}}'
    )
    assert read_record(record).last_values == {"b": 2.0, "c": 1.0}
