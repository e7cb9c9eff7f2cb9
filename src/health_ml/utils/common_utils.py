"""The import path under which hi-ml offers helpers of many kinds."""

from health_ml.settings import AUTOSAVE_CHECKPOINT_STEM as AUTOSAVE_CHECKPOINT_FILE_NAME
from health_ml.settings import CHECKPOINT_FOLDER, CHECKPOINT_SUFFIX, EXPERIMENT_SUMMARY_FILE
from health_ml.settings import LOGS_FOLDER as DEFAULT_LOGS_DIR_NAME
from health_ml.settings import OUTPUTS_FOLDER as DEFAULT_AML_UPLOAD_DIR
from health_ml.training.dataset_splits import ModelExecutionMode
from health_ml.training.helpers import (
    change_working_directory,
    df_to_json,
    elapsed_timer,
    is_global_rank_zero,
    is_gpu_available,
    is_local_rank_zero,
    logging_section,
)
from health_ml.training.logging_helpers import set_model_to_eval_mode

DEFAULT_AML_CHECKPOINT_DIR = f"{DEFAULT_AML_UPLOAD_DIR}/{CHECKPOINT_FOLDER}"
"""Where the checkpoints of a job lie, seen from its working directory."""

__all__ = [
    "AUTOSAVE_CHECKPOINT_FILE_NAME",
    "CHECKPOINT_FOLDER",
    "CHECKPOINT_SUFFIX",
    "DEFAULT_AML_CHECKPOINT_DIR",
    "DEFAULT_AML_UPLOAD_DIR",
    "DEFAULT_LOGS_DIR_NAME",
    "EXPERIMENT_SUMMARY_FILE",
    "ModelExecutionMode",
    "change_working_directory",
    "df_to_json",
    "elapsed_timer",
    "is_global_rank_zero",
    "is_gpu_available",
    "is_local_rank_zero",
    "logging_section",
    "set_model_to_eval_mode",
]
