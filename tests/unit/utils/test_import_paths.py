"""The names that users import, under the paths that hi-ml gave them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import pytorch_lightning.accelerators  # noqa: F401  it sets an environment variable when it is imported

IMPORT_PATHS = [
    "health_ml.deep_learning_config.ALL_GPUS",
    "health_ml.deep_learning_config.DatasetParams",
    "health_ml.deep_learning_config.LRSchedulerType",
    "health_ml.deep_learning_config.LRWarmUpType",
    "health_ml.deep_learning_config.OptimizerParams",
    "health_ml.deep_learning_config.OptimizerType",
    "health_ml.deep_learning_config.OutputParams",
    "health_ml.deep_learning_config.TrainerParams",
    "health_ml.deep_learning_config.WorkflowParams",
    "health_ml.deep_learning_config.create_from_matching_params",
    "health_ml.eval_runner.EvalRunner",
    "health_ml.experiment_config.DebugDDPOptions",
    "health_ml.experiment_config.ExperimentConfig",
    "health_ml.experiment_config.RunnerMode",
    "health_ml.lightning_container.LightningContainer",
    "health_ml.lightning_container.LightningModuleWithOptimizer",
    "health_ml.model_trainer.create_lightning_trainer",
    "health_ml.runner_base.RunnerBase",
    "health_ml.runner.main",
    "health_ml.training_runner.TrainingRunner",
    "health_ml.utils.AzureMLLogger",
    "health_ml.utils.AzureMLProgressBar",
    "health_ml.utils.BatchTimeCallback",
    "health_ml.utils.checkpoint_utils.CheckpointParser",
    "health_ml.utils.checkpoint_utils.LAST_CHECKPOINT_FILE_NAME",
    "health_ml.utils.checkpoint_utils.MODEL_WEIGHTS_DIR_NAME",
    "health_ml.utils.checkpoint_utils.cleanup_checkpoints",
    "health_ml.utils.checkpoint_utils.find_recovery_checkpoint",
    "health_ml.utils.checkpoint_utils.get_best_checkpoint_path",
    "health_ml.utils.checkpoint_utils.get_recovery_checkpoint_path",
    "health_ml.utils.common_utils.CHECKPOINT_FOLDER",
    "health_ml.utils.common_utils.DEFAULT_AML_CHECKPOINT_DIR",
    "health_ml.utils.common_utils.DEFAULT_AML_UPLOAD_DIR",
    "health_ml.utils.common_utils.EXPERIMENT_SUMMARY_FILE",
    "health_ml.utils.common_utils.ModelExecutionMode",
    "health_ml.utils.common_utils.change_working_directory",
    "health_ml.utils.common_utils.df_to_json",
    "health_ml.utils.common_utils.elapsed_timer",
    "health_ml.utils.common_utils.is_global_rank_zero",
    "health_ml.utils.common_utils.is_gpu_available",
    "health_ml.utils.common_utils.is_local_rank_zero",
    "health_ml.utils.common_utils.logging_section",
    "health_ml.utils.common_utils.set_model_to_eval_mode",
    "health_ml.utils.diagnostics.BatchTimeCallback",
    "health_ml.utils.diagnostics.TrainingDiagnosticsCallback",
    "health_ml.utils.diagnostics.TrainingDiagnoticsCallback",
    "health_ml.utils.health_ml_package_setup",
    "health_ml.utils.lightning_loggers.HimlMLFlowLogger",
    "health_ml.utils.lightning_loggers.StoringLogger",
    "health_ml.utils.lightning_loggers.get_mlflow_run_id_from_trainer",
    "health_ml.utils.log_learning_rate",
    "health_ml.utils.log_on_epoch",
    "health_ml.utils.logging.AzureMLLogger",
    "health_ml.utils.logging.AzureMLProgressBar",
    "health_ml.utils.logging.log_learning_rate",
    "health_ml.utils.logging.log_on_epoch",
    "health_ml.utils.lr_scheduler.SchedulerWithWarmUp",
    "health_ml.utils.model_util.create_optimizer",
    "health_ml.utils.package_setup.health_ml_package_setup",
    "health_ml.utils.regression_test_utils.compare_files",
    "health_ml.utils.regression_test_utils.compare_folder_contents",
    "health_ml.utils.regression_test_utils.compare_folders_and_run_outputs",
    "health_ml.utils.regression_test_utils.compare_metrics_dictionaries",
    "health_ml.utils.regression_test_utils.compare_metrics_files",
    "health_ml.utils.set_model_to_eval_mode",
    "health_ml.utils.split_dataset.DatasetSplits",
]


@pytest.mark.parametrize("path", IMPORT_PATHS)
def test_name_can_be_imported(path: str) -> None:
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    value = getattr(module, name)
    assert value is not None
    if ".utils" in path or module_name.endswith(("_runner", "runner_base", "model_trainer")):
        assert name in module.__all__


def test_checkpoint_parser_is_one_class() -> None:
    from health_ml.checkpoints.parser import CheckpointParser
    from health_ml.utils import checkpoint_utils

    assert checkpoint_utils.CheckpointParser is CheckpointParser


def test_what_the_paths_load() -> None:
    """The paths need Lightning, which models need anyway, but neither MLflow nor pandas nor Azure."""
    modules = sorted({path.rpartition(".")[0] for path in IMPORT_PATHS})
    code = f"""
import sys, importlib
for name in {modules!r}:
    importlib.import_module(name)
print(sorted({{"mlflow", "pandas", "azure", "azureml", "sklearn"}} & set(sys.modules)))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
