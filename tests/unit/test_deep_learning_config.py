from pathlib import Path
from typing import Any

import param
import pytest

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.deep_learning_config import (
    DatasetParams,
    LRSchedulerType,
    OptimizerParams,
    OutputParams,
    RunPaths,
    TrainerParams,
    WorkflowParams,
    create_from_matching_params,
    parameters_of,
)
from health_ml.errors import ArgumentsError

FLAGS_OF_HI_ML = {
    WorkflowParams: "random_seed src_checkpoint crossval_count crossval_index hyperdrive regression_test_folder "
    "regression_test_csv_tolerance regression_metrics run_inference_only resume_training tag experiment log_from_vm "
    "different_seeds",
    DatasetParams: "datastore azure_datasets local_datasets dataset_mountpoints output_datasets",
    OutputParams: "output_to",
    TrainerParams: "max_epochs autosave_every_n_val_epochs detect_anomaly monitor_training use_mixed_precision "
    "max_num_gpus max_num_gpus_inference pl_progress_bar_refresh_rate pl_num_sanity_val_steps pl_deterministic "
    "pl_find_unused_parameters pl_static_graph pl_limit_train_batches pl_limit_val_batches pl_limit_test_batches "
    "pl_fast_dev_run pl_profiler pl_sync_batchnorm pl_replace_sampler_ddp monitor_gpu monitor_loading "
    "run_extra_val_epoch pl_accumulate_grad_batches pl_log_every_n_steps",
    OptimizerParams: "l_rate l_rate_scheduler l_rate_exponential_gamma l_rate_step_gamma l_rate_multi_step_gamma "
    "l_rate_step_step_size l_rate_multi_step_milestones l_rate_polynomial_gamma l_rate_warmup l_rate_warmup_epochs "
    "optimizer_type opt_eps rms_alpha momentum weight_decay adam_betas",
}


@pytest.mark.parametrize("owner", FLAGS_OF_HI_ML, ids=lambda owner: owner.__name__)
def test_every_flag_of_hi_ml_is_there_and_documented(owner: type[param.Parameterized]) -> None:
    parameters = parameters_of(owner)
    assert set(FLAGS_OF_HI_ML[owner].split()) <= set(parameters)
    assert all(parameter.doc for parameter in parameters.values())


@pytest.mark.parametrize(
    ("values", "seed"),
    [
        ({"random_seed": 7}, 7),
        ({"random_seed": 7, "crossval_count": 5, "crossval_index": 0}, 8),
        ({"random_seed": 7, "crossval_count": 5, "crossval_index": 4}, 12),
        ({"random_seed": 7, "crossval_count": 5}, 7),
    ],
)
def test_each_fold_has_a_seed_of_its_own(values: dict[str, int], seed: int) -> None:
    assert WorkflowParams(**values).get_effective_random_seed() == seed


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"run_inference_only": True}, "Cannot run inference without a src_checkpoint"),
        ({"resume_training": True}, "Cannot resume training without a src_checkpoint"),
        ({"resume_training": True, "src_checkpoint": CheckpointParser("")}, "Cannot resume training"),
        ({"crossval_count": 3, "crossval_index": 3}, "crossval_index out of bounds: 3 is not in 0 to 2"),
        ({"crossval_index": 0}, "--crossval_index=0 has no effect without --crossval_count"),
        (
            {"run_inference_only": True, "resume_training": True, "src_checkpoint": CheckpointParser("run")},
            "contradict each other",
        ),
    ],
)
def test_workflow_problems(values: dict[str, Any], problem: str) -> None:
    problems = WorkflowParams(**values).workflow_problems()
    assert any(problem in text for text in problems), problems


def test_a_plain_workflow_has_no_problems() -> None:
    assert WorkflowParams().workflow_problems() == []


def test_dataset_lists_have_to_match_the_azure_datasets() -> None:
    params = DatasetParams(azure_datasets=["a", "b"], local_datasets=[Path("x")], dataset_mountpoints=[Path("m")] * 3)
    assert [text.split(";")[0] for text in params.dataset_problems()] == [
        "Invalid dataset setup: --local_datasets has 1 entries and --azure_datasets has 2",
        "Invalid dataset setup: --dataset_mountpoints has 3 entries and --azure_datasets has 2",
    ]
    assert DatasetParams(local_datasets=[Path("x")]).dataset_problems() == []


@pytest.mark.parametrize(
    ("milestones", "problem"),
    [
        (None, "Must specify l_rate_multi_step_milestones"),
        ([], "Must specify l_rate_multi_step_milestones"),
        ([5, 5], "must be a strictly increasing list"),
        ([0, 5], "cannot be negative or 0"),
    ],
)
def test_multi_step_milestones(milestones: list[int] | None, problem: str) -> None:
    params = OptimizerParams(l_rate_scheduler=LRSchedulerType.MultiStep, l_rate_multi_step_milestones=milestones)
    assert any(problem in text for text in params.optimizer_problems())


def test_min_l_rate_cannot_exceed_l_rate() -> None:
    params = OptimizerParams(l_rate=1e-3)
    params.min_l_rate = 1e-3
    assert params.optimizer_problems() == []
    with pytest.raises(ValueError, match="l_rate must be >= min_l_rate"):
        params.min_l_rate = 1e-2
    params.l_rate = 1e-4
    assert "l_rate must be >= min_l_rate" in params.optimizer_problems()[0]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"pl_profiler": "fast"}, "Unsupported profiler 'fast': choose simple, advanced or pytorch"),
        ({"pl_limit_val_batches": 2.5}, "--pl_limit_val_batches=2.5 is neither a fraction"),
    ],
)
def test_trainer_problems(values: dict[str, Any], problem: str) -> None:
    assert problem in TrainerParams(**values).trainer_problems()[0]


def test_folders_of_a_run_are_siblings_in_a_job_and_nested_elsewhere(tmp_path: Path) -> None:
    local = RunPaths.below(tmp_path, "run")
    job = RunPaths.in_job(tmp_path, "run")
    assert (local.outputs, local.logs) == (tmp_path, tmp_path / "logs")
    assert (job.outputs, job.logs) == (tmp_path / "outputs", tmp_path / "logs")
    assert local.checkpoints == tmp_path / "checkpoints"
    assert local.lightning_logs == tmp_path / "logs" / "Lightning"
    assert local.record == tmp_path / "run"
    assert local.summary_file == tmp_path / "experiment_summary.txt"
    local.create()
    assert all(folder.is_dir() for folder in (local.outputs, local.logs, local.checkpoints))


def test_output_folders_are_unknown_before_the_run_is_set_up(tmp_path: Path) -> None:
    params = OutputParams()
    with pytest.raises(ArgumentsError, match="folders of this run are not known yet"):
        _ = params.outputs_folder
    params.set_run_paths(RunPaths.below(tmp_path, "run"))
    assert params.outputs_folder == tmp_path
    assert params.logs_folder == tmp_path / "logs"
    assert params.checkpoint_folder == tmp_path / "checkpoints"


class Source(param.Parameterized):
    l_rate = param.Number(default=0.5)
    other = param.String(default="x")


def test_matching_parameters_are_copied_and_the_others_kept() -> None:
    created = create_from_matching_params(Source(l_rate=0.25), OptimizerParams)
    assert created.l_rate == 0.25
    assert created.momentum == OptimizerParams().momentum


def test_matching_parameters_need_a_parameterized_class() -> None:
    with pytest.raises(ValueError, match=r"builds param\.Parameterized classes"):
        create_from_matching_params(Source(), str)  # type: ignore[type-var]


def test_only_settable_public_parameters_become_flags() -> None:
    class Mixed(param.Parameterized):
        shown = param.Integer(default=1)
        fixed = param.Integer(default=1, constant=True)
        frozen = param.Integer(default=1, readonly=True)
        hook = param.Callable()
        _private = param.Integer(default=1)

    assert list(parameters_of(Mixed)) == ["shown"]
