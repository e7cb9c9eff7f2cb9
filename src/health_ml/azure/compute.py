"""The cluster that a job is to run on: checked before anything is uploaded, because the service checks it last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from health_ml.errors import PlanError, did_you_mean

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

    from health_ml.planning.plan import JobPlan

SERVERLESS = "serverless"
"""Instead of a cluster: machines that AzureML provides for one job."""
KUBERNETES = "kubernetes"
CLUSTER = "amlcompute"
INSTANCE = "computeinstance"


def find_compute(client: MLClient, name: str) -> Any:
    """Returns a cluster as the SDK describes it, or None for machines that AzureML provides for one job.

    :raises PlanError: If there is no such cluster.
    """
    if name == SERVERLESS:
        return None
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return client.compute.get(name)
    except ResourceNotFoundError as error:
        try:
            known = sorted(str(compute.name) for compute in client.compute.list())
        except ResourceNotFoundError:
            raise error from None  # the workspace itself does not exist
        raise PlanError(
            f"The workspace {client.workspace_name} has no compute cluster {name!r}.",
            f"{did_you_mean(name, known)} It has {', '.join(known) or 'none: make one in the studio'}.".strip(),
        ) from error


def check_compute(compute: Any, plan: JobPlan) -> None:
    """Raises an error if a plan cannot run on a cluster.

    :param compute: The cluster, as :func:`find_compute` returns it.
    :raises PlanError: If it is too small, or does not heed what the plan asks for.
    """
    if compute is None:
        return
    name, kind = str(compute.name), str(compute.type or "").lower()
    problems = [f"--{flag} has no effect on {name}: leave it out." for flag in _idle_flags(kind, plan)]
    most = getattr(compute, "max_instances", None) if kind == CLUSTER else 1 if kind == INSTANCE else None
    if most is not None and plan.num_nodes > most:
        problems.append(f"--num_nodes={plan.num_nodes}: {name} has at most {most}.")
    if str(compute.provisioning_state or "Succeeded") in ("Failed", "Deleting", "Canceled"):
        problems.append(f"{name} cannot be used: its state is {compute.provisioning_state}.")
    if problems:
        what = f"{name} ({compute.type}{f', {compute.size}' if getattr(compute, 'size', None) else ''})"
        raise PlanError(f"The job cannot run on {what}: {' '.join(problems)}")


def _idle_flags(kind: str, plan: JobPlan) -> list[str]:
    """Returns the flags that a kind of compute does not heed."""
    asked = {
        "instance_type": bool(plan.compute.instance_type) and kind != KUBERNETES,
        "job_tier": bool(plan.compute.job_tier),
        "priority": bool(plan.compute.priority),
    }
    return [name for name, is_idle in asked.items() if is_idle]
