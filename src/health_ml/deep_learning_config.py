"""What a container can be told on the command line: one ``param`` declaration per flag.

The declarations are the single source of the parser, the help, the validation and the reference page. They load
neither torch nor Lightning, so ``himl-runner --help`` starts at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import param

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.errors import ArgumentsError
from health_ml.optimizer_params import LRSchedulerType, LRWarmUpType, OptimizerParams, OptimizerType
from health_ml.param_types import FiniteNumber
from health_ml.run_paths import RunPaths

__all__ = [
    "ALL_GPUS",
    "CONTAINER_PARAMETER_GROUPS",
    "DatasetParams",
    "LRSchedulerType",
    "LRWarmUpType",
    "OptimizerParams",
    "OptimizerType",
    "OutputParams",
    "RunPaths",
    "TrainerParams",
    "WorkflowParams",
    "create_from_matching_params",
    "parameters_of",
]

ALL_GPUS = -1
"""Value of ``max_num_gpus`` that stands for every GPU of the machine."""


class WorkflowParams(param.Parameterized):
    """What to do with the model: train, resume, test, and the copies of a run that a fan-out makes."""

    random_seed = param.Integer(default=42, bounds=(0, 2**32 - 1), doc="Seed of all random number generators.")
    src_checkpoint = param.ClassSelector(
        class_=CheckpointParser,
        default=None,
        allow_None=True,
        instantiate=False,
        doc="Checkpoint to start from: a file, an http(s) URL, or a run id with an optional path after a colon, like "
        "'run_id:best.ckpt'. Used by --resume_training, --run_inference_only and --mode=eval_full; otherwise the "
        "container finds it in trained_weights_path.",
    )
    trust_checkpoint = param.Boolean(
        default=False,
        doc="Load the checkpoint even if it holds objects that can run any code. Checkpoints of your own runs need no "
        "such permission; all others are loaded with torch's safe loader, which takes tensors and plain values.",
    )
    crossval_count = param.Integer(
        default=1, bounds=(0, None), doc="Number of cross-validation folds; 0 or 1 means no cross-validation."
    )
    crossval_index = param.Integer(
        default=None,
        bounds=(0, None),
        allow_None=True,
        doc="Index of the fold that this run trains, starting at 0; None starts all folds.",
    )
    hyperdrive = param.Boolean(default=False, doc="Run the hyperparameter search that the container defines.")
    regression_test_folder = param.ClassSelector(
        class_=Path,
        default=None,
        allow_None=True,
        doc="Folder with expected results: after the run, every file below its OUTPUT folder must match.",
    )
    regression_test_csv_tolerance = FiniteNumber(
        default=0.0, bounds=(0.0, None), doc="Relative tolerance for numbers when comparing CSV files and metrics."
    )
    regression_metrics = param.String(
        default=None,
        allow_None=True,
        doc="Comma-separated names of metrics to write to regression_metrics.json, to compare them with stored ones.",
    )
    run_inference_only = param.Boolean(
        default=False, doc="Do not train: validate and test the checkpoint given in --src_checkpoint."
    )
    resume_training = param.Boolean(
        default=False, doc="Continue training from the checkpoint given in --src_checkpoint."
    )
    tag = param.String(default="", doc="Name to display for this run in tracking services.")
    experiment = param.String(
        default="", doc="Experiment that the run belongs to. Default: the container's class name."
    )
    log_from_vm = param.Boolean(
        default=False, doc="When training on a machine outside AzureML, log to an AzureML run all the same."
    )
    different_seeds = param.Integer(
        default=0, bounds=(0, None), doc="Train this many times, with the random seeds 0, 1, 2, …"
    )

    @property
    def is_running_crossval(self) -> bool:
        """True if this run trains one fold of a cross-validation."""
        return self.crossval_count > 1 and self.crossval_index is not None

    @property
    def is_crossval_parent(self) -> bool:
        """True if this run stands for all folds of a cross-validation."""
        return self.crossval_count > 1 and self.crossval_index is None

    def get_effective_random_seed(self) -> int:
        """Returns the seed of this run: folds of a cross-validation each get their own."""
        if self.is_running_crossval:
            assert self.crossval_index is not None
            return int(self.random_seed) + int(self.crossval_index) + 1
        return int(self.random_seed)

    def workflow_problems(self) -> list[str]:
        """Returns what is wrong with these parameters, as sentences."""
        problems = []
        has_checkpoint = self.src_checkpoint is not None and bool(self.src_checkpoint.checkpoint)
        if self.run_inference_only and not has_checkpoint:
            problems.append(
                "Cannot run inference without a src_checkpoint: add --src_checkpoint=<file, URL or run id>."
            )
        if self.resume_training and not has_checkpoint:
            problems.append(
                "Cannot resume training without a src_checkpoint: add --src_checkpoint=<file, URL or run id>."
            )
        if self.run_inference_only and self.resume_training:
            problems.append("--run_inference_only and --resume_training contradict each other: give one of them.")
        if self.crossval_index is not None and self.crossval_count <= 1:
            problems.append(
                f"--crossval_index={self.crossval_index} has no effect without --crossval_count of 2 or more."
            )
        elif self.crossval_index is not None and self.crossval_index >= self.crossval_count:
            problems.append(
                f"Attribute crossval_index out of bounds: {self.crossval_index} is not in 0 to "
                f"{self.crossval_count - 1} (--crossval_count={self.crossval_count})."
            )
        return problems


class DatasetParams(param.Parameterized):
    """The data that the model reads."""

    datastore = param.String(default="", doc="AzureML datastore that holds the datasets in --azure_datasets.")
    azure_datasets = param.List(
        default=[],
        item_type=str,
        doc="The datasets in AzureML, one per folder that the model reads: NAME, NAME:VERSION or NAME@LABEL of a data "
        "asset, or azureml://datastores/NAME/paths/FOLDER; +mount or +download at the end says how it is read.",
    )
    local_datasets = param.List(
        default=[],
        item_type=Path,
        doc="Folders with the datasets on this machine. In the container, local_datasets holds the folders to read, "
        "wherever it runs.",
    )
    dataset_mountpoints = param.List(
        default=[], item_type=Path, doc="Where to mount each dataset inside the job, one path per dataset."
    )
    output_datasets = param.List(
        default=[],
        item_type=str,
        doc="Folders in AzureML that the job writes: azureml://datastores/NAME/paths/FOLDER, or the name of a data "
        "asset, which gets a new version. In the container, output_dataset_folders holds the folders to write to; "
        "outside AzureML they are in the outputs of the run.",
    )

    _output_dataset_folders: tuple[Path, ...] = ()

    @property
    def output_dataset_folders(self) -> list[Path]:
        """The folder to write to for each of ``output_datasets``. They exist from ``setup`` on."""
        return list(self._output_dataset_folders)

    def set_output_dataset_folders(self, folders: Sequence[Path]) -> None:
        """Tells the container where its output datasets go."""
        self._output_dataset_folders = tuple(folders)

    def dataset_problems(self) -> list[str]:
        """Returns what is wrong with these parameters, as sentences."""
        problems = []
        count = len(self.azure_datasets)
        for name, values in (
            ("local_datasets", self.local_datasets),
            ("dataset_mountpoints", self.dataset_mountpoints),
        ):
            if values and count and len(values) != count:
                problems.append(
                    f"Invalid dataset setup: --{name} has {len(values)} entries and --azure_datasets has {count}; "
                    "give one entry per dataset, or none."
                )
        return problems


class OutputParams(param.Parameterized):
    """Where results go."""

    output_to = param.ClassSelector(
        class_=Path,
        default=None,
        allow_None=True,
        doc="Folder in which each run makes its own folder. Default: 'outputs' in the current folder.",
    )

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._run_paths: RunPaths | None = None

    @property
    def run_paths(self) -> RunPaths:
        """The folders of the run. They exist from ``setup`` on.

        :raises ArgumentsError: If the run has not been set up yet.
        """
        if self._run_paths is None:
            raise ArgumentsError(
                "The folders of this run are not known yet.",
                "The runner sets them before it calls setup(); in a test, call set_run_paths first.",
            )
        return self._run_paths

    def set_run_paths(self, paths: RunPaths) -> None:
        """Tells the container where its run writes."""
        self._run_paths = paths

    @property
    def outputs_folder(self) -> Path:
        """Folder for everything that the run should keep; the working directory while the model trains."""
        return self.run_paths.outputs

    @property
    def logs_folder(self) -> Path:
        """Folder for logs."""
        return self.run_paths.logs

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.run_paths.checkpoints


class TrainerParams(param.Parameterized):
    """How the Lightning Trainer runs. Arguments without a flag here: ``--trainer.<argument>=<value>``."""

    max_epochs = param.Integer(default=100, bounds=(1, 10**9), doc="Number of epochs to train.")
    autosave_every_n_val_epochs = param.Integer(
        default=1,
        bounds=(0, None),
        doc="Write the autosave checkpoint every so many epochs with validation; 0 writes none.",
    )
    detect_anomaly = param.Boolean(default=False, doc="Let torch trace the operation that produced a NaN gradient.")
    use_mixed_precision = param.Boolean(
        default=True,
        doc="On a GPU, compute in 16 bits where that is safe: bfloat16 where the GPU has it, else float16.",
    )
    max_num_gpus = param.Integer(
        default=ALL_GPUS,
        bounds=(ALL_GPUS, None),
        doc="Largest number of GPUs per machine to train on; -1: all of them, 0: the CPU.",
    )
    max_num_gpus_inference = param.Integer(
        default=1,
        bounds=(ALL_GPUS, None),
        doc="Largest number of GPUs for validation and test after training; -1: all of them, 0: the CPU.",
    )
    pl_progress_bar_refresh_rate = param.Integer(
        default=None,
        bounds=(0, None),
        allow_None=True,
        doc="Update the progress bar every so many batches; 0 turns it off. Default: a live bar on a terminal, and "
        "elsewhere one line per 10 % or 30 s.",
    )
    pl_num_sanity_val_steps = param.Integer(
        default=0, bounds=(-1, None), doc="Validation batches to run before training starts; -1: all of them."
    )
    pl_deterministic = param.Boolean(
        default=False, doc="Use deterministic algorithms only; slower, and turns cuDNN's benchmark mode off."
    )
    pl_find_unused_parameters = param.Boolean(
        default=False, doc="With several processes, allow parameters that take no part in the loss."
    )
    pl_static_graph = param.Boolean(
        default=False, doc="With several processes, tell torch that the graph is the same in every step."
    )
    pl_limit_train_batches = FiniteNumber(
        default=None,
        bounds=(0, None),
        inclusive_bounds=(False, True),
        allow_None=True,
        doc="Training batches per epoch: 4, or 0.5 as a fraction.",
    )
    pl_limit_val_batches = FiniteNumber(
        default=None, bounds=(0, None), allow_None=True, doc="Validation batches: 4, or 0.5 as a fraction; 0: none."
    )
    pl_limit_test_batches = FiniteNumber(
        default=None, bounds=(0, None), allow_None=True, doc="Test batches: 4, or 0.5 as a fraction; 0: none."
    )
    pl_fast_dev_run = param.Integer(
        default=0, bounds=(0, None), doc="Try the whole run on this many batches, without keeping checkpoints."
    )
    pl_profiler = param.String(
        default=None,
        allow_None=True,
        doc="Profile the run with 'simple', 'advanced' or 'pytorch'; results go to the profiler folder of the run.",
    )
    pl_sync_batchnorm = param.Boolean(default=True, doc="Synchronise batch norm between the processes.")
    pl_replace_sampler_ddp = param.Boolean(
        default=True, doc="With several processes, let Lightning give each its own part of the data."
    )
    monitor_gpu = param.Boolean(default=False, doc="Log load and memory of the GPUs.")
    monitor_loading = param.Boolean(default=False, doc="Log how long batches take to load.")
    monitor_training = param.Boolean(default=False, doc="Log each stage that training reaches, for diagnosis.")
    run_extra_val_epoch = param.Boolean(
        default=False, doc="After training, validate once more with the checkpoint that is tested."
    )
    pl_accumulate_grad_batches = param.Integer(
        default=1, bounds=(1, None), doc="Sum the gradients of this many batches before each optimizer step."
    )
    pl_log_every_n_steps = param.Integer(default=50, bounds=(1, None), doc="Log step metrics every so many steps.")
    pl_check_val_every_n_epoch = param.Integer(default=1, bounds=(1, None), doc="Validate every so many epochs.")

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._trainer_arguments: dict[str, Any] = {}
        self._typed_parameters: frozenset[str] = frozenset()

    @property
    def typed_parameters(self) -> frozenset[str]:
        """Names of the parameters that the user gave on the command line or in a config file."""
        return self._typed_parameters

    def set_typed_parameters(self, names: Iterable[str]) -> None:
        """Says which parameters the user gave: those win over the container's own Trainer arguments."""
        self._typed_parameters = frozenset(names)

    @property
    def trainer_argument_overrides(self) -> dict[str, Any]:
        """Arguments of the Lightning Trainer that were given as ``--trainer.<argument>=<value>``."""
        return self._trainer_arguments

    def trainer_problems(self) -> list[str]:
        """Returns what is wrong with these parameters, as sentences."""
        problems = []
        if self.pl_profiler not in (None, "", "simple", "advanced", "pytorch"):
            problems.append(f"Unsupported profiler {self.pl_profiler!r}: choose simple, advanced or pytorch.")
        for name in ("pl_limit_train_batches", "pl_limit_val_batches", "pl_limit_test_batches"):
            value = getattr(self, name)
            if value is not None and value > 1 and value != int(value):
                problems.append(f"--{name}={value} is neither a fraction (0 to 1) nor a whole number of batches.")
        return problems


CONTAINER_PARAMETER_GROUPS: tuple[type[param.Parameterized], ...] = (
    WorkflowParams,
    DatasetParams,
    OutputParams,
    TrainerParams,
    OptimizerParams,
)
"""The classes whose parameters every container has, in the order in which the help shows them."""

ParameterizedT = TypeVar("ParameterizedT", bound=param.Parameterized)


def parameters_of(owner: param.Parameterized | type[param.Parameterized]) -> dict[str, param.Parameter[Any]]:
    """Returns the parameters of an object or class that can be set from outside, by name, without param's ``name``.

    Private, constant, read-only and callable parameters are left out.
    """
    found: dict[str, param.Parameter[Any]] = {}
    for name, parameter in owner.param.objects(instance=False).items():
        if name == "name" or name.startswith("_"):
            continue
        if parameter.constant or parameter.readonly or isinstance(parameter, param.Callable):
            continue
        found[name] = parameter
    return found


def create_from_matching_params(from_object: param.Parameterized, cls_: type[ParameterizedT]) -> ParameterizedT:
    """Returns a new object of a class, with every parameter that both have copied from the given object.

    :param from_object: Where the values come from.
    :param cls_: The class to create; it has to be constructible without arguments.
    :raises ValueError: If ``cls_`` is not a subclass of ``param.Parameterized``.
    """
    if not (isinstance(cls_, type) and issubclass(cls_, param.Parameterized)):
        raise ValueError(f"create_from_matching_params builds param.Parameterized classes, not {cls_!r}.")
    created = cls_()
    source = set(from_object.param.objects(instance=False))
    for name, parameter in cls_.param.objects(instance=False).items():
        if name == "name" or name not in source or parameter.constant or parameter.readonly:
            continue
        setattr(created, name, getattr(from_object, name))
    return created
