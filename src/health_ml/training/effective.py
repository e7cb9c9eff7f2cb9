"""Refuses flags that the model does not heed: before anything starts, if the code says what it will be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import filterfalse
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from health_ml.deep_learning_config import (
    LRSchedulerType,
    LRWarmUpType,
    OptimizerParams,
    OptimizerType,
    parameters_of,
)
from health_ml.errors import ArgumentsError, join_choices

if TYPE_CHECKING:
    from health_ml.lightning_container import LightningContainer

HEEDED_WITH: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "l_rate_exponential_gamma": ("l_rate_scheduler", (LRSchedulerType.Exponential,)),
    "l_rate_step_gamma": ("l_rate_scheduler", (LRSchedulerType.Step,)),
    "l_rate_step_step_size": ("l_rate_scheduler", (LRSchedulerType.Step,)),
    "l_rate_multi_step_gamma": ("l_rate_scheduler", (LRSchedulerType.MultiStep,)),
    "l_rate_multi_step_milestones": ("l_rate_scheduler", (LRSchedulerType.MultiStep,)),
    "l_rate_polynomial_gamma": ("l_rate_scheduler", (LRSchedulerType.Polynomial,)),
    "l_rate_warmup_epochs": ("l_rate_warmup", (LRWarmUpType.Linear,)),
    "opt_eps": ("optimizer_type", (OptimizerType.Adam, OptimizerType.AMSGrad, OptimizerType.RMSprop)),
    "rms_alpha": ("optimizer_type", (OptimizerType.RMSprop,)),
    "adam_betas": ("optimizer_type", (OptimizerType.Adam, OptimizerType.AMSGrad)),
    "momentum": ("optimizer_type", (OptimizerType.SGD, OptimizerType.RMSprop)),
}
"""Flags that only some optimizers or schedules heed: the flag that decides, and its values that do."""


def check_effective(container: LightningContainer, sources: Mapping[str, str]) -> None:
    """Raises if optimizer flags were typed that have no effect on the model of the container.

    A LightningModuleWithOptimizer heeds those that its optimizer and schedule have. Any other model heeds a flag if
    its code, or that of the container, mentions the parameter. Only flags of the command line count.

    :param container: A container whose model has been created.
    :param sources: Where each value comes from, by name.
    :raises ArgumentsError: Naming all flags without effect.
    """
    error = _problem(container, type(container.model), _typed(sources))
    if error is not None:
        raise error


def check_effective_ahead(
    container: LightningContainer, sources: Mapping[str, str], *, varied: Collection[str] = ()
) -> None:
    """Raises like :func:`check_effective`, if the code of ``create_model`` leaves no doubt which models it can make.

    :param varied: Names of the parameters whose values are not known yet, because each trial has others.
    :raises ArgumentsError: Naming all flags without effect.
    """
    if typed := _typed(sources):
        undecided = {*varied, *_mentioned_names((type(container),))}  # its methods may still change what they mention
        errors = [_problem(container, model, typed, undecided) for model in _models_made_by(type(container))]
        if errors and errors[0] is not None and all(errors):
            raise errors[0]


def _typed(sources: Mapping[str, str]) -> list[str]:
    return [name for name in parameters_of(OptimizerParams) if sources.get(name) == "command line"]


def _problem(
    container: LightningContainer, model: type, typed: Iterable[str], undecided: Collection[str] = ()
) -> ArgumentsError | None:
    """Returns what is wrong with the typed flags if the container makes a model of this class."""
    from health_ml.lightning_container import LightningModuleWithOptimizer  # imports Lightning

    mentioned = set(_mentioned_names((type(container), model)))
    typed = [name for name in typed if name not in mentioned]
    if issubclass(model, LightningModuleWithOptimizer):
        problems = " ".join(_unheeded(container, typed, undecided))
        return ArgumentsError(problems, "Leave out what has no effect.") if problems else None
    if not typed or OptimizerParams.__name__ in mentioned:
        return None
    return ArgumentsError(
        f"{_flags(typed)} no effect on {model.__name__}: it makes its optimizer itself, and neither it nor "
        f"{type(container).__name__} reads {'it' if len(typed) == 1 else 'them'}.",
        "Leave out these flags, or derive the model from LightningModuleWithOptimizer.",
    )


def check_checkpoint_is_read(container: LightningContainer, *, may_be_read_later: bool) -> None:
    """Raises if ``--src_checkpoint`` names a file that nobody reads: it was to be continued from, or tested.

    :param container: A container whose model has been created, with a checkpoint that the runner does not load.
    :param may_be_read_later: True as long as methods of the container are still to be called.
    :raises ArgumentsError: If neither the container nor its model has read the file, or can be expected to.
    """
    if container.has_read_trained_weights_path:
        return
    classes = (type(container), type(container.model)) if may_be_read_later else (type(container.model),)
    if "src_checkpoint" in _mentioned_names((type(container),)) or "trained_weights_path" in _mentioned_names(classes):
        return
    raise ArgumentsError(
        f"--src_checkpoint={container.src_checkpoint} would have no effect: {type(container).__name__} does not read "
        "trained_weights_path, and the training would start from the beginning.",
        "Add --resume_training to continue that training, or --run_inference_only to test the checkpoint; or leave it "
        "out.",
    )


def _models_made_by(container: type) -> list[type]:
    """Returns the classes of models that ``create_model`` names, or none if other code of the user has a say in it."""
    from pytorch_lightning import LightningModule

    function = container.create_model  # type: ignore[attr-defined]
    if not isinstance(function, FunctionType):
        return []
    models = []
    methods = {name for base in container.__mro__ if not _is_of_a_library(base) for name in vars(base)}
    for name in set(_names_in(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, type) and issubclass(value, LightningModule):
            models.append(value)
            continue
        is_method = name in methods and isinstance(getattr(container, name), (FunctionType, MethodType, property))
        if is_method or (isinstance(value, (type, FunctionType, ModuleType)) and not _is_of_a_library(value)):
            return []
    return models


def _unheeded(container: LightningContainer, typed: Iterable[str], undecided: Collection[str]) -> Iterator[str]:
    for name in typed:
        if name not in HEEDED_WITH:
            continue
        decisive, values = HEEDED_WITH[name]
        current = getattr(container, decisive)
        if decisive not in undecided and current not in values:
            wanted = join_choices([f"--{decisive}={value.value}" for value in values])
            yield f"--{name} has no effect with --{decisive}={current.value}: it needs {wanted}."


def _flags(names: list[str]) -> str:
    flags = [f"--{name}" for name in names]
    return f"{flags[0]} has" if len(flags) == 1 else f"{', '.join(flags[:-1])} and {flags[-1]} have"


def _mentioned_names(classes: Iterable[type]) -> Iterator[str]:
    """Yields every name that the methods of the user's classes mention."""
    bases = {base for class_ in classes for base in class_.__mro__}
    for class_ in filterfalse(_is_of_a_library, bases):
        for member in vars(class_).values():
            function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
            function = getattr(function, "__wrapped__", function)
            if isinstance(function, FunctionType):
                yield from _names_in(function.__code__)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str):
            yield constant  # getattr(container, "l_rate")


def _is_of_a_library(value: type | FunctionType | ModuleType) -> bool:
    module = value.__name__ if isinstance(value, ModuleType) else value.__module__
    package = module.partition(".")[0]
    is_ours = package == "health_ml" and not module.startswith("health_ml.configs")
    return is_ours or package in ("pytorch_lightning", "lightning", "lightning_fabric", "torch", "param", "builtins")
