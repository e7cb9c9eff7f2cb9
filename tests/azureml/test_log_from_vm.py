"""``--log_from_vm``: a training outside AzureML logs to a run there, whatever happens to it or to the network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from health_ml.azure.tracking import find_tracking_uri
from health_ml.errors import AuthenticationError
from health_ml.testing import invoke
from tests.azureml.service import AzureML
from tests.azureml.state import Job

FLAGS = ["--model=HelloWorld", "--max_num_gpus=0", "--log_from_vm", "--run_extra_val_epoch"]


def new_run(azureml: AzureML, display_name: str) -> Job:
    """Returns the run that was made through MLflow with this name."""
    (job,) = [
        job for job in azureml.state.jobs.values() if job.is_interactive and job.body["displayName"] == display_name
    ]
    return job


def test_everything_of_a_run_is_in_one_run_of_azureml(azureml: AzureML, project: Path) -> None:
    done = invoke([*FLAGS, "--max_epochs=2", "--tag=from my vm", "--experiment=vm_tests"])
    assert done.exit_code == 0, done.stderr
    job = new_run(azureml, "from my vm")
    workspace = azureml.workspace.prefix.replace("/providers/Microsoft.MachineLearningServices", "")
    assert f"  AzureML     https://ml.azure.com/runs/{job.name}?wsid={workspace}\n" in done.stdout
    assert (job.status, job.experiment) == ("Completed", "vm_tests")
    data = azureml.run_data(job.name)["data"]
    metrics = {entry["key"]: entry["value"] for entry in data["metrics"]}
    assert {"loss", "val_loss", "test_mse"} & {name.replace("/", "_") for name in metrics}, sorted(metrics)
    assert {name.partition("/")[0] for name in metrics} >= {"train", "val", "test", "hyperparameters"}, sorted(metrics)
    assert {entry["key"]: entry["value"] for entry in data["params"]}["max_epochs"] == "2"
    assert {entry["key"]: entry["value"] for entry in data["tags"]}["himl.status"] == "FINISHED"
    assert "run/config.json" in azureml.artifacts(job), "outside AzureML nobody else collects the record"


def test_who_cannot_sign_in_has_no_run(azureml: AzureML, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "wrong")
    refused = invoke(FLAGS)
    assert refused.exit_code == 2
    assert "AADSTS7000215" in refused.stderr
    assert not (project / "outputs").exists()
    about = invoke(["--status=some_run", "--cluster=azureml"])
    assert (about.exit_code, "AADSTS7000215" in about.stderr) == (2, True)


BROKEN = """
from health_ml.configs.hello_world import HelloWorld

class Broken(HelloWorld):
    def get_callbacks(self):
        raise RuntimeError("on purpose")
"""


def test_a_run_that_fails_says_so(azureml: AzureML, project: Path) -> None:
    (project / "broken.py").write_text(BROKEN)
    done = invoke(["--model=broken.Broken", *FLAGS[1:], "--max_epochs=1", "--tag=failing vm"])
    assert done.exit_code == 1, done.stdout + done.stderr
    assert new_run(azureml, "failing vm").status == "Failed"


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_true_status(azureml: AzureML, project: Path) -> None:
    command = [sys.executable, "-m", "health_ml.runner", *FLAGS, "--max_epochs=100000", "--tag=killed vm"]
    with (project / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=dict(os.environ), cwd=project, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not _has_metrics(azureml, "killed vm"):
            assert process.poll() is None, (project / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        job = new_run(azureml, "killed vm")
        while job.status == "Running":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert job.status == "Canceled"
        _wait_for_mirror(project, deadline)
    finally:
        process.kill()
        process.wait()


def _has_metrics(azureml: AzureML, display_name: str) -> bool:
    try:
        job = new_run(azureml, display_name)
    except ValueError:
        return False
    return bool(azureml.run_data(job.name)["data"].get("metrics"))


def _wait_for_mirror(project: Path, deadline: float) -> None:
    (document,) = project.glob("outputs/*/run/mirror.json")
    while not json.loads(document.read_text())["is_complete"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_a_lost_network_has_held_up_is_carried_over_later(
    azureml: AzureML, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("health_ml.backends.in_process.MIRROR_SECONDS", 3.0)
    trouble = azureml.misbehave("POST", "*/mlflow/runs/log-batch", times=-1, close=True)
    done = invoke([*FLAGS, "--max_epochs=1", "--tag=offline vm"])
    assert done.exit_code == 0, "a mirror that is down does not fail the training"
    assert "--sync=" in done.stdout
    azureml.cloud.misbehaviour.troubles.remove(trouble)
    (folder,) = project.glob("outputs/*")
    command = [sys.executable, "-m", "health_ml.runner", f"--sync={folder.name}"]
    synced = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert synced.returncode == 0, synced.stderr
    assert new_run(azureml, "offline vm").status == "Completed"
    assert _has_metrics(azureml, "offline vm")


def test_who_cannot_sign_in_is_told_before_anything_starts(
    azureml: AzureML, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "wrong")
    done = invoke([*FLAGS, "--max_epochs=1"])
    assert done.exit_code != 0
    assert "Azure gave no token" in done.stderr
    assert not (project / "outputs").exists()


def test_a_sign_in_that_asks_a_person_is_refused(azureml: AzureML, project: Path) -> None:
    with pytest.raises(AuthenticationError, match="cannot sign in with device_code: that asks a person"):
        find_tracking_uri({}, start_directory=project, auth="device_code")


def test_the_address_is_the_one_that_the_workspace_names(azureml: AzureML, project: Path, client: Any) -> None:
    expected = client.workspaces.get(azureml.workspace.name).mlflow_tracking_uri
    assert find_tracking_uri(azureml.environment, start_directory=project) == expected
