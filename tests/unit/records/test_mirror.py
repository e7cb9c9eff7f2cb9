from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from health_ml.environment import environment_variables, working_directory
from health_ml.errors import ArgumentsError, BackendError, RunNotFoundError
from health_ml.records.mirror import MLFLOW_ENVIRONMENT, start_mirror
from health_ml.records.mirror_handle import MirrorHandle
from health_ml.records.mirror_loop import MirrorLoop, Patience
from health_ml.records.mirror_state import MirrorSettings, MirrorState
from health_ml.records.reader import get_mlflow_run_id, read_record
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.sync import sync
from health_ml.runner import main
from tests.helpers.flaky_proxy import FlakyProxy
from tests.helpers.http_server import send, serving

IMPATIENT = Patience(poll_seconds=0.05, longest_pause=0.05, unreachable_seconds=3.0)


@pytest.fixture(autouse=True)
def environment_of_the_mirror() -> Iterator[None]:
    with environment_variables(MLFLOW_ENVIRONMENT):
        yield


@contextmanager
def recording(tmp_path: Path, status: RunStatus = RunStatus.FINISHED, attempt: int = 0) -> Iterator[RunRecord]:
    record = RunRecord.create(tmp_path / "outputs" / "r1" / "run", run_id="r1", attempt=attempt)
    yield record
    record.set_status(status, "the end")
    record.close()


def start(record: RunRecord, tmp_path: Path, tracking_uri: str) -> MirrorHandle:
    return start_mirror(
        record.folder,
        tracking_uri=tracking_uri,
        experiment="E",
        run_name="my run",
        tensorboard_folder=tmp_path / "tensorboard",
        project_root=tmp_path,
    )


def loop(record: RunRecord, tmp_path: Path, tracking_uri: str) -> MirrorLoop:
    settings = MirrorSettings(tracking_uri, "E", "my run", str(tmp_path / "tensorboard"))
    return MirrorLoop(record.folder, settings, wait=time.sleep, patience=IMPATIENT)


def steps_in_mlflow(tracking_uri: str, state: MirrorState, name: str = "loss") -> list[int]:
    assert state.mlflow_run_id is not None
    return sorted(metric.step for metric in MlflowClient(tracking_uri).get_metric_history(state.mlflow_run_id, name))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def wait_until_mirrored(record: RunRecord, seconds: float = 120) -> None:
    """Waits until MLflow has every row that the record has now."""
    size = (record.folder / "metrics.jsonl").stat().st_size
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            content = json.loads((record.folder / "mirror.json").read_text())
        except FileNotFoundError:
            content = {}
        if content.get("positions", {}).get("metrics.jsonl") == size:
            return
        time.sleep(0.05)
    raise AssertionError((record.folder / "mirror.log").read_text())


# --- the process -----------------------------------------------------------------------------------------------------


def test_the_whole_record_arrives_in_a_new_store(tmp_path: Path) -> None:
    with recording(tmp_path) as record:
        handle = start(record, tmp_path, "")
        record.write_document("run", {"run_id": "r1", "command_line": ["himl-runner", "--model=X"], "user": "me"})
        record.write_document("git", {"commit": "abc", "branch": "main", "is_dirty": True})
        record.log_hyperparameters({"l_rate": 0.1, "text": "x" * 1000, "nested": {"a": [1]}})
        record.log_tags({"kind": "test"})
        for step in range(1500):
            record.log_metrics({"loss": 1.0 / (step + 1), "odd[name]": math.nan if step == 7 else step}, step=step)
    state = handle.finish(120)
    assert state.is_complete, state
    assert state.tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert "Mirrored to MLflow" in state.message
    client = MlflowClient(state.tracking_uri)
    run = client.get_run(state.mlflow_run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "my run")
    assert run.info.end_time == pytest.approx(read_record(record.folder).status.time * 1000, abs=2)
    assert client.get_experiment(run.info.experiment_id).name == "E"
    assert run.data.params == {"l_rate": "0.1", "text": "x" * 1000, "nested/a": "[1]"}
    expected = {
        "kind": "test",
        "himl.run_id": "r1",
        "himl.status": "FINISHED",
        "himl.command_line": "himl-runner --model=X",
        "himl.git_dirty": "True",
        "mlflow.source.git.commit": "abc",
        "mlflow.user": "me",
    }
    assert {name: run.data.tags.get(name) for name in expected} == expected
    assert steps_in_mlflow(state.tracking_uri, state) == list(range(1500))
    assert steps_in_mlflow(state.tracking_uri, state, "odd_name_") == list(range(1500))
    events = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in events["loss"]] == list(range(1500))
    assert events["loss"][1][1] == pytest.approx(0.5)
    assert math.isnan(events["odd[name]"][7][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mlflow.db",
        "outputs",
        "tensorboard",
    ]
    assert get_mlflow_run_id(record.folder) == state.mlflow_run_id


def test_the_process_steps_aside_and_ctrl_c_does_not_reach_it(tmp_path: Path) -> None:
    with recording(tmp_path) as record:
        handle = start(record, tmp_path, "none")
        record.log_metrics({"loss": 1.0}, step=1)
        process = psutil.Process(handle.process_id)
        deadline = time.monotonic() + 60
        expected = min(19, os.nice(0) + 10)  # the tests themselves may have stepped aside

        def has_stepped_aside() -> bool:
            return process.nice() >= expected and os.getpgid(process.pid) == process.pid

        while not has_stepped_aside() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert has_stepped_aside()
    state = handle.finish(30)
    assert (state.is_complete, state.mlflow_run_id, state.tracking_uri) == (True, None, "none")
    assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 1.0)]}
    assert not (tmp_path / "mlflow.db").exists()


TRAIN_FOREVER = """
import sys, time
from pathlib import Path
from health_ml.records.mirror import start_mirror
from health_ml.records.record import RunRecord
root, tracking_uri = Path(sys.argv[1]), sys.argv[2]
record = RunRecord.create(root / "outputs" / "r1" / "run", run_id="r1")
handle = start_mirror(record.folder, tracking_uri=tracking_uri, experiment="E", run_name="n",
                      tensorboard_folder=root / "tensorboard")
for step in range(10**9):
    record.log_metrics({"loss": step}, step=step)
    print(handle.process_id, flush=True)
    time.sleep(0.01)
"""


def test_a_killed_training_is_killed_in_mlflow_too_and_nothing_is_lost(tmp_path: Path, store: str) -> None:
    command = [sys.executable, "-c", TRAIN_FOREVER, str(tmp_path), store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        mirror = psutil.Process(int(training.stdout.readline()))
        for _ in range(30):
            training.stdout.readline()
        training.send_signal(signal.SIGKILL)
    mirror.wait(120)
    view = read_record(tmp_path / "outputs" / "r1")
    assert view.status.status is RunStatus.KILLED
    assert not view.status.is_derived, "the mirror has written it down"
    run_id = get_mlflow_run_id(view.folder)
    state = MirrorState(True, "", store, run_id)
    assert steps_in_mlflow(store, state) == [row.step for row in view.metrics]
    assert len(scalars(tmp_path / "tensorboard")["loss"]) == len(view.metrics)
    assert MlflowClient(store).get_run(run_id).info.status == "KILLED"


def test_a_server_that_is_down_costs_nothing_but_the_mirror(tmp_path: Path, store: str) -> None:
    with recording(tmp_path, RunStatus.FAILED) as record:
        handle = start(record, tmp_path, "http://127.0.0.1:9")
        for step in range(50):
            record.log_metrics({"loss": step}, step=step)
    started = time.monotonic()
    state = handle.finish(4)
    assert time.monotonic() - started < 12
    assert not state.is_complete
    assert "127.0.0.1:9" in state.message
    command = shlex.split(state.message.partition("Catch up with: himl-runner ")[2])
    with working_directory(Path("/")):  # the advice holds wherever it is followed
        assert main([*command, f"--tracking_uri={store}"]) == 0
    later = sync(record.folder, tracking_uri=store)
    assert later.is_complete, later
    assert steps_in_mlflow(store, later) == list(range(50))
    assert MlflowClient(store).get_run(later.mlflow_run_id).info.status == "FAILED"
    assert len(scalars(tmp_path / "tensorboard")["loss"]) == 50


def test_two_mirrors_of_one_record_do_not_double_it(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        first = start(record, tmp_path, store)
        second = start(record, tmp_path, store)
        record.log_metrics({"loss": 1.0}, step=1)
        wait_until_mirrored(record)
        with pytest.raises(BackendError, match="is at work"):
            sync(record.folder)
    states = [first.finish(120), second.finish(120)]
    assert states[0].is_complete
    assert states[1].is_complete
    assert states[0].mlflow_run_id == states[1].mlflow_run_id
    assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 1.0)]}


def test_a_killed_mirror_is_continued_without_doubles(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        handle = start(record, tmp_path, store)
        record.log_metrics({"loss": 1.0}, step=1)
        wait_until_mirrored(record)
        psutil.Process(handle.process_id).kill()
        record.log_metrics({"loss": 2.0}, step=2)
    assert handle.finish(60).is_complete, "another mirror has taken over"
    mirror_file = record.folder / "mirror.json"
    content = json.loads(mirror_file.read_text())
    content["positions"]["metrics.jsonl"] = 0  # as if it had been killed before it could note what it sent
    mirror_file.write_text(json.dumps(content))
    for _ in range(2):
        state = sync(record.folder)
        assert state.is_complete, state
        assert steps_in_mlflow(store, state) == [1, 2]
        assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 1.0), (2, 2.0)]}


# --- the loop, in this process ---------------------------------------------------------------------------------------


def test_a_real_server_that_stumbles(tmp_path: Path, server: str) -> None:
    with FlakyProxy(server).running() as proxy:
        proxy.troubles = [503, "lost", 429, "lost"]
        with recording(tmp_path) as record:
            record.log_hyperparameters({"l_rate": 0.1})
            record.write_document("config", {"a": 1})
            for step in range(1200):
                record.log_metrics({"loss": step, "nan": math.nan}, step=step)
        state = loop(record, tmp_path, proxy.address).run()
        assert state.is_complete, state
        assert proxy.troubles == []
        assert steps_in_mlflow(server, state) == list(range(1200))
        assert steps_in_mlflow(server, state, "nan") == list(range(1200))
        client = MlflowClient(server)
        assert client.get_run(state.mlflow_run_id).info.status == "FINISHED"
        assert {item.path for item in client.list_artifacts(state.mlflow_run_id, "run")} >= {"run/config.json"}
        proxy.requests.clear()
        assert sync(record.folder).is_complete
        assert not [path for path in proxy.requests if "log-" in path], "nothing was left to send"


def test_a_run_whose_creation_was_answered_by_silence_is_not_made_twice(tmp_path: Path, server: str) -> None:
    with FlakyProxy(server).running() as proxy:
        proxy.part, proxy.troubles = "runs/create", ["lost"]
        with recording(tmp_path) as record:
            record.log_metrics({"loss": 1.0}, step=1)
        settings = MirrorSettings(proxy.address, "Created once", "n", "")
        state = MirrorLoop(record.folder, settings, wait=time.sleep, patience=IMPATIENT).run()
        assert state.is_complete
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("Created once")
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [state.mlflow_run_id]


def test_a_refusal_for_good_ends_the_tries(tmp_path: Path, server: str) -> None:
    with FlakyProxy(server).running() as proxy:
        proxy.part, proxy.troubles = "", [403] * 100
        with recording(tmp_path) as record:
            record.log_metrics({"loss": 1.0}, step=1)
        state = loop(record, tmp_path, proxy.address).run()
        assert not state.is_complete
        assert "403" in state.message
        assert len(proxy.requests) < 5


def test_a_resumed_attempt_continues_the_same_run(tmp_path: Path, store: str) -> None:
    with recording(tmp_path, RunStatus.PREEMPTED) as record:
        record.log_hyperparameters({"l_rate": 0.1})
        record.log_metrics({"loss": 1.0}, step=1)
    first = loop(record, tmp_path, store).run()
    assert MlflowClient(store).get_run(first.mlflow_run_id).info.status == "KILLED"
    with recording(tmp_path, attempt=1) as record:
        again = loop(record, tmp_path, store)
        again.push()
        assert MlflowClient(store).get_run(first.mlflow_run_id).info.status == "RUNNING"
        record.log_hyperparameters({"l_rate": 0.2})
        record.log_metrics({"loss": 2.0}, step=2)
    second = again.run()
    assert second.mlflow_run_id == first.mlflow_run_id
    run = MlflowClient(store).get_run(first.mlflow_run_id)
    assert (run.info.status, run.data.tags["himl.status"], run.data.tags["himl.attempt"]) == ("FINISHED",) * 2 + ("1",)
    assert run.data.tags["himl.changed.l_rate"] == "0.2"
    assert steps_in_mlflow(store, second) == [1, 2]
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["loss"]] == [1, 2]


def test_a_run_that_goes_on_can_be_synchronised(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 1.0}, step=1)
        state = sync(tmp_path / "outputs" / "r1", tracking_uri=store)
        assert (state.is_complete, state.message) == (False, f"Mirrored what there is so far to MLflow at {store}.")
    state = sync(record.folder)
    assert state.is_complete
    assert steps_in_mlflow(store, state) == [1]


def test_a_run_of_somebody_else_is_used_but_not_closed(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = MlflowClient(store).create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 1.0}, step=1)
    state = loop(record, tmp_path, store).run()
    assert state.mlflow_run_id == outer.info.run_id
    run = MlflowClient(store).get_run(outer.info.run_id)
    assert (run.info.status, run.data.metrics) == ("RUNNING", {"loss": 1.0})


def test_a_full_disk_stops_neither_mlflow_nor_the_loop(tmp_path: Path, store: str) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 1.0}, step=1)
    state = loop(record, tmp_path, store).run()
    assert not state.is_complete
    assert "TensorBoard" in state.message
    assert steps_in_mlflow(store, state) == [1]


def test_the_record_keeps_no_password_and_sync_asks_for_it(tmp_path: Path) -> None:
    with recording(tmp_path) as record:
        handle = start(record, tmp_path, "http://me:hunter2@127.0.0.1:9")
    state = handle.finish(2)
    assert "hunter2" not in f"{state}"
    for path in record.folder.iterdir():
        assert "hunter2" not in path.read_text(), path
    content = json.loads((record.folder / "mirror.json").read_text())
    assert content["settings"]["tracking_uri"] == "http://127.0.0.1:9"
    content["settings"]["tracking_uri"] = "postgresql://***@host/db"
    (record.folder / "mirror.json").write_text(json.dumps(content))
    with pytest.raises(ArgumentsError, match=r"postgresql://\*\*\*@host/db, .*Set MLFLOW_TRACKING_URI"):
        sync(record.folder)


def test_what_a_server_gives_away_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_STORE_PASSWORD", "correct-horse-7")

    def give_away(handler: BaseHTTPRequestHandler, index: int) -> None:
        text = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "there is no user with correct-horse-7"}'
        send(handler, text, status=400)

    with serving(give_away) as server, recording(tmp_path) as record:
        record.log_metrics({"loss": 1.0}, step=1)
        handle = start(record, tmp_path, server.url)
        record.set_status(RunStatus.FINISHED)
        state = handle.finish(120)
    assert "there is no user with ***" in state.message
    for path in record.folder.iterdir():
        assert "correct-horse-7" not in path.read_text(), path


def test_user_and_password_reach_a_server(tmp_path: Path, server: str) -> None:
    with FlakyProxy(server).running() as proxy:
        with recording(tmp_path) as record:
            record.log_metrics({"loss": 1.0}, step=1)
            handle = start(record, tmp_path, proxy.address.replace("//", "//me:p%40ss@"))
        assert handle.finish(120).is_complete
        assert proxy.credentials == {"me:p@ss"}


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="There is no record"):
        sync(tmp_path)
    with recording(tmp_path) as record, pytest.raises(ArgumentsError, match="no longer writes to folders"):
        start(record, tmp_path, "mlruns")
