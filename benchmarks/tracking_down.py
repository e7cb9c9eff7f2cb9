"""Time of one training step, all logged, while MLflow is down, slow, or flooded, against a logger that does nothing.

The last row is what a dead server costs at the end of a run: the time until the mirror gives up.
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.harness import REPOSITORY, Row
from benchmarks.step_time import NoLogger, TimedModel, seconds_per_step, train
from health_ml.records.mirror import start_mirror
from health_ml.records.mirror_handle import MirrorHandle
from health_ml.records.record import RunRecord, RunStatus
from health_ml.training.loggers.run_logger import RunLogger

REPETITIONS = 5
WIDE_REPETITIONS = 3
SLOW_SECONDS = 5.0
WIDE = 1000
WIDE_STEPS = 30
LOADING_SECONDS = 8.0
DEAD_SERVER = "http://127.0.0.1:9"

EXPERIMENT = {"experiment": {"experiment_id": "1", "name": "benchmark", "lifecycle_stage": "active"}}
RUN = {"run": {"info": {"run_id": "1", "run_uuid": "1", "status": "RUNNING", "lifecycle_stage": "active"}}}
ANSWERS = {"get-by-name": EXPERIMENT, "runs/search": {"runs": []}, "runs/create": RUN, "runs/get": RUN}


class SlowHandler(BaseHTTPRequestHandler):
    """Answers what a mirror asks an MLflow server, after some seconds."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(SLOW_SECONDS)
        found = [answer for part, answer in ANSWERS.items() if part in self.path]
        body = json.dumps(found[0] if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def slow_server() -> Iterator[str]:
    """Gives the address of a slow server, in a process of its own so that it takes nothing from the training."""
    command = [sys.executable, "-m", "benchmarks.tracking_down"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class WideModel(LightningModule):
    """Logs a thousand metrics in every step, and notes how long the steps take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(256, 256)
        self.begin = 0.0
        self.seconds_per_step = 0.0

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Returns the loss."""
        if batch_index == 2:
            self.begin = time.perf_counter()
        loss = self.layer(batch[0]).square().mean()
        self.log_dict({f"layer{index}/norm": index / (batch_index + 1) for index in range(WIDE)})
        return loss

    def on_train_epoch_end(self) -> None:
        """Notes the time per step."""
        self.seconds_per_step = (time.perf_counter() - self.begin) / (WIDE_STEPS - 2)

    configure_optimizers = TimedModel.configure_optimizers


def seconds_per_wide_step(logger: NoLogger | RunLogger, folder: Path) -> float:
    """Returns the time per step of a short training with a thousand metrics per step."""
    model = WideModel()
    train(model, TensorDataset(torch.rand(WIDE_STEPS * 8, 256)), logger, folder)
    return model.seconds_per_step


@contextmanager
def mirrored_record(folder: Path, tracking_uri: str) -> Iterator[tuple[RunRecord, MirrorHandle]]:
    """Gives a record with a mirror that has had the time to load MLflow and to meet its trouble."""
    record = RunRecord.create(folder / "run", run_id="benchmark")
    mirror = start_mirror(
        record.folder,
        tracking_uri=tracking_uri,
        experiment="benchmark",
        run_name="benchmark",
        tensorboard_folder=folder / "tensorboard",
        project_root=folder,
    )
    time.sleep(LOADING_SECONDS)
    try:
        yield record, mirror
    finally:
        record.set_status(RunStatus.FINISHED)
        record.close()


def compare(name: str, folder: Path, tracking_uri: str, *, target: str) -> tuple[Row, float]:
    """Returns a row for a store, and the seconds that the mirror took to give up or to catch up."""
    measure = seconds_per_wide_step if name.startswith(str(WIDE)) else seconds_per_step
    folder.mkdir()
    with_record, with_nothing = [], []
    with mirrored_record(folder, tracking_uri) as (record, mirror):
        for _ in range(WIDE_REPETITIONS if measure is seconds_per_wide_step else REPETITIONS):
            with_nothing.append(measure(NoLogger(), folder))
            with_record.append(measure(RunLogger(folder / "lightning", record=record), folder))
    begin = time.monotonic()
    state = mirror.finish(5.0)
    seconds = time.monotonic() - begin
    print(f"{name}: end after {seconds:.1f} s. {state.message}", file=sys.stderr)
    value, baseline = statistics.median(with_record), statistics.median(with_nothing)
    return Row(name, value * 1e3, baseline * 1e3, value / baseline, target, "ms"), seconds


def main() -> list[Row]:
    """Returns a row for each kind of trouble, and one for the end of a run."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        seconds_per_step(NoLogger(), folder)
        dead, seconds = compare("step, MLflow is down", folder / "dead", DEAD_SERVER, target="ratio <= 1.05")
        with slow_server() as address:
            slow, _ = compare("step, MLflow answers after 5 s", folder / "slow", address, target="ratio <= 1.05")
        wide, _ = compare(f"{WIDE} metrics per step", folder / "wide", "", target="ratio <= 1.2")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    end = Row("end of a run, MLflow is down", seconds, None, None, "value < 3")
    return [dead, slow, wide, end]


def serve() -> None:
    """Serves slowly until the process is ended; prints the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
