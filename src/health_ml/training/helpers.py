"""Small helpers for containers and scripts: sections in the log, time taken, working directory, ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from health_ml.environment import RunEnvironment, process_environment, working_directory

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_BANNER_WIDTH = 100
_TALKATIVE_LIBRARIES = {
    "azure": logging.WARNING,
    "fsspec": logging.INFO,
    "git": logging.INFO,
    "matplotlib": logging.INFO,
    "numba": logging.WARNING,
    "PIL": logging.INFO,
    "urllib3": logging.INFO,
}


def health_ml_package_setup() -> None:
    """Raises the logging level of libraries that write a lot at DEBUG, so that the messages of a model stay visible."""
    for name, level in _TALKATIVE_LIBRARIES.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def logging_section(gerund: str) -> Iterator[None]:
    """Writes a line to the log before and after something, with the time that it took, also if it failed.

    :param gerund: What is being done, like "training the model".
    """
    _log_banner(f"STARTING: {gerund}")
    start = time.perf_counter()
    outcome = "FAILED"
    try:
        yield
        outcome = "FINISHED"
    finally:
        _log_banner(f"{outcome}: {gerund} after {_duration(time.perf_counter() - start)}")


def _log_banner(text: str) -> None:
    logger.info("%s", f"**** {text} ".ljust(_BANNER_WIDTH, "*"))


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} hours"
    if seconds >= 60:
        return f"{seconds / 60:.2f} minutes"
    return f"{seconds:.2f} seconds"


@contextmanager
def elapsed_timer(message: str) -> Iterator[None]:
    """Writes to the log how long something took, also if it failed.

    :param message: What was done; the log says "<message> took 1.23 seconds".
    """
    start = time.perf_counter()
    try:
        yield
    finally:
        logger.info("%s took %s", message, _duration(time.perf_counter() - start))


@contextmanager
def change_working_directory(path_or_str: Path | str) -> Iterator[Path]:
    """Makes a folder the working directory and goes back at the end, also after an error.

    :param path_or_str: The folder; ``~`` stands for the home folder.
    """
    with working_directory(Path(path_or_str).expanduser()) as folder:
        yield folder


def is_local_rank_zero() -> bool:
    """Returns True in the first training process on this machine."""
    return RunEnvironment.from_env(process_environment()).is_local_rank_zero


def is_global_rank_zero() -> bool:
    """Returns True in the first training process of the whole run."""
    return RunEnvironment.from_env(process_environment()).is_global_rank_zero


def is_gpu_available() -> bool:
    """Returns True if torch can use at least one CUDA device."""
    import torch

    return torch.cuda.is_available() and torch.cuda.device_count() > 0


def df_to_json(df: pd.DataFrame, json_path: Path, add_newline: bool = True) -> None:
    """Writes a table to a JSON file, one object per column.

    :param df: The table.
    :param json_path: The file to write.
    :param add_newline: Whether to end the file with a newline.
    """
    text = df.to_json()
    json_path.write_text(text + "\n" if add_newline else text, encoding="utf-8")
