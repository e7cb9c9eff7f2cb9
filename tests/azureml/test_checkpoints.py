"""``--src_checkpoint=<run id>`` for runs in AzureML."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.azure.checkpoints import checkpoint_stores
from health_ml.checkpoints.fetch import resolve_checkpoint
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.errors import CheckpointError, HimlError, RunNotFoundError, WorkspaceError
from health_ml.testing import invoke
from tests.azureml.service import AzureML
from tests.azureml.test_downloads import SWEEP_BODY, add_job


def resolve(text: str, project: Path, environ: dict[str, str]) -> Path:
    return resolve_checkpoint(
        CheckpointParser(text),
        start_directory=project,
        project_root=project,
        download_folder=project,
        other_stores=checkpoint_stores(environ, start_directory=project),
    )


@pytest.fixture
def environ(azureml: AzureML, project: Path) -> dict[str, str]:
    return {**azureml.environment, "XDG_CACHE_HOME": str(project.parent / "a cache")}


def test_the_newest_attempt_counts(azureml: AzureML, project: Path, environ: dict[str, str]) -> None:
    files = {
        "outputs/checkpoints/last.ckpt": b"first",
        "outputs/retry_001/checkpoints/last.ckpt": b"second",
        "outputs/retry_002/checkpoints/last.ckpt": b"third",
        "outputs/checkpoints/best.ckpt": b"best",
        "outputs/own/folder/model.ckpt": b"own",
    }
    add_job(azureml, "attempts", files)
    for text, content in {
        "attempts": b"third",
        "attempts:best.ckpt": b"best",
        "attempts:checkpoints/last.ckpt": b"third",
        "attempts:outputs/checkpoints/last.ckpt": b"third",
        "attempts:outputs/retry_001/checkpoints/last.ckpt": b"second",
        "attempts:own/folder/model.ckpt": b"own",
    }.items():
        assert resolve(text, project, environ).read_bytes() == content, text


def test_a_checkpoint_that_changed_is_downloaded_again(
    azureml: AzureML, project: Path, environ: dict[str, str]
) -> None:
    add_job(azureml, "growing_run", {"outputs/checkpoints/last.ckpt": b"epoch 1"})
    first = resolve("growing_run", project, environ)
    assert first.read_bytes() == b"epoch 1"
    add_job(azureml, "growing_run", {"outputs/checkpoints/last.ckpt": b"epoch 2"})
    assert resolve("growing_run", project, environ) == first
    assert first.read_bytes() == b"epoch 2"


def test_a_missing_file_is_named_with_those_that_exist(
    azureml: AzureML, project: Path, environ: dict[str, str]
) -> None:
    add_job(azureml, "lacking", {"outputs/checkpoints/best.ckpt": b"", "outputs/other/x.ckpt": b""}, status="Failed")
    with pytest.raises(CheckpointError, match=r"no file checkpoints/last\.ckpt; its status is Failed") as caught:
        resolve("lacking", project, environ)
    assert caught.value.hint == "Its checkpoints are lacking:best.ckpt, lacking:other/x.ckpt."
    add_job(azureml, "bare", {"outputs/a.txt": b""})
    with pytest.raises(CheckpointError, match="It has no checkpoints at all"):
        resolve("bare", project, environ)
    sweep = add_job(azureml, "search_run", {}, body=SWEEP_BODY)
    sweep.children = ["search_run_0"]
    add_job(azureml, "search_run_0", {}, parent="search_run")
    with pytest.raises(CheckpointError, match="It is a search: give the id of a trial, like search_run_0"):
        resolve("search_run", project, environ)


def test_runs_that_nobody_knows(azureml: AzureML, project: Path, environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"no run 'nobody' in .*outputs.* none of that id either"):
        resolve("nobody", project, environ)
    (project / "config.json").unlink()
    with pytest.raises(RunNotFoundError, match=r"There is no run 'nobody' in [^.]*outputs\. [^.]*\.$"):
        resolve("nobody", project, environ)


def test_a_sign_in_that_fails_does_not_hide_that_the_run_is_not_here(
    azureml: AzureML, project: Path, environ: dict[str, str]
) -> None:
    environ["AZURE_CLIENT_SECRET"] = "wrong"
    with pytest.raises(
        CheckpointError, match=r"no run 'nobody' in .*AzureML cannot be asked for it: Azure gave no token"
    ):
        resolve("nobody", project, environ)


def test_a_configuration_that_was_given_has_to_be_right(project: Path, environ: dict[str, str]) -> None:
    with pytest.raises(WorkspaceError, match="cannot be read"):
        checkpoint_stores(environ, start_directory=project, config_path=Path("other.json"))


def test_inference_on_the_checkpoint_of_a_run_in_azureml(azureml: AzureML, project: Path) -> None:
    trained = invoke(["--model=HelloWorld", "--max_epochs=1", "--max_num_gpus=0", "--tracking_uri=none"])
    assert trained.exit_code == 0, trained.stderr
    (checkpoint,) = project.glob("outputs/*/checkpoints/last.ckpt")
    add_job(azureml, "trained_there", {"outputs/checkpoints/last.ckpt": checkpoint.read_bytes()})
    tested = invoke(
        ["--model=HelloWorld", "--run_inference_only", "--src_checkpoint=trained_there",
         "--tracking_uri=none", "--workspace_config_path=config.json"]
    )  # fmt: skip
    assert tested.exit_code == 0, tested.stderr
    before, after = trained.result, tested.result
    assert before is not None
    assert after is not None
    assert after.metrics["test/mse"] == before.metrics["test/mse"]


def test_flags_of_the_workspace_without_use_are_refused(project: Path) -> None:
    refused = invoke(["--model=HelloWorld", "--auth=azure_cli", "--workspace_config_path=config.json"])
    assert refused.exit_code == HimlError("").exit_code + 1
    assert "--auth and --workspace_config_path have no effect on this machine" in refused.stderr
