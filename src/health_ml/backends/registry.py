"""The back ends by name, and what ``--cluster`` means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points

from health_ml.backends.base import Backend
from health_ml.errors import PlanError, did_you_mean, join_choices

BACKENDS = {
    "azureml": "health_ml.backends.azureml:AzureMLBackend",
    "local": "health_ml.backends.local_jobs:LocalBackend",
}
"""Dotted path of each back end of this package; loaded on use."""

DEFAULT_BACKEND = "azureml"
"""The back end of a cluster name that names none."""

ENTRY_POINT_GROUP = "health_ml.backends"
"""Where other packages announce their back ends."""

_registered: dict[str, type[Backend]] = {}


@dataclass(frozen=True)
class ClusterName:
    """What ``--cluster`` says.

    :param backend: Name of the back end.
    :param target: The cluster, partition or queue there, or "".
    """

    backend: str
    target: str = ""


def parse_cluster(text: str) -> ClusterName:
    """Returns the back end and the cluster in ``local``, ``slurm:partition`` or ``cluster``, which is in AzureML.

    :raises PlanError: If there is no such back end.
    """
    backend, colon, target = text.strip().partition(":")
    known = backend_names()
    if not colon:
        name = ClusterName(backend) if backend in known else ClusterName(DEFAULT_BACKEND, backend)
    else:
        name = ClusterName(backend, target.strip())
    if name.backend not in known:
        what = f"there is no back end {name.backend!r}" if colon else f"the back end {name.backend!r} is not installed"
        raise PlanError(
            f"--cluster={text}: {what}.",
            f"{did_you_mean(backend, known)} The back ends are {join_choices(known)}, and one can be named before a "
            "colon, like local: or slurm:partition. Leave out --cluster to train in this process.".strip(),
        )
    return name


def backend_names() -> list[str]:
    """Returns the names of all back ends."""
    return sorted({*BACKENDS, *_registered, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def load_backend(name: str) -> type[Backend]:
    """Returns the class of a back end.

    :raises PlanError: If there is no such back end, or its package cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    announced = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    path = BACKENDS.get(name) or announced.get(name)
    if path is None:
        raise PlanError(f"There is no back end {name!r}.", f"The back ends are {join_choices(backend_names())}.")
    module, _, attribute = path.partition(":")
    try:
        found: type[Backend] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PlanError(
            f"The back end {name!r} cannot be loaded from {path}: {error}.", "Repair the package that provides it."
        ) from error
    return found


@contextmanager
def registered_backend(name: str, backend_class: type[Backend]) -> Iterator[None]:
    """Makes a back end known under a name, and forgets it at the end."""
    _registered[name] = backend_class
    try:
        yield
    finally:
        del _registered[name]
