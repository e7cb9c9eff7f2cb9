"""The bodies of requests, whole: what ``--dry_run`` prints. The stand-in's tests compare them with what is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from health_ml.azure.environments import DEFAULT_IMAGE, environment_of
from health_ml.azure.job_body import job_body
from health_ml.azure.sweep_body import iso_duration, seconds_of
from health_ml.errors import PlanError
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.plan import (
    JobPlan,
    PlannedCompute,
    PlannedDataset,
    PlannedLimits,
    PlannedSoftware,
    Provenance,
    pairs_of,
)

CONDA = "dependencies:\n- python=3.11\n- pip:\n  - torch==2.13.0\n"
SOFTWARE = PlannedSoftware(
    "environment.yml", CONDA, runner_version="1.0.0", runner_requirements=("param>=2", "torch>=2.4")
)
PLAN = JobPlan(
    "pkg.Mine",
    ("--model=pkg.Mine", "--max_epochs=3"),
    snapshot_hash="ab",
    experiment="Mine",
    display_name="first try",
    environment_variables=pairs_of({"MINE": "1", "MKL_SERVICE_FORCE_INTEL": "0"}),
    software=SOFTWARE,
    limits=PlannedLimits(5400.0, "400g"),
    tags=pairs_of({"tag": "x"}),
    provenance=Provenance("c0ffee", "main", "https://example.org", True),
)
ENVIRONMENT = environment_of(SOFTWARE).reference


def space(**options: Any) -> Any:
    return build_search_space(FanOutOptions(**options))


def test_a_whole_job() -> None:
    tags = {"tag": "x", "snapshot_hash": "ab", "plan_hash": PLAN.plan_hash, "himl_runner": "1.0.0",
            "git_commit": "c0ffee", "git_branch": "main", "git_remote": "https://example.org",
            "git_dirty": "true"}  # fmt: skip
    assert job_body(PLAN, "gpu") == {
        "jobType": "Command",
        "displayName": "first try",
        "experimentName": "Mine",
        "computeId": "gpu",
        "command": "python .himl_runner/start.py himl-runner --model=pkg.Mine --max_epochs=3",
        "codeId": "snapshot:ab",
        "environmentId": ENVIRONMENT,
        "environmentVariables": {
            "AZUREML_RUN_KILL_SIGNAL_TIMEOUT_SEC": "900",
            "AZUREML_OUTPUT_UPLOAD_TIMEOUT_SEC": "3600",
            "MKL_SERVICE_FORCE_INTEL": "0",
            "RSLEX_DIRECT_VOLUME_MOUNT": "true",
            "MINE": "1",
        },
        "resources": {"instanceCount": 1, "shmSize": "400g"},
        "limits": {"jobLimitsType": "Command", "timeout": "PT1H30M"},
        "inputs": {},
        "outputs": {},
        "tags": tags,
        "properties": {
            "mlflow.source.git.repoURL": "https://example.org",
            "mlflow.source.git.branch": "main",
            "mlflow.source.git.commit": "c0ffee",
            "azureml.git.dirty": "True",
        },
    }


def test_a_whole_search() -> None:
    settings = {
        "sampling": "random", "max_trials": 8, "max_concurrent": 2, "sampling_seed": 5, "primary_metric": "val/loss",
        "goal": "maximize", "early_termination": {"type": "bandit", "slack_factor": 0.1, "evaluation_interval": 2},
    }  # fmt: skip
    sweep = "l_rate=loguniform(1e-5,1e-1) name=a,b depth=1..3 flag=true,false width=quniform(8,24,8)"
    plan = replace(PLAN, search_space=space(sweep=sweep, settings=settings), num_nodes=2)
    body = job_body(plan, "gpu")
    assert body["searchSpace"] == {
        "l_rate": ["loguniform", [pytest.approx(-11.512925), pytest.approx(-2.302585)]],
        "name": ["choice", [["a", "b"]]],
        "depth": ["choice", [[1, 2, 3]]],
        "flag": ["choice", [["true", "false"]]],
        "width": ["choice", [[8, 16, 24]]],
    }
    assert body["samplingAlgorithm"] == {"samplingAlgorithmType": "Random", "seed": 5}
    assert body["objective"] == {"goal": "maximize", "primaryMetric": "val/loss"}
    assert body["limits"] == {
        "jobLimitsType": "Sweep", "maxTotalTrials": 8, "maxConcurrentTrials": 2, "timeout": "PT1H30M",
    }  # fmt: skip
    assert body["earlyTermination"] == {
        "policyType": "Bandit", "evaluationInterval": 2, "delayEvaluation": 0, "slackAmount": 0.0, "slackFactor": 0.1,
    }  # fmt: skip
    trial = body["trial"]
    assert trial["command"].endswith("'--depth=${{search_space.depth}}' '--flag=${{search_space.flag}}' "
                                     "'--width=${{search_space.width}}'")  # fmt: skip
    assert trial["distribution"] == {"distributionType": "Mpi", "processCountPerInstance": 1}
    assert trial["environmentVariables"]["HIML_TRIAL"] == "1"
    assert body["resources"] == trial["resources"] == {"instanceCount": 2, "shmSize": "400g"}
    assert "command" not in body
    assert json.loads(json.dumps(body)) == body


def test_the_shorter_of_two_limits_holds() -> None:
    block = {"parameters": {"random_seed": [1, 2]}, "timeout": "3h", "trial_timeout": "20m"}
    plan = replace(PLAN, search_space=space(fan_out=block))
    limits = job_body(plan, "gpu")["limits"]
    assert (limits["timeout"], limits["trialTimeout"]) == ("PT1H30M", "PT20M")
    assert job_body(replace(plan, limits=PlannedLimits()), "gpu")["limits"]["timeout"] == "PT3H"


def test_an_ordered_range_stays_one_for_a_bayesian_search() -> None:
    settings = {"sampling": "bayesian", "max_trials": 4, "primary_metric": "m"}
    plan = replace(PLAN, search_space=space(sweep="width=quniform(8,24,8) depth=1..3", settings=settings))
    found = job_body(plan, "gpu")["searchSpace"]
    assert found == {"width": ["quniform", [8, 24, 8]], "depth": ["choice", [[1, 2, 3]]]}


def test_seeds_have_a_metric_because_azureml_wants_one() -> None:
    body = job_body(replace(PLAN, search_space=space(different_seeds=3)), "gpu")
    assert body["objective"] == {"goal": "minimize", "primaryMetric": "val/loss"}
    assert body["limits"]["maxTotalTrials"] == 3
    assert body["samplingAlgorithm"] == {"samplingAlgorithmType": "Grid"}


def test_datasets() -> None:
    plan = replace(
        PLAN,
        datasets=(
            PlannedDataset("images"), PlannedDataset("labels@best", is_mounted=True, mountpoint="/mnt/labels"),
            PlannedDataset("azureml://datastores/d/paths/p", "/local"),
        ),
        output_datasets=(PlannedDataset("found:2", is_mounted=True), PlannedDataset("azureml://datastores/d/paths/o")),
    )  # fmt: skip
    body = job_body(plan, "gpu")
    assert body["inputs"] == {
        "INPUT_0": {"jobInputType": "uri_folder", "mode": "Download", "uri": "azureml:images@latest"},
        "INPUT_1": {"jobInputType": "uri_folder", "mode": "ReadOnlyMount", "uri": "azureml:labels@best"},
        "INPUT_2": {"jobInputType": "uri_folder", "mode": "Download", "uri": "azureml://datastores/d/paths/p"},
    }
    assert body["outputs"] == {
        "OUTPUT_0": {
            "jobOutputType": "uri_folder",
            "mode": "ReadWriteMount",
            "assetName": "found",
            "assetVersion": "2",
        },
        "OUTPUT_1": {"jobOutputType": "uri_folder", "mode": "Upload", "uri": "azureml://datastores/d/paths/o"},
    }  # fmt: skip
    assert body["properties"]["AZURE_ML_INPUT_PathOnCompute_INPUT_1"] == "/mnt/labels"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "no blanks"}, "'no blanks', may have letters"),
        ({"limits": PlannedLimits(None, "4 GB")}, "--docker_shm_size=4 GB is no size"),
        ({"limits": PlannedLimits(59.0)}, "59 s is too short"),
        ({"environment_variables": (("AZUREML_RUN_ID", "x"),)}, "sets AZUREML_RUN_ID"),
        ({"compute": PlannedCompute(priority="high")}, "--priority has no effect on a single job"),
        ({"tags": (("n" * 101, "x"),)}, "has a name of more than 100 characters"),
        ({"tags": tuple((f"t{index}", "x") for index in range(50))}, "sets 50 tags, and with ours there may be 50"),
        ({"datasets": (PlannedDataset(local_folder="/x"),)}, "add --azure_datasets"),
        ({"datasets": (PlannedDataset(local_folder="/x", mountpoint="/m"),)}, "--dataset_mountpoints=/m has no effect"),
    ],
)
def test_what_azureml_cannot_do_is_said_before_anything_else(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=r".") as caught:
        job_body(replace(PLAN, **changes), "gpu")
    assert message in str(caught.value)


def test_long_texts_are_shortened_to_what_the_service_takes() -> None:
    body = job_body(replace(PLAN, display_name="n" * 300, tags=(("commandline", "c" * 1500),)), "gpu")
    assert body["displayName"] == "n" * 254 + "…"
    assert body["tags"]["commandline"] == "c" * 999 + "…"


def test_all_problems_at_once() -> None:
    plan = replace(PLAN, experiment="a b", limits=PlannedLimits(None, "x"))
    with pytest.raises(PlanError, match=r"'a b'.*docker_shm_size=x"):
        job_body(plan, "gpu")


@pytest.mark.parametrize(
    ("seconds", "text"), [(60, "PT1M"), (90061, "P1DT1H1M1S"), (86400, "P1D"), (5400, "PT1H30M"), (60.2, "PT1M1S")]
)
def test_durations(seconds: float, text: str) -> None:
    assert iso_duration(seconds) == text
    assert seconds_of(text) == -(-seconds // 1)


# --- environments -----------------------------------------------------------------------------------------------------


def test_the_name_of_an_environment_says_what_is_in_it() -> None:
    one = environment_of(SOFTWARE)
    assert one.name == environment_of(replace(SOFTWARE, conda_env="/elsewhere/environment.yml")).name
    others = [
        replace(SOFTWARE, conda_file=CONDA.replace("2.13.0", "2.12.0")),
        replace(SOFTWARE, base_image="other"),
        replace(SOFTWARE, runner_requirements=("param>=3", "torch>=2.4")),
        replace(SOFTWARE, build_context="docker", build_context_hash="ab"),
        replace(SOFTWARE, build_context="docker", build_context_hash="cd"),
    ]
    assert len({one.name, *(environment_of(other).name for other in others)}) == 6
    assert (one.version, one.image, one.has_runner) == ("1", DEFAULT_IMAGE, False)
    assert one.reference == f"azureml:{one.name}:1"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("AzureML-acpt:3", "azureml:AzureML-acpt:3"),
        ("azureml:mine:2", "azureml:mine:2"),
        ("mine", "azureml:mine@latest"),
        (
            "azureml://registries/azureml/environments/x/versions/4",
            "azureml://registries/azureml/environments/x/versions/4",
        ),
    ],
)
def test_environments_that_exist(text: str, reference: str) -> None:
    assert environment_of(PlannedSoftware(environment=text)).reference == reference


@pytest.mark.parametrize(
    "text", ["a b", "mine@best", "azureml://registries/azureml/environments/x/labels/latest", ":3"]
)
def test_environments_that_nobody_can_mean(text: str) -> None:
    with pytest.raises(PlanError, match=r"names no (environment|version)"):
        environment_of(PlannedSoftware(environment=text))
