"""What the trials of a search found: the table of results, and the checkpoint of the best trial."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from health_ml.azure.checkpoints import checkpoint_stores
from health_ml.checkpoints.fetch import resolve_checkpoint
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.errors import CheckpointError
from health_ml.records.record import RunRecord, RunStatus
from health_ml.runner import download_main
from health_ml.testing import Invocation, invoke
from tests.azureml.service import AzureML
from tests.azureml.state import Job
from tests.azureml.test_downloads import SWEEP_BODY, add_job, reads_of

RANKED = {"himl.search": json.dumps({"primary_metric": "val/loss", "goal": "minimize", "names": {"a_b": "a.b"}})}
"""What a search says about itself if a metric ranks its trials."""


def record_files(
    folder: Path, metrics: dict[str, float], *, message: str = "", tested: str | None = "checkpoints/last.ckpt"
) -> dict[str, bytes]:
    """Returns the files that a trial with these metrics leaves."""
    record = RunRecord.create(folder, run_id=folder.name)
    record.log_metrics({name: value + 1 for name, value in metrics.items()}, step=1)
    record.log_metrics(metrics, step=2)
    record.write_document("run", {"run_id": folder.name, "created": 1000.0, "checkpoint": tested})
    record.set_status(RunStatus.FINISHED, message)
    record.close()
    files = {f"outputs/run/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return {**files, "outputs/checkpoints/last.ckpt": folder.name.encode()}


def add_search(azureml: AzureML, name: str, trials: list[tuple[str, dict[str, bytes]]], **facts: Any) -> Job:
    """Returns a search whose trials have the given statuses and files."""
    search = add_job(azureml, name, {}, body=SWEEP_BODY, **{"properties": RANKED, **facts})
    for index, (status, files) in enumerate(trials):
        trial = add_job(azureml, f"{name}_{index}", files, status=status, parent=name)
        trial.tags["hyperparameters"] = json.dumps({"a_b": index / 4, "kind": "True"})
        search.children.append(trial.name)
    return search


def finished(tmp_path: Path, name: str, **metrics: float) -> tuple[str, dict[str, bytes]]:
    return "Completed", record_files(tmp_path / name, {key.replace("_", "/"): value for key, value in metrics.items()})


def status_of(name: str, project: Path) -> Invocation:
    return invoke([f"--status={name}", "--cluster=azureml"], folder=project)


def best_of(name: str, project: Path, azureml: AzureML, form: str = "best") -> bytes:
    environ = {**azureml.environment, "XDG_CACHE_HOME": str(project.parent / "a cache")}
    found = resolve_checkpoint(
        CheckpointParser(f"{name}:{form}"),
        start_directory=project,
        project_root=project,
        download_folder=project,
        other_stores=checkpoint_stores(environ, start_directory=project),
    )
    return found.read_bytes()


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table_of_a_search(azureml: AzureML, project: Path, tmp_path: Path) -> None:
    azureml.cloud.page_size = 2
    stopped = record_files(tmp_path / "t1", {"val/loss": 0.25, "test/mse": 3.0}, message="Stopped early.")
    restarted = record_files(tmp_path / "t2", {"val/loss": 9.0})
    for path, content in record_files(tmp_path / "t2_again", {"val/loss": 0.75, "test/mse": 5.0}).items():
        restarted[path.replace("outputs/", "outputs/retry_001/")] = content
    trials = [
        finished(tmp_path, "t0", val_loss=0.5, test_mse=4.0),
        ("Completed", stopped),
        ("Completed", restarted),
        ("Canceled", record_files(tmp_path / "t3", {"val/loss": 0.1})),
        ("Failed", {"outputs/other.txt": b""}),
        ("Queued", {}),
    ]
    add_search(azureml, "table_search", trials, status="Running")
    shown = status_of("table_search", project)
    assert shown.exit_code == 0, shown.stderr
    lines = rows(shown.stdout)
    assert lines[0] == ["Run", "table_search:", "RUNNING"]
    assert ["trial", "a.b", "kind", "val/loss", "status", "time", "run"] in lines
    assert [line[:5] for line in lines if line and line[-1].startswith("table_search_") and "True" in line] == [
        ["0", "0", "True", "0.5", "FINISHED"],
        ["1", "0.25", "True", "0.25", "FINISHED"],
        ["2", "0.5", "True", "0.75", "FINISHED"],
        ["3", "0.75", "True", "0.1", "CANCELLED"],
        ["4", "1", "True", "FAILED", "table_search_4"],
        ["5", "1.25", "True", "QUEUED", "table_search_5"],
    ]
    assert "Trial 1: Stopped early." in shown.stdout
    assert ["val/loss", "3", "0.5", "0.25", "0.25", "0.75"] in lines
    assert ["test/mse", "3", "4", "1", "3", "5"] in lines
    assert "Best trial by val/loss: 1 (0.25), run table_search_1." in shown.stdout
    read = reads_of(azureml, "dcid.table_search_", count=12)
    assert sorted(read) == sorted(4 * ["run.json", "status.jsonl", "metrics.jsonl"]), "nothing else was downloaded"


def test_the_table_at_the_end_of_attach(azureml: AzureML, project: Path, tmp_path: Path) -> None:
    add_search(
        azureml, "ended_search", [finished(tmp_path, "t0", val_loss=0.5), finished(tmp_path, "t1", val_loss=0.25)]
    )
    followed = invoke(["--attach=ended_search", "--cluster=azureml"], folder=project)
    assert followed.exit_code == 0, followed.stderr
    assert followed.stdout.index("Best trial by val/loss: 1 (0.25)") < followed.stdout.index(
        "Run ended_search: FINISHED"
    )


def test_statuses_are_shown_where_the_storage_cannot_be_read(
    azureml: AzureML, project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_search(azureml, "closed_search", [finished(tmp_path, "t0", val_loss=0.5), ("Failed", {})])
    azureml.misbehave("GET", "*.blob.core.windows.net/*", times=-1, status=403)
    shown = status_of("closed_search", project)
    assert shown.exit_code == 0, shown.stderr
    assert "The metrics of the trials cannot be shown" in caplog.text
    assert [line for line in rows(shown.stdout) if line and line[0] == "0"] == [
        ["0", "0", "True", "FINISHED", "closed_search_0"]
    ]


def test_results_are_downloaded_as_files(azureml: AzureML, project: Path, tmp_path: Path) -> None:
    add_search(azureml, "files_search", [finished(tmp_path, "t0", val_loss=0.5), ("Queued", {})])
    assert download_main(["--run=files_search", "--files_to_download=fan_out.*", "--output_dir=found"]) == 0
    assert sorted(path.name for path in (project / "found").glob("[!.]*")) == ["fan_out.csv", "fan_out.html"]
    with (project / "found" / "fan_out.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["run_id"], first["status"], first["a.b"], first["val/loss"]) == (
        "files_search_0",
        "FINISHED",
        "0",
        "0.5",
    )
    assert (second["run_id"], second["status"], second["val/loss"]) == ("files_search_1", "QUEUED", "")
    assert "files_search_0" in (project / "found" / "fan_out.html").read_text()


def test_the_best_trial(azureml: AzureML, project: Path, tmp_path: Path) -> None:
    other = record_files(tmp_path / "t1", {"val/loss": 0.25}, tested="checkpoints/own.ckpt")
    trials = [
        finished(tmp_path, "t0", val_loss=0.5),
        ("Completed", {**other, "outputs/checkpoints/own.ckpt": b"tested"}),
        finished(tmp_path, "t2", val_loss=float("nan")),
        ("Failed", record_files(tmp_path / "t3", {"val/loss": 0.1})),
        finished(tmp_path, "t4", test_mse=0.0),
    ]
    add_search(azureml, "least_search", trials)
    assert best_of("least_search", project, azureml) == b"tested"
    assert best_of("least_search", project, azureml, "best.ckpt") == b"tested"
    most = json.dumps({"primary_metric": "val/loss", "goal": "maximize"})
    add_search(azureml, "most_search", trials, properties={"himl.search": most})
    assert best_of("most_search", project, azureml) == b"t0"
    by_service = json.dumps({"name": "val/loss", "goal": "Maximize"})
    add_search(azureml, "other_program_search", trials, properties={"primary_metric_config": by_service})
    assert best_of("other_program_search", project, azureml) == b"t0"


def test_what_was_downloaded_of_a_search_does_not_hide_it(azureml: AzureML, project: Path, tmp_path: Path) -> None:
    add_search(azureml, "hidden_search", [finished(tmp_path, "t0", val_loss=0.5)])
    assert download_main(["--run=hidden_search", "--files_to_download=fan_out.csv"]) == 0
    assert (project / "outputs" / "hidden_search" / "fan_out.csv").is_file()
    assert best_of("hidden_search", project, azureml) == b"t0"


def test_a_search_that_goes_on_has_a_best_trial_so_far(
    azureml: AzureML, project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_tested = record_files(tmp_path / "t0", {"val/loss": 0.5}, tested=None)
    add_search(azureml, "going_search", [("Completed", without_tested), ("Running", {})], status="Running")
    assert best_of("going_search", project, azureml) == b"t0"
    assert "The search going_search goes on: another trial may still be better." in caplog.text


def test_searches_without_a_best_trial(azureml: AzureML, project: Path, tmp_path: Path) -> None:
    done = finished(tmp_path, "t0", test_mse=0.5)
    unranked = json.dumps({"primary_metric": None, "goal": "minimize"})
    both = {"himl.search": unranked, "primary_metric_config": '{"name": "test/mse", "goal": "minimize"}'}
    add_search(azureml, "seeds_search", [done], properties=both)
    with pytest.raises(
        CheckpointError, match="'seeds_search' in AzureML has no best trial: no --primary_metric"
    ) as caught:
        best_of("seeds_search", project, azureml)
    assert caught.value.hint == "Name one of its trials: seeds_search_0."
    add_search(azureml, "young_search", [("Running", {}), ("Queued", {}), ("Running", {})], status="Running")
    with pytest.raises(CheckpointError, match=r"none has finished \(1 QUEUED, 2 RUNNING\)"):
        best_of("young_search", project, azureml)
    add_search(azureml, "childless_search", [], status="Failed")
    with pytest.raises(CheckpointError, match=r"none has finished \(there are none yet\)"):
        best_of("childless_search", project, azureml)
    add_search(azureml, "unlogged_search", [done])
    with pytest.raises(CheckpointError, match=r"has logged val/loss, .* they have logged test/mse\."):
        best_of("unlogged_search", project, azureml)
    lost = record_files(tmp_path / "t1", {"val/loss": 0.5})
    del lost["outputs/checkpoints/last.ckpt"]
    add_search(azureml, "lost_search", [("Completed", lost)])
    with pytest.raises(CheckpointError, match=r"run 'lost_search_0' in AzureML has no file checkpoints/last\.ckpt"):
        best_of("lost_search", project, azureml)
