"""What the console shows: log messages while a run goes on, a summary at its end, and where the user's code failed."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from health_ml.planning.secrets import mask_text
from health_ml.planning.shell_words import quoted
from health_ml.planning.tree_walk import shown_path
from health_ml.settings import RECORD_MIRROR_DOCUMENT

if TYPE_CHECKING:
    import traceback

    from health_ml.experiment_config import LogLevel
    from health_ml.training.result import RunResult

LOG_FORMAT = "%(asctime)s %(levelname)-8s %(message)s"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
HANDLER_NAME = "health_ml console"

CHATTY_LIBRARIES = ("matplotlib", "urllib3", "fsspec", "filelock", "asyncio", "PIL", "git", "azure", "alembic")
"""Libraries whose debug messages drown those of a model."""


# --- log messages -----------------------------------------------------------------------------------------------------


def configure_logging(level: LogLevel | None, local_rank: int) -> None:
    """Sends log messages to standard error, each with its UTC time.

    :param level: The least severe message to show; None: INFO.
    :param local_rank: Processes of a machine other than the first show errors only.
    """
    number = int(getattr(logging, level.value)) if level else logging.INFO
    number = number if local_rank == 0 else logging.ERROR
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(HANDLER_NAME)
    handler.setLevel(number)
    formatter = _MaskingFormatter(LOG_FORMAT, TIME_FORMAT)
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for former in [former for former in root.handlers if former.get_name() == HANDLER_NAME]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(number)
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


class _MaskingFormatter(logging.Formatter):
    """Masks secrets in messages and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line for the console."""
        return mask_text(super().format(record))


@contextmanager
def restored_logging() -> Iterator[None]:
    """Puts back the handlers and levels that :func:`configure_logging` changes."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, CHATTY_LIBRARIES)]
    levels = [logger.level for logger in loggers]
    handlers = list(root.handlers)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# --- the summary ------------------------------------------------------------------------------------------------------


def render_summary(result: RunResult, *, is_in_azureml: bool = False) -> str:
    """Returns the last thing that a run prints: how it ended, what came out, and how to go on from there.

    :param is_in_azureml: True in a job: then the files are on a machine that nobody reaches.
    """
    lines = ["", f"Run {result.run_id}: {result.status.value}"]
    lines += [f"  {message}" for message in result.messages]
    lines += _divergence_lines(result.metrics)
    lines += _metric_lines(result.metrics)
    rows = [("files", f"himl-download --run={quoted(result.run_id)}")] if is_in_azureml else _file_rows(result)
    rows += _mlflow_row(result.paths.record)
    if result.checkpoint is not None and result.checkpoint.is_relative_to(result.paths.checkpoints):
        source = f"--src_checkpoint={quoted(result.run_id)}"
        is_trained = result.exit_code == 0 or result.error is not None
        more = " --max_epochs=<more>" if is_trained else ""
        rows.append(("resume", f"himl-runner <the same flags> --resume_training {source}{more}"))
    return "\n".join([*lines, *_aligned(rows)])


def _file_rows(result: RunResult) -> list[tuple[str, str]]:
    rows = [("folder", shown_path(str(result.paths.outputs)))]
    if result.checkpoint is not None:
        rows.append(("checkpoint", shown_path(str(result.checkpoint))))
    return [*rows, ("TensorBoard", f"tensorboard --logdir {quoted(str(result.paths.lightning_logs))}")]


def _divergence_lines(metrics: Mapping[str, float]) -> list[str]:
    names = [name for name, value in sorted(metrics.items()) if not math.isfinite(value)]
    return [f"  WARNING: not a finite number at the end: {', '.join(names)}."] if names else []


def _metric_lines(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return []
    width = max(map(len, metrics))
    return ["  metrics", *(f"    {name:{width}}  {value:.6g}" for name, value in sorted(metrics.items()))]


def _aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {name:12}{text}" for name, text in rows]


def _mlflow_row(record: Path) -> list[tuple[str, str]]:
    """Returns how to open the store that the mirror wrote to, if there is one."""
    try:
        mirror = json.loads((record / f"{RECORD_MIRROR_DOCUMENT}.json").read_text(encoding="utf-8"))
        uri = mirror["settings"]["tracking_uri"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if not isinstance(uri, str) or uri in ("", "none"):
        return []
    if uri.startswith("azureml://"):
        workspace = uri.partition("/subscriptions/")[2].replace("/providers/Microsoft.MachineLearningServices", "")
        run = mirror.get("mlflow_run_id")
        return [("AzureML", f"https://ml.azure.com/runs/{run}?wsid=/subscriptions/{workspace}")] if run else []
    if uri.startswith(("http://", "https://")):
        return [("MLflow", uri)]
    return [("MLflow", f"mlflow ui --backend-store-uri {quoted(uri)}")]


# --- errors in the user's code ----------------------------------------------------------------------------------------


def format_user_traceback(error: BaseException, *, is_full: bool = False) -> str:
    """Returns the traceback of an error without the frames of this package and of installed ones.

    The whole traceback is returned if asked for, and if no frame belongs to the user.
    """
    import traceback

    from health_ml.training.user_code import is_users_file

    report = traceback.TracebackException.from_exception(error)
    has_user_frames = any(is_users_file(frame.filename) for part in _chain(report) for frame in part.stack)
    if has_user_frames and not is_full:
        for part in _chain(report):
            part.stack[:] = [frame for frame in part.stack if is_users_file(frame.filename)]
    return "".join(report.format())


def _chain(report: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """Yields an error and those that it followed from."""
    waiting = [report]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [former for former in (part.__cause__, part.__context__) if former is not None]
