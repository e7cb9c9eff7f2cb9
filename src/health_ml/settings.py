"""Every environment variable, folder name and file name that health_ml reads or writes, once."""

from __future__ import annotations

# --- environment variables that health_ml sets for its own child processes -----------------------------------------
ENV_RUN_ID = "HIML_RUN_ID"
"""Id of the run that this process belongs to. Set for ranks, nodes and trials that somebody else started."""
ENV_RUN_FOLDER = "HIML_RUN_FOLDER"
"""Absolute path of the run folder, fixed by rank zero so that no other rank makes one of its own."""
ENV_START_DIRECTORY = "HIML_START_DIRECTORY"
"""Where the user typed the command: relative paths on the command line are resolved against it, in every rank."""
ENV_PROJECT_ROOT = "HIML_PROJECT_ROOT"
"""Folder whose ``outputs`` holds the runs, and that holds the MLflow store, where it is not the start directory: a job
runs from a copy of the code, but its runs and those it refers to stay with the user's project."""
ENV_FAN_OUT_FOLDER = "HIML_FAN_OUT_FOLDER"
"""Run folder of the fan-out that this run is a trial of."""
ENV_TRIAL = "HIML_TRIAL"
"""Set for a run that is a trial of somebody else's search, and must not become a search itself."""
ENV_ATTEMPT = "HIML_ATTEMPT"
"""How often the run was restarted after a preemption, starting at 0."""
ENV_INPUT = "HIML_INPUT_"
"""With a number behind it: the folder of a dataset, for processes that must not look for it again."""
ENV_AUTH = "HIML_AUTH"
"""The value of ``--auth``, for the process that mirrors a run to AzureML."""

# --- environment variables that the user may set -------------------------------------------------------------------
ENV_FULL_ERROR = "HIML_FULL_ERROR"
"""Set to 1 to see tracebacks of errors that are otherwise printed as one paragraph."""
ENV_EXPERIMENT_NAME = "HIML_EXPERIMENT_NAME"
"""Wins over ``--experiment``."""
ENV_MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"
ENV_TORCH_DISTRIBUTED_DEBUG = "TORCH_DISTRIBUTED_DEBUG"

# --- names in a run folder -----------------------------------------------------------------------------------------
OUTPUTS_FOLDER = "outputs"
LOGS_FOLDER = "logs"
LIGHTNING_LOGS_FOLDER = "Lightning"
CHECKPOINT_FOLDER = "checkpoints"
FORMER_ATTEMPTS_FOLDER = ".himl_former_attempts"
"""Folder beside the outputs, on all machines but the first: checkpoints of earlier attempts of a restarted job."""
PROFILER_FOLDER = "profiler"
PRETRAINED_MODELS_FOLDER = "pretrained_models"
RECORD_FOLDER = "run"
TRIALS_FOLDER = "trials"
"""Folder in the run folder of a fan-out: one run folder for each trial, named after its number."""
EXPERIMENT_SUMMARY_FILE = "experiment_summary.txt"
OUTPUT_DATASETS_FOLDER = "output_datasets"
"""Where a run outside AzureML writes what would become a dataset there."""
CONSOLE_LOGS_FOLDER = "console_logs"
CONSOLE_LOG = "console.log"
FAN_OUT_TABLE = "fan_out.csv"
FAN_OUT_PAGE = "fan_out.html"

# --- checkpoint files ----------------------------------------------------------------------------------------------
CHECKPOINT_SUFFIX = ".ckpt"
LAST_CHECKPOINT_STEM = "last"
LAST_CHECKPOINT = LAST_CHECKPOINT_STEM + CHECKPOINT_SUFFIX
BEST_CHECKPOINT = "best" + CHECKPOINT_SUFFIX
"""In a fan-out: the checkpoint of its best trial."""
BEST_OF_FAN_OUT = f"{CHECKPOINT_FOLDER}/best"
"""The path that ``<id>:best`` stands for: no file, but the checkpoint of the best trial."""
AUTOSAVE_CHECKPOINT_STEM = "autosave"
AUTOSAVE_CHECKPOINT = AUTOSAVE_CHECKPOINT_STEM + CHECKPOINT_SUFFIX

# --- files of the record (DESIGN: the record) ----------------------------------------------------------------------
RECORD_METRICS_FILE = "metrics.jsonl"
RECORD_STATUS_FILE = "status.jsonl"
RECORD_HYPERPARAMETERS_FILE = "hyperparameters.jsonl"
RECORD_TAGS_FILE = "tags.jsonl"
RECORD_RUN_DOCUMENT = "run"
RECORD_CONFIG_DOCUMENT = "config"
RECORD_GIT_DOCUMENT = "git"
RECORD_GIT_PATCH_FILE = "uncommitted.patch"
RECORD_PACKAGES_DOCUMENT = "packages"
RECORD_PLAN_DOCUMENT = "plan"
RECORD_MIRROR_DOCUMENT = "mirror"
RECORD_MIRROR_LOG_FILE = "mirror.log"
RECORD_MIRROR_LOCK_FILE = "mirror.lock"
RECORD_CHECKPOINTS_FILE = "checkpoints.jsonl"
"""One line for each checkpoint that was written, with its signature."""
RECORD_TRIALS_FILE = "trials.jsonl"
"""In the record of a fan-out: one line for each start and end of a trial."""
RECORD_FAN_OUT_LOCK_FILE = "fan_out.lock"
RECORD_TRIAL_LOCK_FILE = "trial.lock"
"""In the record of a trial: locked as long as its process lives, and says which process that is."""

# --- tracking ------------------------------------------------------------------------------------------------------
MLFLOW_DATABASE = "mlflow.db"
"""Default MLflow store: an SQLite file of this name in the project root."""
MLFLOW_DATABASE_LOCK = f".{MLFLOW_DATABASE}.lock"
"""Locked while the store is created."""

# --- snapshot and jobs ---------------------------------------------------------------------------------------------
RUNNER_DISTRIBUTION = "himl-runner"
"""Name of the distribution that this package is in."""
CONDA_ENVIRONMENT_FILE = "environment.yml"
AMLIGNORE_FILE = ".amlignore"
"""Ignore file of AzureML, in git's syntax: adds to .gitignore, and takes paths back with a leading "!"."""
GITIGNORE_FILE = ".gitignore"
GIT_FOLDER = ".git"
ENV_XDG_CACHE_HOME = "XDG_CACHE_HOME"
CACHE_FOLDER = "health_ml"
"""Folder in the user's cache folder that holds file hashes, stored snapshots and downloaded datasets."""
DATASET_CACHE_FOLDER = "datasets"
CHECKPOINT_CACHE_FOLDER = "checkpoints"
SNAPSHOT_CACHE_FOLDER = "snapshot-hashes"
UPLOAD_MEMORY_FOLDER = "uploaded-code"
SNAPSHOT_STORE_FOLDER = "snapshots"

# --- trust ---------------------------------------------------------------------------------------------------------
ENV_XDG_STATE_HOME = "XDG_STATE_HOME"
SIGNING_KEY_FILE = "checkpoint-key"
"""In the user's state folder: what the user's own runs sign their checkpoints with."""
