"""The MLflow server behind the stand-in's MLflow routes, a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROCESS = Path(__file__).with_name("mlflow_process.py")
ENDED = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}


@dataclass
class MlflowAnswer:
    """What the server said."""

    status: int
    body: Any


class MlflowServer:
    """A real MLflow server, which does not know AzureML's run ids; this class does.

    Loading MLflow takes about three seconds of processor time, so it happens with the first request.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self._lock = threading.RLock()
        self._mlflow_ids: dict[str, str] = {}
        self._run_names: dict[str, str] = {}

    def start(self) -> None:
        """Starts the process, which listens at once and loads MLflow with the first request."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "mlflow.log"
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(PROCESS), str(self._folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stream, text=True, cwd=self._folder,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
            )  # fmt: skip
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"MLflow does not start: {log.read_text()[-1000:]}")
        self._port = int(line)

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process.kill()
            self._process.wait(10)

    def ask(self, method: str, path: str, body: Any = None) -> MlflowAnswer:
        """Returns the server's answer; the path starts at ``/api``."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            return MlflowAnswer(response.status, json.loads(text or b"{}"))
        except ValueError:
            return MlflowAnswer(response.status, {"error_code": "NOT_JSON", "message": text.decode(errors="replace")})

    def experiment_id(self, name: str) -> str:
        """Returns MLflow's id of an experiment, made if it does not exist."""
        with self._lock:
            created = self.ask("POST", "/api/2.0/mlflow/experiments/create", {"name": name})
            if created.status == 200:
                return str(created.body["experiment_id"])
            found = self.ask("GET", f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={_quoted(name)}")
            return str(found.body["experiment"]["experiment_id"])

    def mlflow_id(self, run: str, *, experiment: str, display_name: str, parent: str | None) -> str:
        """Returns MLflow's id for a job's run, made if it does not exist: MLflow does not take ids from outside."""
        with self._lock:
            if run not in self._mlflow_ids:
                tags = [{"key": "mlflow.parentRunId", "value": parent}] if parent else []
                body = {"experiment_id": self.experiment_id(experiment), "run_name": display_name, "tags": tags}
                created = self.ask("POST", "/api/2.0/mlflow/runs/create", body)
                identifier = str(created.body["run"]["info"]["run_id"])
                self._mlflow_ids[run] = identifier
                self._run_names[identifier] = run
            return self._mlflow_ids[run]

    def run_name(self, mlflow_id: str) -> str:
        """Returns AzureML's id for a run; a run that began in MLflow has the same id in both."""
        return self._run_names.get(mlflow_id, mlflow_id)

    def is_known(self, run: str) -> bool:
        """Returns True if MLflow has a run for this job."""
        return run in self._mlflow_ids

    def last_metric(self, run: str, name: str) -> float | None:
        """Returns the last value of a metric of a job, or None if it was not logged."""
        if not self.is_known(run):
            return None
        metrics = self.get_run(run)["data"].get("metrics", [])
        return next((float(metric["value"]) for metric in metrics if metric["key"] == name), None)

    def get_run(self, run: str) -> Any:
        """Returns what MLflow knows about a run, under MLflow's own id."""
        return self.ask("GET", f"/api/2.0/mlflow/runs/get?run_id={self._mlflow_ids.get(run, run)}").body["run"]

    def end_run(self, run: str, status: str) -> None:
        """Tells MLflow that a job has ended, if it has a run for it."""
        if self.is_known(run) and status in ENDED:
            self.ask("POST", "/api/2.0/mlflow/runs/update", {"run_id": self._mlflow_ids[run], "status": ENDED[status]})


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")
