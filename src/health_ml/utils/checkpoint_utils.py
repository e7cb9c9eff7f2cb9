"""The import path under which hi-ml offers what deals with checkpoints."""

from health_ml.checkpoints.files import cleanup_checkpoints, get_best_checkpoint_path
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.checkpoints.recovery import find_recovery_checkpoint, get_recovery_checkpoint_path
from health_ml.settings import LAST_CHECKPOINT as LAST_CHECKPOINT_FILE_NAME
from health_ml.settings import PRETRAINED_MODELS_FOLDER as MODEL_WEIGHTS_DIR_NAME

__all__ = [
    "LAST_CHECKPOINT_FILE_NAME",
    "MODEL_WEIGHTS_DIR_NAME",
    "CheckpointParser",
    "cleanup_checkpoints",
    "find_recovery_checkpoint",
    "get_best_checkpoint_path",
    "get_recovery_checkpoint_path",
]
