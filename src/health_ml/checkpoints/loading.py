"""Loads a whole checkpoint, safely if somebody else wrote it."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

from health_ml.checkpoints.inspect import describe_refusal, read_progress, refused_classes, verify
from health_ml.errors import CheckpointError

_log = logging.getLogger(__name__)


def load_checkpoint(path: Path, *, is_trusted: bool) -> dict[str, Any]:
    """Returns a Lightning checkpoint as a dictionary, with all tensors on the CPU.

    :param path: The checkpoint file.
    :param is_trusted: True for checkpoints of the user's own runs. They may hold objects of any class, which is
        loaded by running code from the file; in any other checkpoint such objects are refused.
    :raises CheckpointError: If the file is missing, damaged, no Lightning checkpoint, or refused.
    """
    import torch  # loading is the first thing that needs it

    read_progress(path)
    try:
        return _as_dictionary(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        if not is_trusted:
            raise CheckpointError(describe_refusal(path, error)) from error
        classes = ", ".join(refused_classes(path, error))
        _log.info("%s holds objects of %s; it is loaded in full, because a run of yours wrote it.", path, classes)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _loading_error(path, error) from error
    try:
        return _as_dictionary(torch.load(path, map_location="cpu", weights_only=False), path)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds objects of a class that is not here any more: {error}.",
            "Make the module importable again under its old name.",
        ) from error
    except Exception as error:  # unpickling runs code of the user's own classes, which can raise anything
        raise _loading_error(path, error) from error


def _as_dictionary(loaded: Any, path: Path) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it holds a {type(loaded).__name__}.")
    return loaded


def _loading_error(path: Path, error: Exception) -> CheckpointError:
    """Returns the error for a file that torch cannot load: the damage if there is one, else what torch says."""
    try:
        verify(path)
    except CheckpointError as damage:
        return damage
    return CheckpointError(f"{path} cannot be loaded: {error}", "Was it written by a newer version of torch?")
