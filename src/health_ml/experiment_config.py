"""Where and how an experiment runs: the flags that do not depend on the model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import param


class RunnerMode(Enum):
    """What a run does with the model."""

    TRAIN = "train"
    EVAL_FULL = "eval_full"


class LogLevel(Enum):
    """The least severe message that the console shows."""

    ERROR = "ERROR"
    WARNING = "WARNING"
    WARN = "WARN"
    INFO = "INFO"
    DEBUG = "DEBUG"


class DebugDDPOptions(Enum):
    """Values of TORCH_DISTRIBUTED_DEBUG."""

    OFF = "OFF"
    INFO = "INFO"
    DETAIL = "DETAIL"


class ExperimentConfig(param.Parameterized):
    """Where and how to run: these flags work with every model."""

    cluster = param.String(
        default="",
        doc="Name of the AzureML compute cluster to run on. Empty: run on this machine.",
    )
    num_nodes = param.Integer(default=1, bounds=(1, None), doc="Number of machines that one training uses together.")
    model = param.String(
        default="",
        doc="Name of the container to run: 'HelloWorld' (searched below health_ml.configs), 'pkg.Name' (searched "
        "below pkg), or 'pkg.module.Name'.",
    )
    model_variant = param.String(
        default="", doc="Name of a variant that the container defines, handed to its set_model_variant method."
    )
    mount_in_azureml = param.Boolean(
        default=False, doc="In AzureML, mount the datasets instead of downloading them before the job starts."
    )
    docker_shm_size = param.String(default="400g", doc="Shared memory of the job's container in AzureML, like '400g'.")
    wait_for_completion = param.Boolean(
        default=False, doc="After submitting a job, wait for it to end; fail if the job fails."
    )
    conda_env = param.ClassSelector(
        class_=Path,
        default=None,
        allow_None=True,
        doc="Conda environment file of the job. Default: the nearest environment.yml at or above this folder.",
    )
    debug_ddp = param.ClassSelector(
        class_=DebugDDPOptions,
        default=DebugDDPOptions.OFF,
        doc="Value of TORCH_DISTRIBUTED_DEBUG: how much torch reports about distributed training.",
    )
    strictly_aml_v1 = param.Boolean(default=False, doc="Submit with version 1 of the AzureML SDK (extra 'v1').")
    identity_based_auth = param.Boolean(
        default=False, doc="In AzureML, read data with your own identity instead of the datastore's credentials."
    )
    workspace_config_path = param.ClassSelector(
        class_=Path,
        default=None,
        allow_None=True,
        doc="The config.json that names the AzureML workspace. Default: the nearest one at or above this folder.",
    )
    max_run_duration = param.String(
        default="", doc="Stop the job after this time: a number and s, m, h or d, like '3.5h' or '1h30m'."
    )
    mode = param.ClassSelector(
        class_=RunnerMode,
        default=RunnerMode.TRAIN,
        doc="'train' trains and tests; 'eval_full' tests a checkpoint on the container's evaluation data.",
    )
    log_level = param.ClassSelector(
        class_=LogLevel, default=None, allow_None=True, doc="The least severe message to print. Default: INFO."
    )
    tracking_uri = param.String(
        default="",
        doc="MLflow server or store that the record is mirrored to. Default: MLFLOW_TRACKING_URI, else an SQLite "
        "file mlflow.db in the current folder. 'none': no mirror in MLflow.",
    )
