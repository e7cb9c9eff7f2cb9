"""The life of one run: what it leaves behind, and how it starts from what other runs left behind."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import param
import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.environment import RunEnvironment
from health_ml.errors import EXIT_USAGE, ArgumentsError, CheckpointError
from health_ml.experiment_config import DebugDDPOptions, RunnerMode
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.training.result import RunResult
from tests.helpers.containers import LineContainer, LineModel
from tests.helpers.runs import run_container


def epochs_of(result: RunResult) -> list[int]:
    """Returns the epochs in which the run validated during training."""
    rows = read_record(result.paths.record).metrics
    return [row.epoch for row in rows if "val/loss" in row.metrics and row.epoch is not None]


def document(result: RunResult, name: str) -> dict[str, Any]:
    content = json.loads((result.paths.record / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def src(result: RunResult) -> CheckpointParser:
    return CheckpointParser(str(result.checkpoint))


# --- what a run leaves behind -----------------------------------------------------------------------------------------


def test_a_run_leaves_a_complete_folder_and_a_clean_process(tmp_path: Path) -> None:
    folder_before, environment_before = Path.cwd(), dict(os.environ)
    result = run_container(LineContainer(tag="first"), tmp_path, argv=("--model=LineContainer", "--tag=first"))
    assert (result.status, result.exit_code) == (RunStatus.FINISHED, 0)
    assert (Path.cwd(), dict(os.environ)) == (folder_before, environment_before)

    assert result.paths.outputs.parent == tmp_path / "outputs"
    assert result.run_id == result.paths.outputs.name
    assert result.run_id.endswith("Z_LineContainer")
    assert result.checkpoint == result.paths.checkpoints / "last.ckpt"
    assert [path.name for path in result.paths.checkpoints.iterdir()] == ["last.ckpt"]
    assert "max_epochs                              : 2" in result.paths.summary_file.read_text()
    assert set(result.metrics) == {"train/loss", "val/loss", "test/loss"}


def test_the_record_says_what_ran(tmp_path: Path) -> None:
    container = LineContainer(tag="first", crossval_count=5, crossval_index=2)
    result = run_container(container, tmp_path, argv=("--model=LineContainer", "--tag=first"))
    record = read_record(result.paths.record)
    assert record.status.status is RunStatus.FINISHED
    run = document(result, "run")
    assert run["run_id"] == result.run_id
    assert run["model"] == run["experiment"] == "LineContainer"
    assert run["command_line"] == ["himl-runner", "--model=LineContainer", "--tag=first"]
    assert run["seeds"] == {"random_seed": 42, "effective_random_seed": 45}
    assert run["created"] <= run["started"] <= run["ended"]
    assert run["cpu"]["count"] == os.cpu_count()
    assert document(result, "config")["tag"] == {"value": "first", "source": "default"}
    assert document(result, "packages")["torch"] == importlib.metadata.version("torch")
    assert record.hyperparameters["max_epochs"] == 2
    assert record.tags["effective_random_seed"] == "45"
    assert epochs_of(result) == [0, 1]


class TokenContainer(LineContainer):
    n_tokens = param.Integer(5)
    auth_token = param.String("hunter2hunter2hunter2")


def test_only_values_are_secret_and_not_where_they_come_from(tmp_path: Path) -> None:
    config = document(run_container(TokenContainer(max_epochs=1), tmp_path), "config")
    assert config["n_tokens"] == {"value": 5, "source": "default"}
    assert config["auth_token"] == {"value": "***", "source": "default"}
    assert config["identity_based_auth"]["source"] == "default"


def test_secrets_on_the_command_line_are_masked(tmp_path: Path) -> None:
    secret = "sig=hunter2hunter2hunter2"
    url = f"https://store.blob.core.windows.net/models/m.ckpt?{secret}"
    result = run_container(LineContainer(max_epochs=1), tmp_path, argv=(f"--src_checkpoint={url}",))
    written = [path for path in result.paths.record.iterdir() if path.is_file()]
    assert "command_line" in document(result, "run")
    assert not [path.name for path in written if "hunter2" in path.read_text(encoding="utf-8")]


class FailingModel(LineModel):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        raise ArithmeticError(f"no loss in {Path.cwd().name}")


class FailingContainer(LineContainer):
    def create_model(self) -> LightningModule:
        return FailingModel()


def only_run_in(folder: Path) -> Path:
    (run,) = (folder / "outputs").iterdir()
    return run


def test_a_failure_is_recorded_and_everything_is_restored(tmp_path: Path) -> None:
    folder_before, environment_before = Path.cwd(), dict(os.environ)
    with pytest.raises(ArithmeticError, match=r"no loss in .*FailingContainer"):
        run_container(FailingContainer(), tmp_path)
    assert (Path.cwd(), dict(os.environ)) == (folder_before, environment_before)
    status = read_record(only_run_in(tmp_path) / "run").status
    assert status.status is RunStatus.FAILED
    assert status.message.startswith("ArithmeticError: no loss in")
    assert "in training_step" in status.message


class EnvironmentContainer(LineContainer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[str | None] = []

    def get_additional_environment_variables(self) -> dict[str, str]:
        return {"LINE_WIDTH": "3"}

    def setup(self) -> None:
        self.seen.append(os.environ.get("LINE_WIDTH"))


def test_environment_variables_of_the_container_hold_during_the_run_only(tmp_path: Path) -> None:
    container = EnvironmentContainer(max_epochs=1)
    run_container(container, tmp_path)
    assert container.seen == ["3"]
    assert "LINE_WIDTH" not in os.environ


class DebugContainer(LineContainer):
    def setup(self) -> None:
        self.level = torch.distributed.get_debug_level()


def test_debug_ddp_reaches_torch(tmp_path: Path) -> None:
    before = torch.distributed.get_debug_level()
    container = DebugContainer(max_epochs=1)
    run_container(container, tmp_path, debug_ddp=DebugDDPOptions.DETAIL)
    assert container.level == torch.distributed.DebugLevel.DETAIL
    assert torch.distributed.get_debug_level() == before


def test_fast_dev_run_tests_the_model_in_memory(tmp_path: Path) -> None:
    result = run_container(LineContainer(pl_fast_dev_run=1), tmp_path)
    assert result.status is RunStatus.FINISHED
    assert "test/loss" in result.metrics
    assert result.checkpoint is None
    assert list(result.paths.checkpoints.iterdir()) == []


def test_run_extra_val_epoch_validates_the_tested_checkpoint(tmp_path: Path) -> None:
    result = run_container(LineContainer(run_extra_val_epoch=True), tmp_path)
    rows = [row.metrics["val/loss"] for row in read_record(result.paths.record).metrics if "val/loss" in row.metrics]
    assert len(rows) == 3
    assert rows[2] == pytest.approx(rows[1])
    assert result.metrics["val/loss"] == pytest.approx(rows[1])


def places_of(result: RunResult, metric: str) -> list[tuple[int | None, int | None]]:
    """Returns the epoch and step of each row of a metric."""
    return [(row.epoch, row.step) for row in read_record(result.paths.record).metrics if metric in row.metrics]


def test_evaluation_is_recorded_where_the_checkpoint_was_written(finished: RunResult, tmp_path: Path) -> None:
    assert places_of(finished, "val/loss") == [(0, 3), (1, 7), (1, 7)]
    assert places_of(finished, "test/loss") == [(1, 7)]
    inference = LineContainer(run_inference_only=True, src_checkpoint=src(finished))
    result = run_container(inference, tmp_path)
    assert places_of(result, "val/loss") == places_of(result, "test/loss") == [(1, 7)]


# --- from one run to the next -----------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> RunResult:
    return run_container(LineContainer(run_extra_val_epoch=True), tmp_path)


def test_inference_only_reproduces_the_metrics(finished: RunResult, tmp_path: Path) -> None:
    container = LineContainer(run_inference_only=True, src_checkpoint=CheckpointParser(finished.run_id))
    result = run_container(container, tmp_path)
    assert result.metrics == {name: finished.metrics[name] for name in ("val/loss", "test/loss")}
    assert result.checkpoint == finished.checkpoint
    assert list(result.paths.checkpoints.iterdir()) == []


class EvaluatedContainer(LineContainer):
    def get_eval_data_module(self) -> LightningDataModule:
        return self.get_data_module()


@pytest.mark.parametrize("container_class", [LineContainer, EvaluatedContainer])
def test_eval_full_tests_only(
    container_class: type[LineContainer], finished: RunResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run_container(container_class(src_checkpoint=src(finished)), tmp_path, mode=RunnerMode.EVAL_FULL)
    assert result.metrics == {"test/loss": finished.metrics["test/loss"]}
    is_told = "LineContainer does not override get_eval_data_module, so --mode=eval_full tests on" in caplog.text
    assert is_told is (container_class is LineContainer)


def test_resume_continues_at_the_next_epoch(finished: RunResult, tmp_path: Path) -> None:
    container = LineContainer(max_epochs=4, resume_training=True, src_checkpoint=src(finished))
    result = run_container(container, tmp_path)
    assert epochs_of(result) == [2, 3]


def test_resume_with_nothing_left_to_train_is_an_error(finished: RunResult, tmp_path: Path) -> None:
    container = LineContainer(max_epochs=2, resume_training=True, src_checkpoint=src(finished))
    with pytest.raises(CheckpointError, match=r"has 2 finished epochs, so with --max_epochs=2 nothing is left"):
        run_container(container, tmp_path / "again")
    assert not (tmp_path / "again").exists()


class LimitedContainer(LineContainer):
    """Says itself how long to train."""

    limits: ClassVar[dict[str, Any]] = {}

    def get_trainer_arguments(self) -> dict[str, Any]:
        return self.limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_epochs": 2}, r"has 2 finished epochs, so with --max_epochs=2 nothing is left"),
        ({"max_steps": 8}, r"has 8 steps, so with max_steps=8 nothing is left"),
    ],
)
def test_resume_with_nothing_left_by_the_containers_own_limits(
    limits: dict[str, Any], message: str, finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedContainer, "limits", limits)
    container = LimitedContainer(max_epochs=100, resume_training=True, src_checkpoint=src(finished))
    with pytest.raises(CheckpointError, match=message):
        run_container(container, tmp_path)


def test_resume_heeds_the_containers_own_number_of_epochs(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedContainer, "limits", {"max_epochs": 3})
    container = LimitedContainer(max_epochs=2, resume_training=True, src_checkpoint=src(finished))
    assert epochs_of(run_container(container, tmp_path)) == [2]


class WeightsContainer(LineContainer):
    def setup(self) -> None:
        assert self.trained_weights_path is not None
        self.content = torch.load(self.trained_weights_path, weights_only=True)


def test_a_checkpoint_without_further_flags_is_handed_to_the_container(finished: RunResult, tmp_path: Path) -> None:
    container = WeightsContainer(max_epochs=1, src_checkpoint=src(finished))
    result = run_container(container, tmp_path)
    assert set(container.content["state_dict"]) == {"layer.weight", "layer.bias"}
    assert epochs_of(result) == [0]


def test_a_checkpoint_that_nobody_reads_is_refused(finished: RunResult, tmp_path: Path) -> None:
    container = LineContainer(src_checkpoint=src(finished))
    with pytest.raises(ArgumentsError, match=r"--resume_training .* or --run_inference_only") as caught:
        run_container(container, tmp_path / "refused")
    assert caught.value.exit_code == EXIT_USAGE
    (run,) = (tmp_path / "refused" / "outputs").iterdir()
    record = read_record(run)
    assert (record.status.status, record.metrics) == (RunStatus.FAILED, [])
    assert "does not read trained_weights_path" in record.status.message


class LateContainer(LineContainer):
    """Reads the checkpoint right before the training, or only if it is told to."""

    is_reading = True

    def before_training_on_all_ranks(self) -> None:
        if self.is_reading:
            self.content = torch.load(self.trained_weights_path, weights_only=True)


def test_a_checkpoint_may_be_read_right_before_the_training(finished: RunResult, tmp_path: Path) -> None:
    container = LateContainer(src_checkpoint=src(finished))
    assert run_container(container, tmp_path).status is RunStatus.FINISHED
    assert "state_dict" in container.content


def test_a_container_that_decides_not_to_read_the_checkpoint_is_refused(finished: RunResult, tmp_path: Path) -> None:
    container = LateContainer(src_checkpoint=src(finished))
    container.is_reading = False
    with pytest.raises(ArgumentsError, match="LateContainer does not read trained_weights_path") as caught:
        run_container(container, tmp_path)
    assert caught.value.exit_code == EXIT_USAGE


class ParserContainer(LineContainer):
    """Looks for the file itself."""

    def setup(self) -> None:
        self.source = str(self.src_checkpoint)


def test_a_container_may_look_for_the_file_itself(finished: RunResult, tmp_path: Path) -> None:
    container = ParserContainer(max_epochs=1, src_checkpoint=src(finished))
    assert run_container(container, tmp_path).status is RunStatus.FINISHED


def test_what_is_no_checkpoint_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("print('hello')")
    container = WeightsContainer(src_checkpoint=CheckpointParser(str(tmp_path / "model.py")))
    with pytest.raises(CheckpointError, match=r"model\.py is not a checkpoint but a file that starts with") as caught:
        run_container(container, tmp_path)
    assert caught.value.exit_code == EXIT_USAGE
    assert not (tmp_path / "outputs").exists()


def test_weights_alone_are_enough_for_a_container(tmp_path: Path) -> None:
    torch.save({"state_dict": {"layer.weight": torch.ones(1), "layer.bias": torch.ones(1)}}, tmp_path / "weights.pt")
    container = WeightsContainer(max_epochs=1, src_checkpoint=CheckpointParser(str(tmp_path / "weights.pt")))
    assert run_container(container, tmp_path).status is RunStatus.FINISHED


def test_a_relative_checkpoint_is_relative_to_where_the_user_is(finished: RunResult, tmp_path: Path) -> None:
    assert finished.checkpoint is not None
    parser = CheckpointParser(os.path.relpath(finished.checkpoint, tmp_path))
    result = run_container(LineContainer(run_inference_only=True, src_checkpoint=parser), tmp_path)
    assert result.metrics["test/loss"] == finished.metrics["test/loss"]


def test_a_restarted_run_continues_from_its_own_checkpoint(finished: RunResult, tmp_path: Path) -> None:
    environment = RunEnvironment(run_folder=finished.paths.outputs, run_id=finished.run_id, attempt=1)
    result = run_container(LineContainer(max_epochs=3), tmp_path, environment=environment)
    assert result.paths.outputs == finished.paths.outputs
    rows = read_record(result.paths.record).metrics
    assert [row.epoch for row in rows if "train/loss" in row.metrics] == [0, 1, 2]
    # The row of epoch 1 is logged again: it came after its checkpoint.
    assert {row.epoch for row in rows if row.attempt == 1 and "train/loss" in row.metrics} == {1, 2}


def test_a_restarted_run_that_was_complete_tests_again(finished: RunResult, tmp_path: Path) -> None:
    environment = RunEnvironment(run_folder=finished.paths.outputs, run_id=finished.run_id, attempt=1)
    result = run_container(LineContainer(), tmp_path, environment=environment)
    assert result.status is RunStatus.FINISHED
    assert result.metrics["test/loss"] == finished.metrics["test/loss"]


def test_a_new_run_never_continues_from_another_one(finished: RunResult, tmp_path: Path) -> None:
    assert epochs_of(run_container(LineContainer(), tmp_path)) == [0, 1]
