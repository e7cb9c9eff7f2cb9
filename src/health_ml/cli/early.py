"""Makes the back end of a job before the model is imported, so that it signs in while Python is busy with torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from health_ml.backends.base import Backend, BackendContext
from health_ml.backends.registry import load_backend, parse_cluster
from health_ml.cli.draft import Draft
from health_ml.environment import Place
from health_ml.errors import HimlError
from health_ml.experiment_config import ExperimentConfig

END_SECONDS = 5.0
"""How long to wait for the other thread when there will be no job after all."""


@dataclass(frozen=True)
class EarlyBackend:
    """A back end and what it was made for.

    :param backend: The back end.
    :param asked: What the flags said about it.
    """

    backend: Backend
    asked: tuple[object, ...]

    def fits(self, config: ExperimentConfig) -> bool:
        """Returns whether the flags still say the same: a container may change them."""
        return self.asked == _asked(config)


@contextmanager
def early_backend(draft: Draft, place: Place) -> Iterator[EarlyBackend | None]:
    """Returns the back end of a job, which does ahead what it can; None where that gains nothing.

    What is wrong with the flags is not said here but where it is always said, together with all other mistakes.
    """
    early = _create(draft, place)
    if early is None:
        yield None
        return
    thread = threading.Thread(target=early.backend.warm_up, name="himl-warm-up", daemon=True)
    thread.start()
    try:
        yield early
    finally:
        thread.join(END_SECONDS)


def _create(draft: Draft, place: Place) -> EarlyBackend | None:
    config = draft.config
    try:
        name = parse_cluster(config.cluster)
        backend_class = load_backend(name.backend)
        if not backend_class.warms_up or draft.problems:
            return None
        context = BackendContext(name.target, place.project_root, None, config, place.start_directory)
        return EarlyBackend(backend_class.create(context), _asked(config))
    except HimlError:
        return None


def _asked(config: ExperimentConfig) -> tuple[object, ...]:
    return config.cluster, config.workspace_config_path, config.auth
