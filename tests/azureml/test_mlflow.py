"""The unmodified azureml-mlflow logs to the stand-in, from jobs and from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.azureml.service import AzureML

Script = Callable[..., Any]


def test_a_job_logs_metrics_parameters_tags_and_artifacts(azureml: AzureML, client: Any, script: Script) -> None:
    text = """
import mlflow
from pathlib import Path
with mlflow.start_run() as run:
    mlflow.log_params({"rate": 0.1})
    for step in range(3):
        mlflow.log_metric("loss", 1.0 / (1 + step), step=step)
    mlflow.set_tag("note", "from inside")
    mlflow.log_text("some text", "texts/note.txt")
    print(run.info.run_id, run.info.artifact_uri)
"""
    name = client.jobs.create_or_update(script(text, experiment_name="tests", display_name="a name")).name
    (done,) = azureml.run_pending_jobs()
    assert done.status == "Completed", azureml.log(done)
    # Outside jobs MLflow warns about the artifact's own store; inside the run's id and place are AzureML's.
    assert f"{name} azureml://experiments/tests/runs/{name}/artifacts" in azureml.log(done)
    run = azureml.run_data(name)
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["run_name"] == "a name"
    assert {metric["key"]: metric["value"] for metric in run["data"]["metrics"]} == {"loss": 1 / 3}
    assert {param["key"]: param["value"] for param in run["data"]["params"]} == {"rate": "0.1"}
    assert done.tags["note"] == "from inside"
    assert azureml.artifacts(done)["texts/note.txt"] == b"some text"


OUTSIDE = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("from a machine")
with mlflow.start_run(run_name="outside") as run:
    mlflow.log_metric("loss", 0.5)
    mlflow.log_text("text", "note.txt")
print(run.info.run_id)
client = mlflow.MlflowClient()
found = client.search_runs([run.info.experiment_id], "metrics.loss < 1")
assert [one.info.run_id for one in found] == [run.info.run_id], found
assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
"""


def test_a_process_outside_logs_a_run_of_its_own(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    """What a training on a machine outside AzureML does, signed in as a service principal."""
    address = client.workspaces.get(azureml.workspace.name).mlflow_tracking_uri
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, address],
        env={**os.environ, **azureml.environment},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_id = next(line for line in done.stdout.splitlines() if line in azureml.state.jobs)
    job = azureml.state.jobs[run_id]
    assert (job.status, job.experiment, job.is_interactive) == ("Completed", "from a machine", True)
    assert job.body["displayName"] == "outside"
    assert azureml.artifacts(job) == {"note.txt": b"text"}
