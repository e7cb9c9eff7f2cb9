"""From the command line to a job: what is planned, submitted, followed, cancelled and repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from health_ml.backends.local_layout import LocalJobFolder
from health_ml.planning.plan import JobPlan
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.testing import Invocation, invoke, memory_backend

CONTAINER = """
from health_ml.configs.hello_world import HelloWorld


class Small(HelloWorld):
    def __init__(self):
        super().__init__()
        self.max_epochs = 1
        self.l_rate = {rate}

    def get_additional_environment_variables(self):
        return {{"SMALL": "1", "HUB_TOKEN": "very-secret"}}

    def get_additional_aml_run_tags(self):
        return {{"colour": "blue"}}
"""

LIMIT_SECONDS = 90.0
CACHE_VARIABLE = "XDG_CACHE_HOME"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of a project in git, with a container and an ignored dataset."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "small.py").write_text(CONTAINER.format(rate=0.1))
    (folder / "data").mkdir()
    (folder / ".gitignore").write_text("data/\n__pycache__/\nmlflow.db*\n.mlflow.db.lock\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "start")
    return folder


def himl(project: Path, *arguments: str) -> Invocation:
    return invoke([*arguments], folder=project)


def submitted_id(run: Invocation) -> str:
    assert run.exit_code == 0, run.stderr
    first = run.stdout.strip().splitlines()[0]
    assert first.startswith("Submitted run "), run.stdout
    return first.split()[2]


@pytest.fixture
def job(project: Path) -> Iterator[str]:
    """Returns the id of a job that trains until it is stopped."""
    run_id = submitted_id(
        himl(project, "--model=small.Small", "--cluster=local", "--max_epochs=1000000", "--tracking_uri=none")
    )
    yield run_id
    himl(project, f"--cancel={run_id}")


# --- plans ------------------------------------------------------------------------------------------------------------


def test_dry_run_shows_everything_and_does_nothing(project: Path) -> None:
    before = sorted(project.rglob("*"))
    run = himl(project, "--model=small.Small", "--cluster=local", "--max_epochs=3", "--dry_run", "--tag=x")
    assert run.exit_code == 0, run.stderr
    assert '"--max_epochs=3"' in run.stdout
    assert '"backend": "local"' in run.stdout
    assert "very-secret" not in run.stdout
    assert sorted(path for path in project.rglob("*") if "__pycache__" not in path.parts) == [
        path for path in before if "__pycache__" not in path.parts
    ]
    assert not (project.parent / "cache" / "health_ml" / "snapshots").exists()


def test_the_printed_plan_is_the_one_that_is_submitted(project: Path) -> None:
    arguments = ("--model=small.Small", "--cluster=memory", "--max_run_duration=1h30m", "--num_nodes=2", "--tag=x")
    with memory_backend() as backend:
        printed = himl(project, *arguments, "--print_plan=json")
        assert backend.runs == []
        submitted_id(himl(project, *arguments))
    submitted = backend.runs[0].request.plan
    assert submitted.environment == {"SMALL": "1", "HUB_TOKEN": "very-secret"}
    plan = JobPlan.from_json(json.loads(printed.stdout))
    assert plan == replace(submitted, environment_variables=(("HUB_TOKEN", "***"), ("SMALL", "1")))
    assert plan.argv == ("--model=small.Small", "--num_nodes=2", "--tag=x")
    assert (plan.limits.max_run_seconds, plan.num_nodes, plan.display_name, plan.seed) == (5400.0, 2, "x", 42)
    assert dict(plan.tags)["colour"] == "blue"
    assert plan.provenance is not None
    assert plan.provenance.commit == git(project, "rev-parse", "HEAD")


def test_datasets_are_planned_with_both_of_their_names(project: Path) -> None:
    with memory_backend() as backend:
        submitted_id(
            himl(
                project, "--model=small.Small", "--cluster=memory", "--azure_datasets=a,b", "--local_datasets=data,/x",
                "--mount_in_azureml",
            )
        )  # fmt: skip
    datasets = backend.runs[0].request.plan.datasets
    assert [(data.name, data.local_folder, data.is_mounted) for data in datasets] == [
        ("a", str(project / "data"), True),
        ("b", "/x", True),
    ]


def test_a_dry_run_without_cluster_shows_the_run_in_this_process(project: Path) -> None:
    run = himl(project, "--model=small.Small", "--dry_run")
    assert run.exit_code == 0, run.stderr
    assert '"backend": "this process"' in run.stdout
    assert not (project / "outputs").exists()


def test_secret_arguments_are_masked_in_the_tags(project: Path) -> None:
    with memory_backend() as backend:
        submitted_id(
            himl(
                project, "--model=small.Small", "--cluster=memory",
                "--src_checkpoint=https://example.com/a.ckpt?sig=abcdefghijklmnop",
            )
        )  # fmt: skip
    assert "abcdefghijklmnop" not in dict(backend.runs[0].request.plan.tags)["commandline_args"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_snapshot_mb=0.00001"], "--max_snapshot_mb allows"),
        (["--require_clean"], "--require_clean"),
        (["--local_datasets=nowhere"], "nowhere"),
        (["--max_run_duration=soon"], "'soon'"),
        (["--output_to=small.py"], "Cannot write the results of the run to"),
        (["--allow_secret_files=x"], "no file that looks like a secret matches"),
    ],
)
def test_what_cannot_be_submitted_leaves_nothing_behind(project: Path, arguments: list[str], message: str) -> None:
    (project / "new.txt").touch()
    run = himl(project, "--model=small.Small", "--cluster=local", *arguments)
    assert run.exit_code == 2
    assert message in run.stderr
    assert not (project / "outputs").exists()


def test_secrets_stop_the_submission_until_they_are_allowed(project: Path) -> None:
    (project / ".env").write_text("TOKEN=abcdefgh12345\n")
    arguments = ("--model=small.Small", "--cluster=memory")
    with memory_backend() as backend:
        refused = himl(project, *arguments)
        assert refused.exit_code == 2
        assert ".env: its name is that of a file with secrets" in refused.stderr
        assert backend.runs == []
        submitted_id(himl(project, *arguments, "--allow_secret_files=.env"))


def test_the_config_file_of_a_job_is_looked_into_whatever_it_is_called(project: Path) -> None:
    (project / "flags.txt").write_text(f"tag: hf_{'aBcD1' * 6}\n")
    with memory_backend() as backend:
        refused = himl(project, "--model=small.Small", "--cluster=memory", "--config=flags.txt")
        assert (refused.exit_code, backend.runs) == (2, [])
    assert "flags.txt: it holds a token or a key" in refused.stderr
    listed = himl(project, "--list_snapshot", "--config=flags.txt")
    assert "flags.txt: it holds a token or a key" in listed.stdout


def test_a_clean_tree_is_accepted(project: Path) -> None:
    with memory_backend() as backend:
        submitted_id(himl(project, "--model=small.Small", "--cluster=memory", "--require_clean"))
    assert len(backend.runs) == 1


def test_what_runs_leave_behind_is_no_change(project: Path) -> None:
    (project / ".gitignore").write_text("data/\n__pycache__/\n")
    git(project, "commit", "--quiet", "--all", "--message", "less")
    first = himl(project, "--model=small.Small", "--require_clean")
    assert first.exit_code == 0, first.stderr
    assert (project / "mlflow.db").exists()
    (project / "other.txt").touch()
    refused = himl(project, "--model=small.Small", "--require_clean", "--dry_run")
    assert "there are untracked files: other.txt." in refused.stderr
    (project / "other.txt").unlink()
    with memory_backend():
        submitted_id(himl(project, "--model=small.Small", "--require_clean", "--cluster=memory"))


def test_a_folder_of_which_only_a_part_travels_is_read_where_it_is(project: Path) -> None:
    for name in ("whole", "part"):
        (project / name).mkdir()
        (project / name / "README").touch()
    (project / "part" / "data.csv").touch()
    (project / ".amlignore").write_text("*.csv\n")
    arguments = ("--model=small.Small", "--cluster=memory", "--local_datasets=part,whole", "--print_plan=json")
    with memory_backend():
        plan = json.loads(himl(project, *arguments).stdout)
    assert f"--local_datasets={project / 'part'},whole" in plan["argv"]


def test_an_unclean_tree_is_refused_in_this_process_too(project: Path) -> None:
    (project / "small.py").write_text(CONTAINER.format(rate=0.2))
    run = himl(project, "--model=small.Small", "--require_clean")
    assert run.exit_code == 2
    assert "tracked files have changes that are not committed" in run.stderr
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--status="], "--status needs the id of a run"),
        (["--status=a", "--cancel=a"], "each say what to do"),
        (["--set", "a=1", "--model=small.Small"], "--set has no effect without --rerun"),
        (["--attach=a", "--dry_run"], "--dry_run has no effect with --attach"),
        (["--attach=a", "--max_epochs=1"], "--max_epochs has no effect with --attach"),
        (["--attach=a"], "There is no run 'a'"),
        (["--rerun=a"], "There is no run 'a'"),
        (
            ["--rerun=net_20260131t120000z_1f2e3d4c"],
            "is a job in AzureML, and --rerun repeats the runs of this machine",
        ),
        (["--status=net_20260131t120000z_1f2e3d4c_3"], "add --cluster=azureml"),
        (["--print_plan=xml", "--model=small.Small"], "--print_plan=xml"),
    ],
)
def test_commands_about_runs_say_what_is_wrong(project: Path, arguments: list[str], message: str) -> None:
    run = himl(project, *arguments)
    assert run.exit_code == 2, run.stderr
    assert message in run.stderr


def test_what_the_runner_itself_writes_does_not_travel(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(project / "cache"))
    arguments = ("--model=small.Small", "--cluster=memory", "--output_to=results", "--print_plan=json")
    (project / "results").mkdir()
    (project / "results" / "a.txt").touch()
    with memory_backend() as backend:
        first = json.loads(himl(project, *arguments).stdout)["snapshot_hash"]
        submitted_id(himl(project, *arguments[:-1]))
    (project / "results" / "b.txt").touch()
    assert backend.runs[0].request.plan.snapshot_hash == first
    with memory_backend():
        assert json.loads(himl(project, *arguments).stdout)["snapshot_hash"] == first


def test_list_snapshot(project: Path) -> None:
    assert "look like secrets" not in himl(project, "--list_snapshot").stdout
    (project / ".env").write_text("TOKEN=abcdefgh12345\n")
    run = himl(project, "--list_snapshot")
    assert run.exit_code == 0
    assert "small.py" in run.stdout
    assert "data/" in run.stdout.partition("do not travel")[2]
    assert ".env: its name is that of a file with secrets" in run.stdout.partition("look like secrets")[2]


def test_list_snapshot_heeds_what_a_submission_would(project: Path) -> None:
    (project / ".env").write_text("TOKEN=abcdefgh12345\n")
    (project / "runs").mkdir()
    (project / "runs" / "old.log").write_text("text")
    run = himl(project, "--model=small.Small", "--list_snapshot", "--allow_secret_files=.env", "--output_to=runs")
    assert run.exit_code == 0, run.stderr
    assert "look like secrets" not in run.stdout
    assert "old.log" not in run.stdout
    too_large = himl(project, "--list_snapshot", "--max_snapshot_mb=0.00001")
    assert (too_large.exit_code, "--max_snapshot_mb allows" in too_large.stderr) == (2, True)


# --- jobs on this machine ---------------------------------------------------------------------------------------------


def test_a_job_runs_what_was_submitted_and_keeps_its_record_with_the_project(project: Path) -> None:
    (project / "new.txt").touch()
    submitted = himl(project, "--model=small.Small", "--cluster=local", "--tracking_uri=none")
    (project / "small.py").write_text("raise SystemExit('this is not what was submitted')\n")
    run_id = submitted_id(submitted)
    followed = himl(project, f"--attach={run_id}")
    assert followed.exit_code == 0, followed.stdout
    assert f"Run {run_id}: FINISHED" in followed.stdout
    record = read_record(project / "outputs" / run_id)
    assert record.document("git")["untracked"] == ["new.txt"]
    assert record.hyperparameters["l_rate"] == 0.1
    assert record.document("plan")["snapshot_hash"]
    status = himl(project, f"--status={run_id}")
    assert (status.exit_code, "val/loss" in status.stdout) == (0, True)
    assert f"Run {run_id} has ended already: FINISHED" in himl(project, f"--cancel={run_id}").stdout

    _check_repetition(project, run_id)
    _check_resuming(project, run_id)


def _check_repetition(project: Path, run_id: str) -> None:
    """A repetition runs the submitted code, not the present one, and gives the same metrics."""
    again = himl(project, f"--rerun={run_id}", "--wait_for_completion")
    assert again.exit_code == 0, again.stdout
    new_id = submitted_id(again)
    assert new_id != run_id
    first, second = (read_record(project / "outputs" / name) for name in (run_id, new_id))
    assert first.last_values == second.last_values
    assert second.document("plan") == first.document("plan")
    assert second.document("git")["commit"] == first.document("git")["commit"]
    plans = himl(project, f"--rerun={run_id}", "--set", "max_epochs=2", "--print_plan=json", "--set=l-rate=0.5")
    assert plans.exit_code == 0, plans.stderr
    assert '"--max_epochs=2"' in plans.stdout
    assert '"--l_rate=0.5"' in plans.stdout
    varied = himl(project, f"--rerun={run_id}", "--set=num_nodes=2", "--set=tag=x", "--print_plan=json")
    plan = JobPlan.from_json(json.loads(varied.stdout))
    assert (plan.num_nodes, plan.display_name, dict(plan.tags)["tag"]) == (2, "x", "x")
    job = LocalJobFolder(project / "outputs" / new_id).read_job()
    assert job.environment["HUB_TOKEN"] == "very-secret", "a job is repeated with what the record does not keep"
    wrong = himl(project, f"--rerun={run_id}", "--set=cluster=x", "--set=num_nodes=0")
    assert "cluster is part of how the run was planned" in wrong.stderr
    assert "--set=num_nodes=0: the number of nodes is a whole number above 0." in wrong.stderr
    wrong = himl(project, f"--rerun={run_id}", "--set=max_epoch=2", "--set=x")
    assert wrong.exit_code == 2
    assert "Did you mean 'max_epochs'" in wrong.stderr
    assert "--set=x is no FLAG=VALUE" in wrong.stderr


def _check_resuming(project: Path, run_id: str) -> None:
    """A job resumes from a run of the project by its id."""
    (project / "small.py").write_text(CONTAINER.format(rate=0.1))
    resumed = himl(
        project, "--model=small.Small", "--cluster=local", "--tracking_uri=none", "--resume_training",
        f"--src_checkpoint={run_id}", "--max_epochs=2", "--wait_for_completion",
    )  # fmt: skip
    assert resumed.exit_code == 0, resumed.stdout + resumed.stderr
    record = read_record(project / "outputs" / submitted_id(resumed))
    assert {row.epoch for row in record.metrics if "val/loss" in row.metrics} == {1}


def test_a_job_is_cancelled_from_another_command(project: Path, job: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    folder = project / "outputs" / job
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "RUNNING" in himl(project, f"--status={job}").stdout
    assert himl(project, f"--cancel={job}").exit_code == 0
    status = himl(project, f"--status={job}")
    assert (status.exit_code, "CANCELLED" in status.stdout) == (130, True)
    assert read_record(folder).status.status is RunStatus.CANCELLED


def test_sigterm_ends_the_waiting_and_not_the_job(project: Path, job: str) -> None:
    command = [sys.executable, "-m", "health_ml.runner", f"--attach={job}"]
    process = subprocess.Popen(
        command, cwd=project, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()  # of the log: it waits by now
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 143, first + output + errors
    advice = f"Run {job} goes on. himl-runner --attach={job} follows it, himl-runner --cancel={job} ends it.\n"
    assert output.endswith(advice)
    assert errors == "himl-runner: Interrupted.\n"
    assert himl(project, f"--status={job}").exit_code == 0, "it is still running"


def test_a_failed_job_fails_the_command_that_waits_for_it(project: Path) -> None:
    run = himl(
        project, "--model=small.Small", "--cluster=local", "--tracking_uri=none", "--wait_for_completion",
        "--max_run_duration=1s",
    )  # fmt: skip
    assert run.exit_code == 1
    assert "longer than its limit of 1 seconds" in himl(project, f"--status={submitted_id_of(run)}").stdout


def submitted_id_of(run: Invocation) -> str:
    return run.stdout.strip().splitlines()[0].split()[2]


# --- runs in this process ---------------------------------------------------------------------------------------------


def test_a_run_in_this_process_is_repeated_only_with_its_own_code(project: Path) -> None:
    first = himl(project, "--model=small.Small", "--tracking_uri=none")
    assert first.exit_code == 0, first.stderr
    assert first.result is not None
    again = himl(project, f"--rerun={first.result.run_id}", "--set=max_epochs=2")
    assert again.exit_code == 0, again.stderr
    assert {row.epoch for row in again.record.metrics if "val/loss" in row.metrics} == {0, 1}
    (project / "small.py").write_text(CONTAINER.format(rate=0.2))
    refused = himl(project, f"--rerun={first.result.run_id}")
    assert refused.exit_code == 2
    assert f"git checkout {git(project, 'rev-parse', 'HEAD')}" in refused.stderr
    attached = himl(project, f"--attach={first.result.run_id}")
    assert attached.exit_code != 0
    assert "was not submitted as a job" in attached.stderr
