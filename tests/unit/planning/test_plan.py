from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from health_ml.errors import PlanError
from health_ml.planning.duration import parse_duration
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.plan import JobPlan, PlannedDataset, PlannedLimits, PlannedTrials, Provenance, pairs_of
from health_ml.planning.provenance import read_git_state
from tests.helpers.git_reference import git


def full_plan() -> JobPlan:
    return JobPlan(
        model="HelloWorld",
        argv=("--model=HelloWorld", "--tag=it's a $HOME", "--max_epochs=3"),
        snapshot_hash="ab" * 32,
        experiment="Ünï",
        display_name="name",
        seed=42,
        datasets=(PlannedDataset("images", "/data/images", is_mounted=True), PlannedDataset(local_folder="/data")),
        environment_variables=pairs_of({"B": "2", "A": "1"}),
        conda_env="environment.yml",
        num_nodes=2,
        limits=PlannedLimits(5400.5, "400g"),
        tags=pairs_of({"tag": "x"}),
        search_space=build_search_space(
            FanOutOptions(
                sweep="l_rate=loguniform(1e-5,1e-1) width=quniform(8,64,8) name=a,b depth=1..3",
                settings={
                    "sampling": "bayesian",
                    "max_trials": 20,
                    "primary_metric": "val/loss",
                    "early_termination": {"type": "bandit", "slack_factor": 0.1},
                },
            )
        ),
        trials=PlannedTrials(is_failing_fast=True, max_num_gpus=2, tracking_uri="none"),
        provenance=Provenance("c0ffee", "main", "https://example.org", True, "ab", ("new.py",)),
    )


@pytest.mark.parametrize("plan", [full_plan(), JobPlan("M", ())])
def test_json_and_back_is_equal(plan: JobPlan) -> None:
    again = JobPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.plan_hash == plan.plan_hash
    assert JobPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_hash_is_the_same_everywhere() -> None:
    assert JobPlan("M", ("--a",)).plan_hash == "a38170964647833cb889d7f74fa7e838ec9b36292500a310a23362eff9b028f2"


def test_equal_plans_have_equal_hashes() -> None:
    one, other = (JobPlan("M", (), limits=PlannedLimits(seconds)) for seconds in (60, 60.0))
    assert one == other
    assert one.plan_hash == other.plan_hash


def test_every_field_changes_the_hash() -> None:
    plan = full_plan()
    changes: dict[str, Any] = {
        "model": "Other",
        "argv": ("--model=HelloWorld",),
        "snapshot_hash": "cd",
        "experiment": "e",
        "display_name": "n",
        "seed": 0,
        "datasets": (),
        "environment_variables": (),
        "conda_env": "",
        "num_nodes": 1,
        "limits": PlannedLimits(),
        "tags": (),
        "search_space": None,
        "trials": PlannedTrials(),
        "provenance": None,
    }
    assert set(changes) == set(plan.__dataclass_fields__)
    hashes = {replace(plan, **{name: value}).plan_hash for name, value in changes.items()}
    assert len(hashes | {plan.plan_hash}) == len(changes) + 1


def test_order_of_variables_does_not_matter() -> None:
    assert pairs_of({"B": "2", "A": "1"}) == pairs_of({"A": "1", "B": "2"})
    assert full_plan().environment == {"A": "1", "B": "2"}


def test_plan_is_frozen() -> None:
    plan = full_plan()
    with pytest.raises(FrozenInstanceError, match="seed"):
        plan.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2; this himl-runner reads version 1"),
        ({"argv": "--model=x"}, "'--model=x' is no list of texts"),
        ({"unknown": 1}, "unexpected keyword argument 'unknown'"),
        ({"limits": {"days": 1}}, "unexpected keyword argument 'days'"),
        ({"tags": None}, "cannot be read"),
        ({"search_space": {}}, "A search space cannot be read"),
    ],
)
def test_damaged_plan_is_refused(change: dict[str, Any], message: str) -> None:
    values = {**full_plan().to_json(), **change}
    with pytest.raises(PlanError, match=message):
        JobPlan.from_json(values)


def test_plan_that_lacks_an_entry_is_refused() -> None:
    values = full_plan().to_json()
    del values["argv"]
    with pytest.raises(PlanError, match=r"KeyError\('argv'\)"):
        JobPlan.from_json(values)


def test_provenance_of_a_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "a").write_text("2")
    (tmp_path / "b").write_text("")
    state = read_git_state(tmp_path)
    assert state is not None
    found = Provenance.of(state)
    assert (found.branch, found.is_dirty, found.untracked, found.remote) == ("trunk", True, ("b",), None)
    assert found.commit == git(tmp_path, "rev-parse", "HEAD").decode().strip()
    assert len(found.patch_sha256) == 64


# --- durations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3.5h", 12600),
        ("2d", 172800),
        ("1h30m", 5400),
        ("90s", 90),
        ("1d 2h 3m 4s", 93784),
        (" .5H ", 1800),
        ("45m", 2700),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90", "'90' cannot be read: 90 has no unit"),
        ("1h30", "30 has no unit"),
        ("", "The duration is empty"),
        ("h", "cannot be read from 'h' on"),
        ("1w", "the unit 'w' is no unit of time"),
        ("30m1h", "the unit 'h' comes too late or twice"),
        ("1h1h", "the unit 'h' comes too late or twice"),
        ("-1h", "cannot be read from '-1h' on"),
        ("0s", "'0s' is no time at all"),
        ("1,5h", "has no unit"),
        ("1e3s", "the unit 'e' is no unit of time"),
    ],
)
def test_what_is_no_duration(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=f"{message}.*like 45m, 3.5h, 2d or 1h30m"):
        parse_duration(text)
