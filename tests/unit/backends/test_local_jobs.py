"""What is special about jobs on this machine: processes that outlive their parents, and what is left when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from health_ml.backends.local_jobs import LocalBackend, LocalRunHandle
from health_ml.backends.local_layout import LocalJob, LocalJobFolder
from health_ml.backends.local_logs import LogFollower
from health_ml.errors import BackendError, SnapshotError
from health_ml.planning.plan import JobPlan, PlannedLimits
from health_ml.records.process_identity import process_identity
from health_ml.records.reader import read_record
from health_ml.records.record import RunRecord, RunStatus

PLAN = JobPlan("HelloWorld", ("--model=HelloWorld", "--tracking_uri=none"))


def job_of(tmp_path: Path, code: str, *, num_nodes: int = 1, seconds: float | None = None) -> LocalJobFolder:
    """Returns a prepared job that runs a Python program instead of the runner."""
    folder = LocalJobFolder(tmp_path / "job_run")
    folder.job.mkdir(parents=True)
    folder.code.mkdir()
    command = (sys.executable, "-c", code)
    job = LocalJob("job_run", command, str(tmp_path), num_nodes=num_nodes, max_duration_seconds=seconds)
    folder.job_file.write_text(job.to_json())
    record = RunRecord.create(folder.run_folder / "run", run_id="job_run")
    record.set_status(RunStatus.QUEUED)
    record.close()
    return folder


def supervise(folder: LocalJobFolder) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "health_ml.backends.local_supervisor", str(folder.run_folder)], start_new_session=True
    )


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def test_a_job_comes_back_equal_from_json() -> None:
    job = LocalJob("run", ("a", "b; c"), "/project", num_nodes=2, max_duration_seconds=1.5, environment={"A": "1"})
    assert LocalJob.from_json(job.to_json()) == job


def test_each_node_knows_its_place_and_its_run(tmp_path: Path) -> None:
    names = ("NODE_RANK", "MASTER_ADDR", "HIML_RUN_ID", "HIML_RUN_FOLDER", "HIML_START_DIRECTORY")
    folder = job_of(tmp_path, f"import os; print([os.environ[n] for n in {names!r}], os.getcwd())", num_nodes=2)
    supervise(folder).wait(timeout=30)
    for node in (0, 1):
        expected = [str(node), "127.0.0.1", "job_run", str(folder.run_folder), str(folder.code)]
        assert folder.node_log(node).read_text() == f"{expected} {folder.code}\n"


def test_a_failing_node_fails_the_job_and_is_named(tmp_path: Path) -> None:
    folder = job_of(tmp_path, "import os, sys; sys.exit(3 * int(os.environ['NODE_RANK']))", num_nodes=2)
    assert supervise(folder).wait(timeout=30) == 1
    status = read_record(folder.run_folder).status
    assert (status.status, status.message) == (RunStatus.FAILED, "Node 1 ended with exit code 3.")


def test_a_job_that_runs_too_long_is_stopped(tmp_path: Path) -> None:
    folder = job_of(tmp_path, "import time; time.sleep(60)", seconds=0.3)
    assert supervise(folder).wait(timeout=30) == 1
    status = read_record(folder.run_folder).status
    assert status.status is RunStatus.FAILED
    assert "longer than its limit of 0.3 seconds" in status.message


def test_children_of_a_node_end_with_it(tmp_path: Path) -> None:
    child = "import time; time.sleep(120)"
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)"
    folder = job_of(tmp_path, program)
    supervise(folder).wait(timeout=30)
    pid = int(folder.node_log(0).read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_job_whose_supervisor_was_killed_is_reported_and_can_be_cancelled(tmp_path: Path) -> None:
    folder = job_of(tmp_path, "import time; time.sleep(120)")
    supervisor = supervise(folder)
    wait_until(lambda: folder.read_processes().get("nodes"))
    node = folder.read_processes()["nodes"][0]["pid"]
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    handle = LocalRunHandle(folder.run_folder)
    assert handle.status() is RunStatus.KILLED
    assert psutil.pid_exists(node)
    handle.cancel()
    wait_until(lambda: not psutil.pid_exists(node) or psutil.Process(node).status() == psutil.STATUS_ZOMBIE)
    assert read_record(folder.run_folder).status.status is RunStatus.CANCELLED
    assert handle.status() is RunStatus.CANCELLED


def test_a_job_whose_start_was_killed_is_reported_and_can_be_started_again(tmp_path: Path) -> None:
    folder = job_of(tmp_path / "outputs", "print('done')")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as starter:
        folder.write_processes({"starter": process_identity(starter.pid)})
        handle = LocalRunHandle(folder.run_folder)
        assert handle.status() is RunStatus.QUEUED
        starter.kill()
    assert handle.status() is RunStatus.KILLED
    backend = LocalBackend(tmp_path)
    with folder.starting(), pytest.raises(BackendError, match="Another command has just started run job_run again"):
        backend.resume("job_run")
    assert not folder.node_log(0).exists()
    backend.resume("job_run")
    assert handle.wait(30) is RunStatus.FAILED
    assert folder.node_log(0).read_text() == "done\n"
    message = read_record(folder.run_folder).status.message
    assert message == "Every node ended with exit code 0, but the run has not said that it finished."


def test_what_a_run_has_said_itself_counts_if_its_supervisor_was_killed_afterwards(tmp_path: Path) -> None:
    folder = job_of(tmp_path, "")
    folder.write_processes({"supervisor": {**process_identity(), "process_start": 1}, "nodes": []})
    handle = LocalRunHandle(folder.run_folder)
    assert handle.status() is RunStatus.KILLED
    record = RunRecord(folder.run_folder / "run", run_id="job_run")
    record.set_status(RunStatus.FINISHED)
    record.close()
    assert handle.status() is RunStatus.FINISHED
    folder.write_processes({"supervisor": process_identity(), "nodes": []})
    assert handle.status() is RunStatus.RUNNING, "the supervisor has yet to say how the other nodes ended"


def test_a_job_has_one_supervisor_at_a_time(tmp_path: Path) -> None:
    folder = job_of(tmp_path / "outputs", "import time; time.sleep(120)")
    folder.write_processes({"starter": {**process_identity(), "process_start": 1}})
    backend = LocalBackend(tmp_path)
    handle = backend.resume("job_run")
    try:
        with pytest.raises(BackendError, match="follows it"), folder.starting():
            pass
        supervisor = folder.read_processes()["supervisor"]
        assert backend.resume("job_run").folder.read_processes()["supervisor"] == supervisor
    finally:
        handle.cancel()
    assert handle.status() is RunStatus.CANCELLED


def test_only_the_user_can_read_the_arguments_of_a_job(tmp_path: Path) -> None:
    folder = LocalJobFolder(tmp_path)
    folder.job.mkdir()
    folder.write_job(LocalJob("run", ("--token=secret",), "/project"))
    assert folder.job_file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.job.iterdir()] == ["job.json"]


def test_a_job_survives_the_process_that_submitted_it(tmp_path: Path) -> None:
    submit = (
        "from pathlib import Path; from health_ml.backends.local_jobs import LocalBackend;"
        "from health_ml.planning.plan import JobPlan;"
        f"b = LocalBackend(Path({str(tmp_path)!r}), place_code=lambda p, f: None);"
        "p = JobPlan('HelloWorld', ('--model=HelloWorld', '--max_epochs=1', '--tracking_uri=none'));"
        "print(b.submit(b.render(p)).run_id)"
    )
    process = subprocess.run(
        [sys.executable, "-c", submit], capture_output=True, text=True, check=True, start_new_session=True
    )
    handle = LocalBackend(tmp_path, place_code=lambda plan, code: None).attach(process.stdout.strip())
    assert handle.wait(90) is RunStatus.FINISHED


def test_a_submission_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def refuse(plan: JobPlan, folder: Path) -> None:
        raise SnapshotError("The file x cannot be read.")

    backend = LocalBackend(tmp_path, place_code=refuse)
    request = backend.render(PLAN)
    with pytest.raises(SnapshotError, match="x cannot be read"):
        backend.submit(request)
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_run_that_is_no_job_cannot_be_attached(tmp_path: Path) -> None:
    RunRecord.create(tmp_path / "outputs" / "plain" / "run", run_id="plain").close()
    backend = LocalBackend(tmp_path, place_code=lambda plan, code: None)
    with pytest.raises(BackendError, match="holds no readable job"):
        backend.attach("plain")


def test_the_request_shows_command_limits_and_snapshot(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, place_code=lambda plan, code: None)
    body = backend.render(
        replace(PLAN, num_nodes=2, limits=PlannedLimits(60.0), environment_variables=(("A", "1"),))
    ).body
    assert body == {
        "command": ["himl-runner", "--model=HelloWorld", "--tracking_uri=none"],
        "num_nodes": 2,
        "max_duration_seconds": 60.0,
        "environment": {"A": "1"},
        "snapshot": "",
    }


def test_logs_are_followed_line_by_line_also_across_half_lines(tmp_path: Path) -> None:
    folder = LocalJobFolder(tmp_path)
    folder.job.mkdir()
    follower = LogFollower(folder, 2)
    lines: list[str] = []
    assert not follower.forward(lines.append)
    folder.node_log(0).write_bytes(b"one\ntw")
    folder.node_log(1).write_bytes(b"\xff\n")
    assert follower.forward(lines.append)
    assert lines == ["[node 0] one", "[node 1] \ufffd"]
    with folder.node_log(0).open("ab") as log:
        log.write(b"o\nlast")
    follower.forward(lines.append)
    follower.flush(lines.append)
    assert lines[2:] == ["[node 0] two", "[node 0] last"]


def test_links_that_lead_out_of_the_run_are_not_downloaded(tmp_path: Path) -> None:
    folder = job_of(tmp_path, "pass")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (folder.run_folder / "result.txt").write_text("result")
    (folder.run_folder / "inner.txt").symlink_to("result.txt")
    (folder.run_folder / "secret.txt").symlink_to(outside / "secret.txt")
    (folder.run_folder / "outside").symlink_to(outside)

    files = LocalRunHandle(folder.run_folder).download("*.txt", tmp_path / "copy")

    assert [file.name for file in files] == ["inner.txt", "result.txt"]
    assert not any(file.is_symlink() for file in files)
