from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from health_ml.errors import RunNotFoundError
from health_ml.records.mlflow_store import (
    MAX_NAME_LENGTH,
    MAX_PARAM_LENGTH,
    MlflowRun,
    Point,
    clean_name,
    flatten,
    open_client,
    shortened,
)
from health_ml.records.trouble import diagnose

CREATE_AT_ONCE = """
import os, sys, time
from pathlib import Path
import mlflow
from health_ml.records.mlflow_store import MlflowRun, open_client
folder = Path(sys.argv[1])
open_client(f"sqlite:///{folder / 'warm.db'}")  # so that the children share what MLflow computes once per process
children = []
for index in range(10):
    child = os.fork()
    if child == 0:
        while not (folder / "go").exists():
            time.sleep(0.01)
        client = open_client(f"sqlite:///{folder / 'new' / 'mlflow.db'}")
        MlflowRun.find_or_create(
            client, experiment="Same", himl_run_id="r", record_id=f"r{index}", run_name="n", start_time=1.0
        )
        os._exit(0)
    children.append(child)
(folder / "go").touch()
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


def new_run(store: str, name: str = "r1") -> MlflowRun:
    return MlflowRun.find_or_create(
        open_client(store), experiment="E", himl_run_id=name, record_id=name, run_name=name, start_time=1.0
    )


@pytest.mark.parametrize("name", ["it's", 'it\'s "q"', "a 'b'", "back\\slash"])
def test_folders_with_quotes(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    store = f"sqlite:///{folder / 'mlflow.db'}"
    new_run(store)
    locations = {found.name: found.artifact_location for found in open_client(store).search_experiments()}
    assert locations == {"Default": f"{folder}/mlruns/0", "E": f"{folder}/mlruns/1"}


def test_ten_processes_may_make_store_and_experiment_at_once(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", CREATE_AT_ONCE, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("Creating initial MLflow database tables") == 2
    client = open_client(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("Same")
    assert len(client.search_runs([experiment.experiment_id])) == 10
    assert experiment.artifact_location == str(tmp_path / "new" / "mlruns" / experiment.experiment_id)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"mlflow.db"}


def test_a_store_whose_maker_was_killed_is_made_again(tmp_path: Path, empty_database: Path) -> None:
    half = empty_database.read_bytes()[:8192]
    (tmp_path / ".mlflow.db.new").write_bytes(half)
    assert new_run(f"sqlite:///{tmp_path / 'mlflow.db'}").run_id
    assert not (tmp_path / ".mlflow.db.new").exists()


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("train/loss", "train/loss"),
        ("loss[0]", "loss_0_"),
        ("/a//b/../c/", "a/c"),
        ("../x", "__/x"),
        ("..", "_"),
        ("", "_"),
        ("größe: 1", "größe: 1"),
    ],
)
def test_names_that_mlflow_refuses_are_changed(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_what_is_too_long_ends_in_a_hash() -> None:
    assert len(clean_name("x" * 999)) == MAX_NAME_LENGTH
    assert clean_name("x" * 999) != clean_name("x" * 998)
    assert "… sha256 " in shortened("x" * 7000, MAX_PARAM_LENGTH)
    assert shortened("x" * 6000, MAX_PARAM_LENGTH) == "x" * 6000


def test_nested_values_become_flat() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": {}, "f": [1, "x"], "g": True}) == {
        "a/b": "1",
        "a/c/d": "None",
        "e": "{}",
        "f": '[1, "x"]',
        "g": "True",
    }


def test_every_odd_name_and_value_is_stored(store: str) -> None:
    run = new_run(store)
    values = {
        "long": "z" * 7000,
        "empty": "",
        "odd[name]": 1,
        "x" * 300: 2,
        "../up": 3,
        **{f"p{index}": "y" * 6000 for index in range(150)},
    }
    run.log_params(values)
    run.log_tags({"tag": "t" * 9000, "none": None})
    points = [Point(clean_name(name), value, 1, 1) for name, value in (("a[0]", math.nan), ("b", math.inf), ("c", 1.0))]
    run.log_points(points, is_uncertain=False)
    data = run.client.get_run(run.run_id).data
    assert len(data.params) == len(values)
    assert data.params["long"].startswith("z" * 5000)
    assert len(data.tags["tag"]) == 8000
    assert math.isnan(data.metrics["a_0_"])
    assert run.dropped == []


def test_changed_parameters_of_a_resumed_run_become_tags(store: str) -> None:
    new_run(store).log_params({"l_rate": 0.1, "epochs": 3, "long": "z" * 7000})
    again = new_run(store)
    again.log_params({"l_rate": 0.2, "epochs": 3, "new": 1, "long": "z" * 7000})
    data = again.client.get_run(again.run_id).data
    assert data.params["l_rate"] == "0.1"
    assert data.params["new"] == "1"
    assert {name: value for name, value in data.tags.items() if "changed" in name} == {"himl.changed.l_rate": "0.2"}


def test_values_that_the_store_refuses_do_not_take_others_with_them(store: str) -> None:
    run = new_run(store)
    points = [Point(f"m{index}" if index != 37 else "bad[name]", 1.0, 1, 1) for index in range(100)]
    run.log_points(points, is_uncertain=False)
    assert run.dropped == ["bad[name]"]
    assert len(run.client.get_run(run.run_id).data.metrics) == 99


def test_a_run_that_the_store_refuses_as_a_whole_is_an_error(store: str) -> None:
    run = new_run(store)
    run.client.delete_run(run.run_id)
    points = [Point(f"m{index}", 1.0, 1, 1) for index in range(100)]
    for some in (points, points[:3]):
        with pytest.raises(RunNotFoundError, match="was deleted in MLflow") as info:
            run.log_points(some, is_uncertain=False)
        assert diagnose(info.value).is_permanent
    assert run.dropped == []
    with pytest.raises(RunNotFoundError, match=r"was deleted in MLflow\. Restore it with"):
        MlflowRun.find(run.client, run.run_id)


def test_points_that_are_there_already_are_not_doubled(store: str) -> None:
    run = new_run(store)
    points = [Point("a", value, 5, step) for step, value in enumerate((1.0, math.nan, math.inf, -math.inf))]
    run.log_points(points[:2], is_uncertain=False)
    run.log_points(points, is_uncertain=True)
    run.log_points(points, is_uncertain=True)
    assert [metric.step for metric in run.client.get_metric_history(run.run_id, "a")] == [0, 1, 2, 3]


def test_more_points_than_a_batch_takes(store: str) -> None:
    run = new_run(store)
    run.log_points([Point("a", 1.0, 5, step) for step in range(2500)], is_uncertain=False)
    assert len(run.client.get_metric_history(run.run_id, "a")) == 2500


class Recorder:
    """A client that keeps what it is asked to store."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self.metrics: list[int] = []
        self.tags: dict[str, str] = {}

    def log_batch(self, run_id: str, *, metrics: Sequence[Any] = (), tags: Sequence[Any] = (), **_: Any) -> None:
        self.metrics += [len(metrics)] if metrics else []
        self.tags |= {tag.key: tag.value for tag in tags}


def test_requests_to_azureml_stay_within_its_limits() -> None:
    points = [Point("loss", 1.0, 0, step) for step in range(600)]
    azureml, other = Recorder("azureml://host/path"), Recorder("https://host")
    for client in (azureml, other):
        run = MlflowRun(cast(Any, client), "run")
        run.log_points(points, is_uncertain=False)
        run.log_tags({"n" * 200: "v" * 5000})
    assert azureml.metrics == [250, 250, 100]
    assert other.metrics == [600]
    assert [(len(name), len(value)) for name, value in azureml.tags.items()] == [(100, 1000)]
    assert [(len(name), len(value)) for name, value in other.tags.items()] == [(200, 5000)]
