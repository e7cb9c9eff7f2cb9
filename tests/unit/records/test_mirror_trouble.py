"""A mirror whose store makes trouble: the record stays complete, nothing is doubled, and the user is told once."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from health_ml.environment import environment_variables
from health_ml.errors import ArgumentsError, OutputError
from health_ml.records.mirror import MLFLOW_ENVIRONMENT, start_mirror
from health_ml.records.mirror_handle import MirrorHandle
from health_ml.records.mirror_loop import MirrorLoop, Patience
from health_ml.records.mirror_state import MirrorProgress, MirrorSettings
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.sync import sync
from health_ml.runner import main
from tests.helpers.disk import largest_file, read_only
from tests.helpers.flaky_proxy import FlakyProxy
from tests.helpers.http_server import send, serving

IMPATIENT = Patience(poll_seconds=0.05, longest_pause=0.05, unreachable_seconds=1.0)


@pytest.fixture(autouse=True)
def environment_of_the_mirror() -> Iterator[None]:
    with environment_variables(MLFLOW_ENVIRONMENT):
        yield


@contextmanager
def recording(folder: Path, *, run_id: str = "r1", status: RunStatus = RunStatus.FINISHED) -> Iterator[RunRecord]:
    record = RunRecord.create(folder / "outputs" / run_id / "run", run_id=run_id)
    yield record
    record.set_status(status)
    record.close()


def loop(
    record: RunRecord,
    tracking_uri: str,
    *,
    patience: Patience = IMPATIENT,
    tell: Callable[[str], None] | None = None,
    experiment: str = "E",
) -> MirrorLoop:
    settings = MirrorSettings(tracking_uri, experiment, "my run", "")
    return MirrorLoop(record.folder, settings, wait=time.sleep, patience=patience, tell=tell)


def start(record: RunRecord, tracking_uri: str) -> MirrorHandle:
    return start_mirror(
        record.folder, tracking_uri=tracking_uri, experiment="E", run_name="my run", tensorboard_folder=None
    )


def push_for(mirror: MirrorLoop, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        mirror.push()
        time.sleep(0.02)


def steps(tracking_uri: str, run_id: str | None, name: str = "loss") -> list[int]:
    assert run_id is not None
    return [metric.step for metric in MlflowClient(tracking_uri).get_metric_history(run_id, name)]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_refusal_is_told_at_once_and_asked_once_more_at_the_end(tmp_path: Path, server: str) -> None:
    told: list[str] = []
    with FlakyProxy(server).running() as proxy:
        proxy.part, proxy.troubles = "", [401]
        with recording(tmp_path) as record:
            mirror = loop(record, proxy.address, tell=told.append)
            for step in range(5):
                record.log_metrics({"loss": step}, step=step)
                push_for(mirror, 0.2)
            assert len(proxy.requests) == 1, "who asks again and again may be locked out"
        (message,) = told
        assert "(401 Unauthorized). Set MLFLOW_TRACKING_USERNAME" in message
        assert "The training goes on and its record is complete" in message
        state = mirror.run()
    assert state.is_complete, "somebody has corrected it meanwhile"
    assert steps(server, state.mlflow_run_id) == list(range(5))


def test_a_refusal_of_credentials_reaches_the_user_from_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handler: BaseHTTPRequestHandler, index: int) -> None:
        send(handler, b"no", status=403)

    with serving(refuse) as server, caplog.at_level(logging.WARNING):
        with recording(tmp_path) as record:
            handle = start(record, server.url)
            wait_for(lambda: "403 Forbidden" in caplog.text)
            record.log_metrics({"loss": 1.0}, step=1)
        began = time.monotonic()
        state = handle.finish(60)
        assert time.monotonic() - began < 4
        assert len(server.requests) == 2
    assert caplog.text.count("403 Forbidden") == 1, "told once"
    assert "lacks its last 1 row of metrics and how it ended" in state.message
    assert "Ask its owner for permission" in state.message
    assert "himl-runner --sync=r1" in state.message


# --- down ------------------------------------------------------------------------------------------------------------


def test_a_server_that_comes_back_gets_everything_and_the_user_was_told_once(tmp_path: Path, server: str) -> None:
    told: list[str] = []
    patience = Patience(poll_seconds=0.05, longest_pause=0.05, tell_seconds=0.0)
    proxy = FlakyProxy(server)
    with recording(tmp_path) as record:
        with proxy.running():
            mirror = loop(record, proxy.address, patience=patience, tell=told.append)
            record.log_metrics({"loss": 0.0}, step=0)
            mirror.push()
        for step in range(1, 20):
            record.log_metrics({"loss": float(step)}, step=step)
            mirror.push()
            time.sleep(0.01)
        with proxy.running():
            push_for(mirror, 1.0)
            run_id = MirrorProgress.load(record.folder).mlflow_run_id
            assert steps(server, run_id) == list(range(20)), "before the run ends"
            proxy.troubles = ["half", 503, "lost"]
            for step in (20, 21, 22):
                record.log_metrics({"loss": float(step)}, step=step)
                push_for(mirror, 0.3)
            assert proxy.troubles == []
    with proxy.running():
        assert mirror.run().is_complete
    assert steps(server, run_id) == list(range(23))
    (message,) = told
    assert "nobody answers there (connection refused)" in message


def test_a_server_that_never_answered_costs_one_more_try(tmp_path: Path) -> None:
    with recording(tmp_path) as record:
        mirror = loop(record, "http://127.0.0.1:9", patience=Patience(longest_pause=0.05))
        record.log_metrics({"loss": 0.0}, step=0)
        push_for(mirror, 0.5)
    began = time.monotonic()
    state = mirror.run()
    assert time.monotonic() - began < 1
    assert "connection refused" in state.message
    assert not state.is_complete


def test_a_server_that_takes_connections_and_never_answers_costs_seconds(tmp_path: Path) -> None:
    is_over = threading.Event()

    def hang(handler: BaseHTTPRequestHandler, index: int) -> None:
        is_over.wait(60)

    with serving(hang) as server:
        try:
            with recording(tmp_path) as record, environment_variables({"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}):
                handle = start(record, server.url)
                record.log_metrics({"loss": 0.0}, step=0)
                wait_for(lambda: MirrorProgress.load(record.folder).trouble)
            began = time.monotonic()
            state = handle.finish(60, silent_seconds=0.5)
            assert time.monotonic() - began < 4
        finally:
            is_over.set()
    assert "no answer in time" in state.message
    assert "lacks its last 1 row of metrics and how it ended" in state.message


def test_a_run_that_was_told_to_stop_does_not_wait_long(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("health_ml.records.mirror_handle._SECONDS_OF_STOPPED", 1.0)
    with FlakyProxy(server).running() as proxy:
        with recording(tmp_path, status=RunStatus.PREEMPTED) as record:
            handle = start(record, proxy.address)
            wait_for(lambda: MirrorProgress.load(record.folder).has_answered)
            proxy.troubles = [503] * 1000
            record.log_metrics({"loss": 0.0}, step=0)
        began = time.monotonic()
        state = handle.finish(600)
        assert time.monotonic() - began < 7
    assert "503 Service Unavailable" in state.message


def test_a_run_that_was_told_to_stop_is_not_held_up_by_a_server_that_stops_answering(tmp_path: Path) -> None:
    """The mirror is in a request that takes longer than all that the run has."""
    is_over, is_asked = threading.Event(), threading.Event()

    def hang(handler: BaseHTTPRequestHandler, index: int) -> None:
        is_asked.set()
        is_over.wait(60)

    with serving(hang) as server:
        try:
            with recording(tmp_path, status=RunStatus.PREEMPTED) as record:
                handle = start(record, server.url)
                assert is_asked.wait(30)
            began = time.monotonic()
            state = handle.finish(60)
            assert 7 < time.monotonic() - began < 11
        finally:
            is_over.set()
    assert "lacks how it ended" in state.message


def test_a_mirror_that_was_killed_is_replaced_at_the_end(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        handle = start(record, store)
        record.log_metrics({"loss": 0.0}, step=0)
        process = psutil.Process(handle.process_id)
        wait_for(lambda: MirrorProgress.load(record.folder).positions.get("metrics.jsonl"))
        process.send_signal(signal.SIGKILL)
        record.log_metrics({"loss": 1.0}, step=1)
    state = handle.finish(60)
    assert state.is_complete, state
    assert steps(store, state.mlflow_run_id) == [0, 1]


# --- slow, and much to carry -----------------------------------------------------------------------------------------


def test_asked_to_send_less_the_mirror_does_not_ask_what_is_there(tmp_path: Path, server: str) -> None:
    with FlakyProxy(server).running() as proxy:
        with recording(tmp_path) as record:
            record.log_metrics({f"m{index}": 1.0 for index in range(50)}, step=0)
        proxy.troubles = [429, 429]
        state = loop(record, proxy.address).run()
        assert state.is_complete
        assert proxy.troubles == []
        assert not [path for path in proxy.requests if "get-history" in path]


def test_a_thousand_metrics_per_step(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        for step in range(5):
            record.log_metrics({f"layer{index}/[norm]": step / 3 for index in range(1200)}, step=step)
    state = loop(record, store).run()
    assert state.is_complete
    database = sqlite3.connect(tmp_path / "mlflow.db")
    assert database.execute("SELECT count(*), count(DISTINCT key) FROM metrics").fetchone() == (6000, 1200)
    database.close()


def test_a_record_that_cannot_be_written_is_named(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 0.5}, step=0)
    run_folder = record.folder.parent
    advice = f"Make {run_folder} writable, or copy it to where you can write and give --output_to"
    with read_only(run_folder), pytest.raises(OutputError, match="Cannot note how far the run is") as caught:
        sync(record.folder, tracking_uri=store)
    assert advice in str(caught.value)
    assert sync(record.folder, tracking_uri=store).is_complete


def test_synchronising_twice_adds_nothing(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        record.log_hyperparameters({"a": 1})
        for step in range(3):
            record.log_metrics({"loss": float("nan"), "inf": float("-inf"), "acc": 0.5}, step=step)
    database = sqlite3.connect(tmp_path / "mlflow.db")

    def rows() -> list[tuple[int]]:
        tables = ("runs", "metrics", "params", "tags", "experiments")
        return [database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]

    sync(record.folder, tracking_uri=store)
    before = rows()
    assert before[1] == (9,)
    sync(record.folder)
    assert rows() == before
    (record.folder / "mirror.json").write_text(
        (record.folder / "mirror.json").read_text().replace(f'"tracking_uri": "{store}"', '"tracking_uri": "http://x"')
    )
    sync(record.folder, tracking_uri=store)  # as if another store had been tried in between
    database.close()
    database = sqlite3.connect(tmp_path / "mlflow.db")
    assert rows() == before
    database.close()


# --- the store -------------------------------------------------------------------------------------------------------


def test_two_runs_of_the_same_name_stay_two(tmp_path: Path, store: str) -> None:
    """Two machines that share a server may start a model in the same second."""
    states = []
    for machine in ("a", "b"):
        with recording(tmp_path / machine) as record:
            record.log_metrics({"loss": 1.0}, step=1)
        states.append(loop(record, store).run())
    assert states[0].mlflow_run_id != states[1].mlflow_run_id


def test_a_run_that_was_deleted_meanwhile_loses_nothing_when_it_is_restored(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 0.0}, step=0)
        mirror = loop(record, store)
        mirror.push()
        run_id = MirrorProgress.load(record.folder).mlflow_run_id
        MlflowClient(store).delete_run(run_id)
        record.log_metrics({"loss": 1.0}, step=1)
    state = mirror.run()
    assert not state.is_complete
    assert f"was deleted in MLflow. Restore it with: mlflow runs restore --run-id {run_id}" in state.message
    MlflowClient(store).restore_run(run_id)
    assert sync(record.folder).is_complete
    assert steps(store, run_id) == [0, 1]


def test_an_experiment_that_was_deleted(tmp_path: Path, store: str) -> None:
    client = MlflowClient(store)
    experiment = client.create_experiment("Gone")
    client.delete_experiment(experiment)
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 0.0}, step=0)
    state = loop(record, store, experiment="Gone").run()
    assert "the experiment 'Gone' was deleted in MLflow. Restore it with: mlflow experiments restore" in state.message
    client.restore_experiment(experiment)
    assert sync(record.folder).is_complete


def test_files_that_the_server_cannot_store_are_named_and_carried_over_later(tmp_path: Path, server: str) -> None:
    with FlakyProxy(server).running() as proxy:
        proxy.part, proxy.troubles = "mlflow-artifacts", [500] * 6
        with recording(tmp_path) as record:
            record.write_document("config", {"a": 1})
            record.log_metrics({"loss": 0.0}, step=0)
        state = loop(record, proxy.address).run()
        assert not state.is_complete
        assert "has the metrics, but not the files run.json, config.json" in state.message
        assert steps(server, state.mlflow_run_id) == [0]
        proxy.troubles = []
        assert sync(record.folder).is_complete
        files = MlflowClient(server).list_artifacts(state.mlflow_run_id, "run")
        assert {file.path for file in files} == {"run/run.json", "run/config.json"}
        proxy.requests.clear()
        assert sync(record.folder).is_complete
        assert not [path for path in proxy.requests if "artifacts" in path or "log-" in path]


def test_a_locked_database_is_waited_for(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 0.0}, step=0)
        mirror = loop(record, f"{store}?timeout=0.1")
        other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        push_for(mirror, 0.3)
        assert "locked the database" in MirrorProgress.load(record.folder).trouble
        other.execute("ROLLBACK")
        other.close()
    state = mirror.run()
    assert state.is_complete
    assert steps(store, state.mlflow_run_id) == [0]


def test_a_full_disk_of_the_store_keeps_what_there_is_and_the_rest_follows(tmp_path: Path, store: str) -> None:
    with recording(tmp_path) as record:
        for step in range(3000):
            record.log_metrics({"loss": float(step)}, step=step)
    with largest_file((tmp_path / "mlflow.db").stat().st_size + 150_000):
        state = loop(record, store).run()
    assert not state.is_complete
    assert "the disk of the database takes nothing more" in state.message
    assert sync(record.folder).is_complete
    assert steps(store, state.mlflow_run_id) == list(range(3000))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_where_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with recording(tmp_path) as record:
        record.log_metrics({"loss": 0.0}, step=0)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["--sync=r1", "--output_to=other"]) == 2
    error = capsys.readouterr().err
    assert f"There is no run 'r1' in --output_to={tmp_path / 'other'}" in error
    assert f"There is one in {tmp_path / 'outputs'}" in error
    assert main(["--sync=r2"]) == 2
    assert "There is no run 'r2'" in capsys.readouterr().err
    with pytest.raises(ArgumentsError, match="nothing to carry a run over to"):
        sync(record.folder, tracking_uri="none")
