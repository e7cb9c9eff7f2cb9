"""Where and how an experiment runs: the flags that do not depend on the model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import param

from health_ml.errors import PlanError
from health_ml.param_types import CustomTypeParam, FiniteNumber
from health_ml.planning.early_termination import EarlyTerminationPolicy, Goal, policy_from_text, policy_from_value
from health_ml.planning.search_space import Sampling
from health_ml.planning.sign_in import AuthMethod


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


class JobTier(Enum):
    """How a job is served where compute is not a cluster of your own."""

    SPOT = "spot"
    BASIC = "basic"
    STANDARD = "standard"
    PREMIUM = "premium"


class JobPriority(Enum):
    """Which of the jobs that wait starts first."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class InteractiveService(Enum):
    """A program on the nodes of a job with which a person looks into it while it runs."""

    JUPYTER = "jupyter"
    VS_CODE = "vscode"
    TENSORBOARD = "tensorboard"
    SSH = "ssh"


class EarlyTerminationParam(CustomTypeParam):
    """A policy that stops trials early: its name, with settings in parentheses."""

    def _validate(self, val: Any) -> None:
        if val is not None and not isinstance(val, EarlyTerminationPolicy):
            policy_from_value(val)

    def from_string(self, x: str) -> EarlyTerminationPolicy | None:
        """Returns the policy that the text describes."""
        try:
            return policy_from_text(x)
        except PlanError as error:
            raise ValueError(str(error)) from error


JOB_FLAGS = frozenset(
    {
        "wait_for_completion",
        "docker_shm_size",
        "conda_env",
        "mount_in_azureml",
        "identity_based_auth",
        "max_run_duration",
        "strictly_aml_v1",
        "workspace_config_path",
        "datastore",
        "dataset_mountpoints",
        "auth",
        "base_image",
        "azure_environment",
        "docker_build_context",
        "instance_type",
        "job_tier",
        "priority",
        "interactive_services",
        "ssh_public_key",
    }
)
"""Flags that describe a job, and mean nothing for a run in this process. Each back end says which it heeds."""


class SnapshotParams(param.Parameterized):
    """What travels with a job."""

    max_snapshot_mb = FiniteNumber(
        default=None,
        bounds=(0, None),
        inclusive_bounds=(False, True),
        allow_None=True,
        doc="Refuse to submit a job if the files that travel with it have more megabytes than this.",
    )
    allow_secret_files = param.List(
        default=[],
        item_type=str,
        doc="Files that may travel although they look like secrets, as patterns like those in .gitignore.",
    )
    require_clean = param.Boolean(
        default=False, doc="Refuse to run unless everything in the git repository is committed."
    )


class AzureMLParams(param.Parameterized):
    """What only jobs in AzureML heed."""

    auth = param.ClassSelector(
        class_=AuthMethod,
        default=None,
        allow_None=True,
        doc="The only way to sign in to Azure that is tried. Default: all of them, in the order of this list.",
    )
    base_image = param.String(
        default="", doc="Docker image on which the Conda environment of the job is built. Default: Ubuntu with CUDA."
    )
    azure_environment = param.String(
        default="",
        doc="An environment that AzureML has, instead of a Conda file: NAME:VERSION, NAME for its latest version, or "
        "an azureml://registries/ address.",
    )
    docker_build_context = param.ClassSelector(
        class_=Path,
        default=None,
        allow_None=True,
        doc="Folder with a Dockerfile from which AzureML builds the job's image, instead of a Conda file.",
    )
    instance_type = param.String(
        default="", doc="Type of machine, where the cluster has several: 'serverless' or a Kubernetes cluster."
    )
    job_tier = param.ClassSelector(
        class_=JobTier, default=None, allow_None=True, doc="How the job is served on --cluster=azureml:serverless."
    )
    priority = param.ClassSelector(
        class_=JobPriority,
        default=None,
        allow_None=True,
        doc="Which job starts first: for a search on --cluster=azureml:serverless.",
    )
    interactive_services = param.List(
        default=[], item_type=InteractiveService, doc="Programs with which to look into the job while it runs."
    )
    ssh_public_key = param.ClassSelector(
        class_=Path, default=None, allow_None=True, doc="The public key of who may use --interactive_services=ssh."
    )

    @property
    def auth_name(self) -> str | None:
        """The only way to sign in to Azure, or None for all of them."""
        return self.auth.value if self.auth is not None else None


class FanOutParams(param.Parameterized):
    """Several runs at once."""

    sweep = param.String(
        default="",
        doc="Parameters to vary: 'l_rate=1e-4,1e-3 random_seed=0..4', or 'l_rate=loguniform(1e-5,1e-1)' with "
        "--sampling=random.",
    )
    fan_out = param.Dict(
        default={},
        doc="A search as a block in a config file: 'parameters' and the settings 'sampling', 'max_trials', "
        "'primary_metric', 'goal', 'early_termination', 'timeout', 'trial_timeout' and so on.",
    )
    sampling = param.ClassSelector(
        class_=Sampling, default=None, allow_None=True, doc="How a search chooses values. Default: grid."
    )
    sampling_seed = param.Integer(
        default=None, bounds=(0, None), allow_None=True, doc="Seed of a random or Bayesian search. Default: 0."
    )
    max_trials = param.Integer(
        default=None, bounds=(1, None), allow_None=True, doc="Largest number of trials of a search."
    )
    max_concurrent_trials = param.Integer(
        default=None,
        bounds=(1, None),
        allow_None=True,
        doc="Largest number of trials at the same time. Default: one per GPU, without GPUs one per core and at most 8.",
    )
    primary_metric = param.String(default="", doc="The metric that a search optimises, like 'val/loss'.")
    goal = param.ClassSelector(
        class_=Goal,
        default=None,
        allow_None=True,
        doc="Whether less or more of the primary metric is better. Default: minimize.",
    )
    early_termination = EarlyTerminationParam(
        default=None,
        allow_None=True,
        doc="When a trial is stopped before its end: 'median_stopping', 'bandit(slack_factor=0.1)' or "
        "'truncation_selection(truncation_percentage=20)', each also with evaluation_interval and delay_evaluation.",
    )
    fail_fast = param.Boolean(default=False, doc="End all trials of a search when one of them fails.")


class ExperimentConfig(SnapshotParams, FanOutParams, AzureMLParams):
    """Where and how to run: these flags work with every model."""

    cluster = param.String(
        default="",
        doc="Where to run: 'local' for a job on this machine, the name of an AzureML compute cluster, or a back end "
        "and a cluster, like 'azureml:gpu'. Empty: run in this process.",
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
    simulate_preemption = param.String(
        default="",
        doc="Interrupt the training once and continue it in a new process, to test whether the model can be continued: "
        "'step:N', 'epoch:N' or 'seconds:S', and after a comma 'signal:KILL' if it is not to be TERM.",
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
