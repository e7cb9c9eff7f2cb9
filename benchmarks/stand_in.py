"""The tests' stand-in for AzureML in a process of its own, so that nothing that the service does counts as ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from health_ml.azure.client import WorkspaceName
from tests.azureml.service import start_stand_in

END_SECONDS = 30
CONTROL_PLANE = "management.azure.com/*"


@dataclass
class StandIn:
    """A stand-in that runs in another process.

    :param config: What goes into ``config.json``.
    :param environment: The variables with which a process takes it for Azure.
    :param process: Its process. It answers each line with the number of requests to the control plane so far.
    """

    config: dict[str, str]
    environment: dict[str, str]
    process: subprocess.Popen[str]

    @property
    def workspace(self) -> WorkspaceName:
        """The workspace."""
        return WorkspaceName(*(self.config[key] for key in ("subscription_id", "resource_group", "workspace_name")))

    @property
    def requests(self) -> int:
        """How many requests to the control plane there were."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("requests", file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@contextmanager
def running_stand_in() -> Iterator[StandIn]:
    """Runs a stand-in while the body runs."""
    command = [sys.executable, "-m", "benchmarks.stand_in"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield StandIn(**json.loads(process.stdout.readline()), process=process)
        finally:
            process.stdin.close()  # that ends it
            process.wait(END_SECONDS)


def main() -> None:
    """Runs the stand-in until the standard input ends."""
    service, folder = start_stand_in()
    try:
        print(json.dumps({"config": service.config, "environment": service.environment}), flush=True)
        for _ in sys.stdin:
            print(len(service.received(pattern=CONTROL_PLANE)), flush=True)
    finally:
        service.stop()
        folder.cleanup()


if __name__ == "__main__":
    main()
