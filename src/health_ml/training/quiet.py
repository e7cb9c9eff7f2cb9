"""Keeps messages of the libraries from the console that a user can do nothing about, or that are not true here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "pytorch_lightning.utilities.rank_zero"

_UNWANTED_LINES = (
    "litlogger",  # recommends another product
    "litmodels",
    "GPU available: False",  # says what the user sees in the flags, once per Trainer
    "TPU available: False",
    "HPU available: False",
)

_UNWANTED_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's own use of torch
    r"'pin_memory' argument is set as true but no accelerator is found",  # right for the GPU it was written for
    # Not true here: health_ml.training.callbacks.exact_resume brings the data to where they were.
    r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable",
)


class _NoUnwantedLines(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in _UNWANTED_LINES)


@contextmanager
def silence() -> Iterator[None]:
    """Drops all log messages and warnings in the body, for trying something out."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drops such messages in the body."""
    lines = _NoUnwantedLines()
    logger = logging.getLogger(_LOGGER)
    logger.addFilter(lines)
    try:
        with warnings.catch_warnings():
            for message in _UNWANTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.removeFilter(lines)
