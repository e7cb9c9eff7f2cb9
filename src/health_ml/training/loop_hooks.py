"""Reaches the places in Lightning's training loop that no callback reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning import Trainer


def before(owner: Any, method: str, action: Callable[..., None]) -> None:
    """Lets an action run before a method of one object, with the same arguments."""
    original = getattr(owner, method)

    def run_both(*arguments: Any) -> Any:
        action(*arguments)
        return original(*arguments)

    setattr(owner, method, run_both)


def after(owner: Any, method: str, action: Callable[[], None]) -> None:
    """Lets an action run after a method of one object, if that comes to its end."""
    original = getattr(owner, method)

    def run_both(*arguments: Any) -> Any:
        result = original(*arguments)
        action()
        return result

    setattr(owner, method, run_both)


def log_batch(trainer: Trainer) -> None:
    """Hands on what a batch has logged, as the loop does after the hooks at the end of the batch."""
    connector = trainer._logger_connector
    type(connector).on_batch_end(connector)  # without what runs before it
    connector.update_train_step_metrics()


def log_epoch(trainer: Trainer, *, is_logged: bool = True) -> None:
    """Hands on what an epoch has logged, as the loop does after the hooks at the end of the epoch.

    :param is_logged: False to compute it, which all processes have to do together, and leave it out of the loggers.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    connector.on_epoch_end()
    loop._batches_that_stepped -= 1  # the loggers expect the step of the last batch
    if is_logged:
        connector.update_train_epoch_metrics()
    else:
        connector.reset_results()
    loop._batches_that_stepped += 1
