"""What a run in a job finds out and puts back before it begins, from the files that the service has collected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from health_ml.azure.rest import Patience
from health_ml.backends.azureml_job import JobFacts, enter_job, stored_files
from health_ml.checkpoints.recovery import find_recovery_checkpoint, recovery_folder
from health_ml.environment import RunEnvironment
from health_ml.errors import CheckpointError, RegressionTestError
from health_ml.run_paths import RunPaths
from health_ml.training.regression import compare_folders_and_run_outputs
from tests.azureml.service import AzureML
from tests.azureml.test_downloads import add_job


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Returns the name of the job, another one in each test: its files stay in the storage."""
    return str(request.node.name)[:60]


@pytest.fixture
def environ(azureml: AzureML, name: str) -> dict[str, str]:
    """Returns the variables of a node."""
    workspace = azureml.workspace
    return {
        "AZUREML_RUN_ID": name,
        "AZUREML_SERVICE_ENDPOINT": workspace.data_plane,
        "AZUREML_RUN_TOKEN": azureml.token("https://ml.azure.com"),
        "AZUREML_ARM_SUBSCRIPTION": workspace.subscription_id,
        "AZUREML_ARM_RESOURCEGROUP": workspace.resource_group,
        "AZUREML_ARM_WORKSPACE_NAME": workspace.name,
    }


pytestmark = pytest.mark.usefixtures("signed_in")


def checkpoint(tmp_path: Path, epoch: int) -> bytes:
    """Returns the content of a checkpoint."""
    path = tmp_path / f"epoch_{epoch}.pt"
    content = {"epoch": epoch, "global_step": epoch * 10, "state_dict": {}, "optimizer_states": [],
               "lr_schedulers": [], "loops": {}, "pytorch-lightning_version": "2.6.0"}  # fmt: skip
    torch.save(content, path)
    return path.read_bytes()


def leave(azureml: AzureML, environ: dict[str, str], files: dict[str, bytes]) -> None:
    """Makes the job, with the files that earlier attempts have left."""
    add_job(azureml, environ["AZUREML_RUN_ID"], files, status="Running")


def enter(environ: dict[str, str], paths: RunPaths, **variables: str) -> JobFacts:
    return enter_job(RunEnvironment.from_env({**environ, **variables}), paths, {**environ, **variables})


def new_paths(folder: Path) -> RunPaths:
    paths = RunPaths.in_job(folder, "entering")
    paths.create()
    return paths


def test_a_first_start_finds_nothing(azureml: AzureML, environ: dict[str, str], tmp_path: Path) -> None:
    add_job(
        azureml,
        environ["AZUREML_RUN_ID"],
        {"outputs/console_logs/logging_now.txt": b"of this very start"},
        status="Running",
    )
    facts = enter(environ, new_paths(tmp_path / "wd"))
    assert facts.attempt == 0
    assert facts.tags("experiment") == {}
    assert list((tmp_path / "wd" / "outputs" / "checkpoints").iterdir()) == []


def test_a_restart_gets_record_and_checkpoints_back(azureml: AzureML, environ: dict[str, str], tmp_path: Path) -> None:
    mirror = json.dumps({"positions": {"metrics.jsonl": 1000, "tags.jsonl": 3}, "event_file": {"name": "gone"}})
    files = {
        "outputs/checkpoints/last.ckpt": checkpoint(tmp_path, 1),
        "outputs/checkpoints/own.ckpt": checkpoint(tmp_path, 0),
        "outputs/run/metrics.jsonl": b'{"metrics": {}}\n',
        "outputs/run/tags.jsonl": b"{}\n",
        "outputs/run/mirror.json": mirror.encode(),
        "outputs/retry_001/checkpoints/last.ckpt": checkpoint(tmp_path, 5),
        "outputs/other.bin": b"not needed",
    }
    leave(azureml, environ, files)
    paths = new_paths(tmp_path / "wd")
    assert enter(environ, paths).attempt == 1
    found = find_recovery_checkpoint(paths.checkpoints)
    assert found is not None
    assert found.read_bytes() == files["outputs/retry_001/checkpoints/last.ckpt"]
    assert (paths.checkpoints / "own.ckpt").read_bytes() == files["outputs/checkpoints/own.ckpt"]
    assert not (paths.outputs / "other.bin").exists()
    restored = json.loads((paths.record / "mirror.json").read_text())
    assert restored["positions"] == {"metrics.jsonl": 16, "tags.jsonl": 3}
    assert restored["event_file"] == {}


def test_a_damaged_checkpoint_of_the_newest_attempt_gives_way_to_that_of_an_older_one(
    azureml: AzureML, environ: dict[str, str], tmp_path: Path
) -> None:
    files = {
        "outputs/checkpoints/last.ckpt": checkpoint(tmp_path, 1),
        "outputs/checkpoints/own.ckpt": checkpoint(tmp_path, 0),
        "outputs/retry_001/checkpoints/last.ckpt": checkpoint(tmp_path, 5)[:200],
    }
    leave(azureml, environ, files)
    paths = new_paths(tmp_path / "wd")
    enter(environ, paths)
    assert (paths.checkpoints / "last.ckpt").read_bytes() == files["outputs/checkpoints/last.ckpt"]


def test_checkpoints_of_which_none_can_be_used_are_an_error(
    azureml: AzureML, environ: dict[str, str], tmp_path: Path
) -> None:
    leave(azureml, environ, {"outputs/checkpoints/last.ckpt": b"damaged"})
    paths = new_paths(tmp_path / "wd")
    enter(environ, paths)
    with pytest.raises(CheckpointError, match="Cannot continue the training"):
        find_recovery_checkpoint(paths.checkpoints)


def test_other_nodes_put_checkpoints_where_nobody_collects_them(
    azureml: AzureML, environ: dict[str, str], tmp_path: Path
) -> None:
    files = {"outputs/checkpoints/last.ckpt": checkpoint(tmp_path, 1), "outputs/run/tags.jsonl": b"{}\n"}
    leave(azureml, environ, files)
    paths = new_paths(tmp_path / "wd")
    enter(environ, paths, NODE_RANK="1", RANK="1", WORLD_SIZE="2")
    assert list(paths.checkpoints.iterdir()) == []
    assert not paths.record.exists()
    found = find_recovery_checkpoint(recovery_folder(paths.outputs, node_rank=1))
    assert found is not None
    assert not found.is_relative_to(paths.outputs)


def test_what_is_on_the_disk_is_not_replaced(azureml: AzureML, environ: dict[str, str], tmp_path: Path) -> None:
    add_job(
        azureml, environ["AZUREML_RUN_ID"], {"outputs/checkpoints/last.ckpt": checkpoint(tmp_path, 1)}, status="Running"
    )
    paths = new_paths(tmp_path / "wd")
    (paths.checkpoints / "last.ckpt").write_bytes(checkpoint(tmp_path, 2))
    paths.record.mkdir()
    (paths.record / "status.jsonl").write_text('{"status": "RUNNING", "attempt": 3}\n')
    assert enter(environ, paths).attempt == 4
    assert (paths.checkpoints / "last.ckpt").read_bytes() == checkpoint(tmp_path, 2)


def test_a_service_that_does_not_answer_or_refuses_is_an_error(
    azureml: AzureML,
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("health_ml.azure.rest.Patience", lambda: Patience(attempts=2, pause=0.01))
    leave(azureml, environ, {})
    azureml.misbehave("GET", "*/runs/test_*", times=2, status=503)
    with pytest.raises(CheckpointError, match="Cannot find out whether earlier attempts of this job have left"):
        enter(environ, new_paths(tmp_path / "down"))
    azureml.misbehave("GET", "*/runs/test_*", times=1, status=403)
    with pytest.raises(CheckpointError, match="set HIML_ATTEMPT=0 in its environment"):
        enter(environ, new_paths(tmp_path / "refused"))
    leave(azureml, environ, {"outputs/checkpoints/last.ckpt": checkpoint(tmp_path, 1)})
    trouble = azureml.misbehave("GET", "*.blob.core.windows.net/*", times=-1, status=403)
    with pytest.raises(CheckpointError, match="Cannot find out whether earlier attempts of this job have left"):
        enter(environ, new_paths(tmp_path / "no files"))
    azureml.cloud.misbehaviour.troubles.remove(trouble)
    azureml.misbehave("GET", "*/runs/test_*", times=1, status=403)
    assert enter(environ, new_paths(tmp_path / "told"), HIML_ATTEMPT="0").attempt == 0
    assert "Nothing can be restored from earlier attempts" in caplog.text


def test_expected_files_are_compared_with_what_the_service_has(
    azureml: AzureML, environ: dict[str, str], tmp_path: Path
) -> None:
    leave(azureml, environ, {"outputs/score.txt": b"0.5\n", "outputs/wrong.txt": b"1\n"})
    expected = tmp_path / "expected" / "AZUREML_OUTPUT" / "outputs"
    expected.mkdir(parents=True)
    (expected / "score.txt").write_text("0.5\n")
    job = enter(environ, new_paths(tmp_path / "job"))
    with stored_files(job, environ) as (run, parent):
        assert parent is None
        compare_folders_and_run_outputs(tmp_path / "expected", tmp_path, run=run)
    (expected / "wrong.txt").write_text("2\n")
    (expected / "gone.txt").write_text("3\n")
    with (
        stored_files(job, environ) as (run, _),
        pytest.raises(RegressionTestError, match="Some expected files were missing") as caught,
    ):
        compare_folders_and_run_outputs(tmp_path / "expected", tmp_path, run=run)
    assert "Issues in AzureML outputs in present run:" in caught.value.message
    assert "Missing: outputs/gone.txt" in caught.value.message
    assert "Contents mismatch: outputs/wrong.txt" in caught.value.message
    with stored_files(None, environ) as files:
        assert files == (None, None)
