"""Metrics in memory."""

from __future__ import annotations

from argparse import Namespace

import pytest

from health_ml.training.loggers.storing_logger import StoringLogger


def filled() -> StoringLogger:
    logger = StoringLogger()
    logger.log_metrics({"train/loss": 1, "epoch": 0}, step=1)
    logger.log_metrics({"train/loss": 2.0, "val/loss": 5.0, "epoch": 0.0}, step=2)
    logger.log_metrics({"train/loss": 3.0, "epoch": 0}, step=3)
    logger.log_metrics({"train/loss": 4.0, "epoch": 1}, step=4)
    return logger


def test_new_logger_is_empty() -> None:
    logger = StoringLogger()

    assert logger.results_per_epoch == {}
    assert logger.results_without_epoch == []
    assert logger.train_diagnostics == logger.val_diagnostics == []
    assert logger.hyperparams is None
    assert (logger.name, logger.version, logger.experiment) == ("", 0, logger)


def test_repeated_values_become_a_list() -> None:
    logger = filled()

    assert logger.results_per_epoch == {
        0: {"train/loss": [1.0, 2.0, 3.0], "val/loss": 5.0},
        1: {"train/loss": 4.0},
    }
    assert list(logger.epochs) == [0, 1]


def test_metrics_without_epoch() -> None:
    logger = StoringLogger()
    logger.log_metrics({"test/loss": 0.5})

    assert logger.results_without_epoch == [{"test/loss": 0.5}]
    assert not logger.results_per_epoch


def test_given_metrics_stay_as_they_are() -> None:
    metrics = {"a": 1, "epoch": 0}

    StoringLogger().log_metrics(metrics)

    assert metrics == {"a": 1, "epoch": 0}


def test_extract_by_prefix() -> None:
    logger = filled()

    assert logger.extract_by_prefix(0, "val/") == {"loss": 5.0}
    assert logger.extract_by_prefix(1) == {"train/loss": 4.0}
    assert logger.extract_by_prefix(1, "val/") == {}


def test_extract_unknown_epoch() -> None:
    with pytest.raises(KeyError, match=r"no metrics of epoch 7. Epochs with metrics: \[0, 1\]"):
        filled().extract_by_prefix(7)


def test_to_metrics_dicts() -> None:
    assert filled().to_metrics_dicts("train/") == {0: {"loss": [1.0, 2.0, 3.0]}, 1: {"loss": 4.0}}


def test_hyperparameters() -> None:
    logger = StoringLogger()
    parameters = Namespace(a=1)

    logger.log_hyperparams(parameters)

    assert logger.hyperparams is parameters
