"""What a container, a dataset, a checkpoint or a disk that is not as it should be leads to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.cli.parse import parse
from health_ml.configs.hello_world import HelloWorld
from health_ml.environment import RunEnvironment
from health_ml.errors import (
    EXIT_USAGE,
    ArgumentsError,
    CheckpointError,
    ContainerError,
    DatasetError,
    HimlError,
    OutputError,
    PlanError,
    RegressionTestError,
    RunNotFoundError,
)
from health_ml.experiment_config import RunnerMode
from health_ml.lightning_container import LightningContainer
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.testing import invoke
from tests.helpers.containers import LineContainer, LineData, LineModel
from tests.helpers.disk import largest_file
from tests.helpers.http_server import send, serving
from tests.helpers.runs import run_container
from tests.helpers.training import quiet_trainer


def status_of_only_run(folder: Path) -> tuple[RunStatus, str]:
    (run,) = (folder / "outputs").iterdir()
    status = read_record(run / "run").status
    return status.status, status.message


# --- the user's code --------------------------------------------------------------------------------------------------


def failing(method: str, error: BaseException) -> type[LineContainer]:
    def fail(self: LineContainer) -> None:
        raise error

    return type("Failing", (LineContainer,), {method: fail})


@pytest.mark.parametrize(
    "method",
    [
        "get_additional_environment_variables",
        "get_additional_aml_run_tags",
        "setup",
        "create_model",
        "before_training_on_global_rank_zero",
        "before_training_on_local_rank_zero",
        "before_training_on_all_ranks",
        "get_data_module",
        "get_checkpoint_to_test",
    ],
)
def test_an_exception_names_the_method_and_the_line(method: str, tmp_path: Path) -> None:
    container = failing(method, ZeroDivisionError("too few"))(max_epochs=1)
    expected = (
        rf"Failing.{method} failed with ZeroDivisionError: too few \(.*test_bad_input.py, line \d+, in fail: raise"
    )
    with pytest.raises(ContainerError, match=expected):
        run_container(container, tmp_path)


@pytest.mark.parametrize("method", ["get_trainer_arguments", "get_callbacks"])
def test_an_exception_before_the_trainer_exists(method: str, tmp_path: Path) -> None:
    container = failing(method, ZeroDivisionError("too few"))()
    with pytest.raises(ContainerError, match="get_trainer_arguments or get_callbacks failed with ZeroDivisionError"):
        run_container(container, tmp_path)


def test_code_that_ends_the_process_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"setup failed with SystemExit: 0 \(.*in fail"):
        run_container(failing("setup", SystemExit(0))(), tmp_path)
    assert status_of_only_run(tmp_path)[0] is RunStatus.FAILED


@pytest.mark.parametrize("error", [KeyError("large"), SystemExit(0)], ids=["exception", "exit"])
@pytest.mark.parametrize("method", ["set_model_variant", "update_experiment_config", "validate"])
def test_the_command_line_names_the_method_that_failed(
    method: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LineContainer, *_: object) -> None:
        raise error

    monkeypatch.setattr(HelloWorld, method, fail)
    monkeypatch.syspath_prepend(str(tmp_path))  # is put back, unlike what the search for the model adds
    with pytest.raises(ContainerError, match=rf"HelloWorld.{method} failed with {type(error).__name__}: .*in fail"):
        parse(["--model=HelloWorld"], start_directory=tmp_path)


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_an_impossible_environment_variable(name: str, tmp_path: Path) -> None:
    container_class = type("Odd", (LineContainer,), {"get_additional_environment_variables": lambda self: {name: "x"}})
    with pytest.raises(ContainerError, match="which cannot be the name of an environment variable"):
        run_container(container_class(), tmp_path)


class ExitingModel(LineModel):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        sys.exit(0)


class ModelContainer(LineContainer):
    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = model

    def create_model(self) -> LightningModule:
        return self.given  # type: ignore[no-any-return]


def test_a_model_that_ends_the_process_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="ended the process with exit code 0 before the run was complete"):
        run_container(ModelContainer(ExitingModel()), tmp_path)
    assert status_of_only_run(tmp_path)[0] is RunStatus.FAILED


@pytest.mark.parametrize("model", [None, torch.nn.Linear(1, 1)])
def test_create_model_has_to_return_a_model(model: object, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"create_model returned .* which is not a LightningModule"):
        run_container(ModelContainer(model), tmp_path)


class DataContainer(LineContainer):
    def __init__(self, data: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data = data

    def get_data_module(self) -> LightningDataModule:
        return self.data  # type: ignore[no-any-return]


def test_get_data_module_has_to_return_data(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="get_data_module returned None, which is not a LightningDataModule"):
        run_container(DataContainer(None), tmp_path)


def test_what_lightning_refuses_is_explained_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"Lightning refuses what ModelContainer made: No `training_step\(\)`"):
        run_container(ModelContainer(TrainingOnlyModel()), tmp_path)


def test_a_method_that_is_not_overridden_is_named_once(tmp_path: Path) -> None:
    class Empty(LineContainer):
        create_model = LightningContainer.create_model

    with pytest.raises(ContainerError, match=r"and return a LightningModule\. Set HIML_FULL_ERROR") as caught:
        run_container(Empty(), tmp_path)
    assert str(caught.value).count("LightningModule") == 1


class TrainingDataOnly(LightningDataModule):
    train_dataloader = LineData.train_dataloader
    _loader = LineData._loader


def test_missing_loaders_are_named_before_the_training(tmp_path: Path) -> None:
    expected = r"lacks val_dataloader \(for validation_step\) and test_dataloader \(for test_step\)"
    with pytest.raises(ContainerError, match=expected):
        run_container(DataContainer(TrainingDataOnly()), tmp_path)


def test_loaders_that_are_set_on_the_object_count(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 8).reshape(-1, 1)
    points = torch.utils.data.TensorDataset(x, x)
    data = LightningDataModule.from_datasets(points, points, points)
    assert run_container(DataContainer(data, max_epochs=1), tmp_path).status is RunStatus.FINISHED


class NoTest(LineModel):
    test_step = LightningModule.test_step


def test_a_model_without_test_needs_no_test_data(tmp_path: Path) -> None:
    class NoTestData(LineData):
        test_dataloader = LightningDataModule.test_dataloader

    container = DataContainer(NoTestData(), max_epochs=1)
    container.create_model = NoTest  # type: ignore[method-assign]
    result = run_container(container, tmp_path)
    assert set(result.metrics) == {"train/loss", "val/loss"}


def test_eval_full_needs_a_test(checkpoint: Path, tmp_path: Path) -> None:
    container = ModelContainer(NoTest(), src_checkpoint=CheckpointParser(str(checkpoint)))
    with pytest.raises(ContainerError, match="tests the model, but NoTest has no test_step"):
        run_container(container, tmp_path, mode=RunnerMode.EVAL_FULL)


# --- data, checkpoints, expected results ------------------------------------------------------------------------------


def test_all_missing_dataset_folders_are_named_and_no_run_is_made(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    container = LineContainer(local_datasets=[Path("here"), Path("gone"), tmp_path / "lost"])
    with pytest.raises(DatasetError, match=f"do not exist: {tmp_path}/gone, {tmp_path}/lost"):
        run_container(container, tmp_path)
    assert not (tmp_path / "outputs").exists()


def test_a_dataset_that_is_a_file_is_told_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(DatasetError, match=r"these are files: .*/data\.csv\. Give the folder"):
        run_container(LineContainer(local_datasets=[Path("data.csv")]), tmp_path)


def test_relative_dataset_folders_start_where_the_user_is(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    container = LineContainer(max_epochs=1, local_datasets=[Path("here")])
    run_container(container, tmp_path)
    assert container.local_datasets == [tmp_path / "here"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(LineModel(), datamodule=LineData())
    path = tmp_path / "elsewhere" / "model.ckpt"
    trainer.save_checkpoint(path)
    return path


def inference(checkpoint: Path | str) -> LineContainer:
    return LineContainer(run_inference_only=True, src_checkpoint=CheckpointParser(str(checkpoint)))


def test_a_missing_checkpoint_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(HimlError, match=r"gone\.ckpt"):
        run_container(inference(tmp_path / "gone.ckpt"), tmp_path)
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_run_id_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="some_run"):
        run_container(inference("some_run"), tmp_path)
    assert not (tmp_path / "outputs").exists()


def test_a_truncated_checkpoint_leaves_no_run(checkpoint: Path, tmp_path: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        run_container(inference(checkpoint), tmp_path)
    assert not (tmp_path / "outputs").exists()


def flip_a_weight(checkpoint: Path) -> None:
    """Changes one bit in the weights, which torch loads without a word."""
    content = torch.load(checkpoint, weights_only=True)
    weight = content["state_dict"]["layer.weight"].numpy().tobytes()
    data = bytearray(checkpoint.read_bytes())
    data[data.index(weight)] ^= 1
    checkpoint.write_bytes(data)
    assert torch.load(checkpoint, weights_only=True).keys() == content.keys()


@pytest.mark.parametrize(
    ("kwargs", "mode"),
    [
        ({"run_inference_only": True}, RunnerMode.TRAIN),
        ({"resume_training": True, "max_epochs": 5}, RunnerMode.TRAIN),
        ({}, RunnerMode.EVAL_FULL),
    ],
)
def test_a_checkpoint_with_changed_weights_leaves_no_run(
    kwargs: dict[str, Any], mode: RunnerMode, checkpoint: Path, tmp_path: Path
) -> None:
    flip_a_weight(checkpoint)
    container = LineContainer(src_checkpoint=CheckpointParser(str(checkpoint)), **kwargs)
    with pytest.raises(CheckpointError, match=r"is damaged or incomplete: its record '.*' differs from its checksum"):
        run_container(container, tmp_path, mode=mode)
    assert not (tmp_path / "outputs").exists()


def test_a_restarted_run_does_not_continue_from_changed_weights(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "job"
    environment = RunEnvironment(run_folder=folder, run_id="job")
    result = run_container(LineContainer(max_epochs=1), tmp_path, environment=environment)
    flip_a_weight(result.paths.checkpoints / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: last\.ckpt"):
        run_container(LineContainer(max_epochs=2), tmp_path, environment=environment)


def test_a_checkpoint_that_a_server_does_not_have_leaves_no_run(tmp_path: Path) -> None:
    with serving(lambda handler, _: send(handler, b"no", status=404)) as server:
        with pytest.raises(CheckpointError, match=r"m\.ckpt failed: 404") as caught:
            run_container(inference(f"{server.url}/m.ckpt"), tmp_path)
        assert len(server.requests) == 1
    assert caught.value.exit_code == 2
    assert not (tmp_path / "outputs").exists()


def test_a_checkpoint_of_a_server_is_fetched_into_the_run(checkpoint: Path, tmp_path: Path) -> None:
    with serving(lambda handler, _: send(handler, checkpoint.read_bytes())) as server:
        result = run_container(inference(f"{server.url}/m.ckpt"), tmp_path)
    assert result.checkpoint == result.paths.outputs / "pretrained_models" / "m.ckpt"


class WideModel(LineModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 3)


@pytest.mark.parametrize("flag", ["run_inference_only", "resume_training"])
def test_a_checkpoint_of_another_model_is_explained(flag: str, checkpoint: Path, tmp_path: Path) -> None:
    container = ModelContainer(
        WideModel(), max_epochs=5, src_checkpoint=CheckpointParser(str(checkpoint)), **{flag: True}
    )
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*size mismatch for layer.weight"):
        run_container(container, tmp_path)


class Payload:
    """Stands for any class in a checkpoint that somebody else wrote."""


def test_a_foreign_checkpoint_with_objects_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "extra": Payload()}, checkpoint)
    with pytest.raises(CheckpointError, match=r"holds objects of the class .*Payload"):
        run_container(inference(checkpoint), tmp_path)


class TrainingOnlyModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


def test_inference_with_a_model_that_can_only_train_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    container = ModelContainer(
        TrainingOnlyModel(), run_inference_only=True, src_checkpoint=CheckpointParser(str(checkpoint))
    )
    with pytest.raises(ContainerError, match="TrainingOnlyModel has neither validation_step nor test_step"):
        run_container(container, tmp_path)
    assert status_of_only_run(tmp_path)[0] is RunStatus.FAILED


class PayloadModel(LineModel):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["extra"] = Payload()


def test_the_checkpoint_of_an_own_run_may_hold_objects(tmp_path: Path) -> None:
    result = run_container(ModelContainer(PayloadModel(), max_epochs=1), tmp_path)
    again = run_container(inference(result.run_id), tmp_path)
    assert again.metrics["test/loss"] == result.metrics["test/loss"]


class WrongCheckpoint(LineContainer):
    def get_checkpoint_to_test(self) -> Path:
        return Path("checkpoints/best.ckpt")


def test_the_checkpoint_to_test_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoints/best.ckpt, which does not exist. These do: last.ckpt"):
        run_container(WrongCheckpoint(max_epochs=1), tmp_path)


class WritingModel(LineModel):
    def on_test_end(self) -> None:
        Path("result.txt").write_text("1\n")


@pytest.mark.parametrize(("content", "is_equal"), [("1\n", True), ("2\n", False)])
def test_expected_results_are_compared_at_the_end(content: str, is_equal: bool, tmp_path: Path) -> None:
    (tmp_path / "expected" / "OUTPUT").mkdir(parents=True)
    (tmp_path / "expected" / "OUTPUT" / "result.txt").write_text(content)
    container = ModelContainer(WritingModel(), max_epochs=1, regression_test_folder=Path("expected"))
    result = run_container(container, tmp_path)
    assert result.exit_code == (0 if is_equal else 1)
    assert is_equal or (isinstance(result.error, RegressionTestError) and "mismatch: result.txt" in str(result.error))
    assert status_of_only_run(tmp_path)[0] is (RunStatus.FINISHED if is_equal else RunStatus.FAILED)


def test_metrics_to_compare_that_do_not_exist_are_an_error_of_a_run_that_has_results(tmp_path: Path) -> None:
    result = run_container(LineContainer(max_epochs=1, regression_metrics="test/loss,nope"), tmp_path)
    assert (result.status, result.exit_code) == (RunStatus.FAILED, 1)
    assert result.metrics["test/loss"] > 0
    assert result.error is not None
    assert "does not have: nope. It has test/loss, train/loss, val/loss." in str(result.error)


@pytest.mark.parametrize("name", ["expected", "expected/OUTPUT"])
def test_an_empty_folder_of_expected_results_leaves_no_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(RegressionTestError, match="has nothing to compare") as caught:
        run_container(LineContainer(regression_test_folder=Path("expected")), tmp_path)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "outputs").exists()


def test_flags_that_the_model_does_not_heed_leave_no_run(tmp_path: Path) -> None:
    run = invoke(["--model=HelloWorld", "--tracking_uri=none", "--l_rate=3"], folder=tmp_path)
    assert "--l_rate has no effect on" in run.stderr
    assert run.exit_code == 2
    assert not (tmp_path / "outputs").exists()


class LateContainer(LineContainer):
    """Only running its code tells which model it makes."""

    def create_model(self) -> LightningModule:
        return super().create_model()


def test_what_only_the_model_can_tell_is_a_failure_of_a_run_that_exists(tmp_path: Path) -> None:
    run = invoke([f"--model={__name__}.LateContainer", "--tracking_uri=none", "--l_rate=3"], folder=tmp_path)
    assert "--l_rate has no effect on" in run.stderr
    assert run.exit_code == 1
    assert status_of_only_run(tmp_path)[0] is RunStatus.FAILED


def test_a_missing_folder_of_expected_results_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match="expected results does not exist"):
        run_container(LineContainer(regression_test_folder=Path("gone")), tmp_path)
    assert not (tmp_path / "outputs").exists()


# --- where results go -------------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"Cannot write the results of the run to {tmp_path}/file"):
        run_container(LineContainer(output_to=Path("file/results")), tmp_path)


def test_a_full_disk_is_noticed_before_the_model_is_built(tmp_path: Path) -> None:
    container = failing("setup", AssertionError("the model was built"))()
    with largest_file(0), pytest.raises(OutputError, match="Cannot write the results of the run to"):
        run_container(container, tmp_path)
    assert list((tmp_path / "outputs").iterdir()) == []


def test_output_to_wins_over_the_outputs_folder(tmp_path: Path) -> None:
    result = run_container(LineContainer(max_epochs=1, output_to=Path("results")), tmp_path)
    assert result.paths.outputs.parent == tmp_path / "results"
    again = LineContainer(
        output_to=Path("results"), run_inference_only=True, src_checkpoint=CheckpointParser(result.run_id)
    )
    assert run_container(again, tmp_path).metrics["test/loss"] == result.metrics["test/loss"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--log_from_vm"], "No AzureML workspace is named"),
        (["--azure_datasets=letters:1"], "The datasets letters:1 are in AzureML. No AzureML workspace is named"),
        (["--status=x", "--cluster=azureml"], "No AzureML workspace is named"),
        (["--attach=x", "--cluster=azureml"], "No AzureML workspace is named"),
        (["--cancel=x", "--cluster=azureml"], "No AzureML workspace is named"),
        (["--status=x", "--cluster=azureml", "--workspace_config_path=no.json"], "no.json (--workspace_config_path)"),
    ],
)
def test_without_a_workspace_nothing_starts(flags: list[str], message: str, tmp_path: Path) -> None:
    model = [] if "--cluster=azureml" in flags else ["--model=HelloWorld", "--max_epochs=1"]
    refused = invoke([*model, *flags], folder=tmp_path)
    assert refused.exit_code == EXIT_USAGE
    assert message in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_rank_that_does_not_know_the_folder_says_what_to_set(tmp_path: Path) -> None:
    environment = RunEnvironment(rank=1, local_rank=1, world_size=2)
    with pytest.raises(PlanError, match="Process 1 of 2 does not know the folder of its run"):
        run_container(LineContainer(), tmp_path, environment=environment)
    assert not (tmp_path / "outputs").exists()


def test_in_azureml_results_go_where_the_service_collects_them(tmp_path: Path) -> None:
    environment = RunEnvironment(is_in_azureml=True, run_id="HD_1")
    result = run_container(LineContainer(max_epochs=1), tmp_path, environment=environment)
    assert (result.run_id, result.paths.outputs, result.paths.logs) == ("HD_1", tmp_path / "outputs", tmp_path / "logs")


def test_a_rank_that_ends_the_process_is_a_failure_too(tmp_path: Path) -> None:
    environment = RunEnvironment(rank=1, local_rank=1, run_folder=tmp_path / "run", run_id="run")
    with pytest.raises(ContainerError, match="ended the process with exit code 0 before the run was complete"):
        run_container(ModelContainer(ExitingModel()), tmp_path, environment=environment)
    assert not (tmp_path / "run" / "run").exists()
