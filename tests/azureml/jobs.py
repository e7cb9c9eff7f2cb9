"""The queue of submitted jobs: what becomes of them, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.azureml.state import Job, now

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud


class Jobs:
    """Holds submitted jobs until they are executed, cancelled or the test ends."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def submit(self, job: Job) -> None:
        """Takes a new job into the queue."""

    def cancel(self, job: Job) -> None:
        """Ends a job that waits; one that runs is told to end."""
        job.is_cancel_requested = True
        job.status = "Canceled"
        job.ended = now()
