"""From a command line to the body that the service receives, compared field by field, and to a job that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from health_ml.azure.job_body import DEFAULT_VARIABLES
from health_ml.errors import EXIT_USAGE
from health_ml.planning.plan import JobPlan
from health_ml.testing import Invocation, invoke
from tests.azureml.service import AzureML
from tests.azureml.state import Job
from tests.azureml.test_downloads import add_job

CONTAINER = """
import health_ml
from health_ml.configs.hello_world import HelloWorld


class Small(HelloWorld):
    def __init__(self):
        super().__init__()
        self.max_epochs = 1

    def setup(self):
        print("the runner is in", health_ml.__file__, flush=True)

    def get_additional_environment_variables(self):
        return {"SMALL": "a value, 'quoted' $HOME"}

    def get_additional_aml_run_tags(self):
        return {"colour": "blue"}
"""
ENVIRONMENT = "dependencies:\n- python=3.11\n- pip:\n  - torch==2.13.0\n"

Himl = Callable[..., Invocation]


@pytest.fixture
def project(project: Path) -> Path:
    """Returns a fresh project with a container, an environment and the workspace's config.json."""
    (project / "small.py").write_text(CONTAINER)
    (project / "environment.yml").write_text(ENVIRONMENT)
    return project


@pytest.fixture
def himl(project: Path) -> Himl:
    def run(*arguments: str) -> Invocation:
        return invoke(["--model=small.Small", "--cluster=gpu", *arguments], folder=project)

    return run


def submitted(run: Invocation, azureml: AzureML) -> Job:
    assert run.exit_code == 0, run.stderr
    match = re.match(r"Submitted run (\S+) to azureml\.\n  page      (https://\S+)\n", run.stdout)
    assert match, run.stdout
    return azureml.state.jobs[match[1]]


def plan_of(himl: Himl, *arguments: str) -> JobPlan:
    printed = himl(*arguments, "--print_plan=json")
    assert printed.exit_code == 0, printed.stderr
    return JobPlan.from_json(json.loads(printed.stdout))


def rendered(himl: Himl, *arguments: str) -> Any:
    shown = himl(*arguments, "--dry_run")
    assert shown.exit_code == 0, shown.stderr
    assert "git repository" not in shown.stderr
    return json.loads(shown.stdout.partition("What would be asked for:\n")[2])["request"]


def without_ids(body: dict[str, Any], azureml: AzureML) -> dict[str, Any]:
    """Returns a received body with what only the service knows as it stands in a rendered one."""
    body = json.loads(json.dumps(body))
    prefix = azureml.workspace.prefix
    program = body.get("trial", body)
    if "computeId" in body:
        body["computeId"] = body["computeId"].removeprefix(f"{prefix}/computes/")
    program["codeId"] = f"snapshot:{body['tags']['snapshot_hash']}"
    environment = re.fullmatch(rf"{prefix}/environments/(.+)/versions/(.+)", program["environmentId"])
    assert environment, program["environmentId"]
    program["environmentId"] = f"azureml:{environment[1]}:{environment[2]}"
    assert body.pop("isArchived") is False
    for resources in (program["resources"], body.get("resources", {})):
        assert resources.pop("properties", {}) == {}
    return body


ALL_FLAGS = (
    "--num_nodes=2", "--max_run_duration=1h30m", "--docker_shm_size=16g", "--identity_based_auth", "--tag=it's a $HOME",
    "--experiment=My_experiment", "--interactive_services=jupyter,vscode,tensorboard,ssh", "--ssh_public_key=key.pub",
    "--azure_datasets=letters:1+mount,azureml://datastores/workspaceblobstore/paths/some/folder+download",
    "--dataset_mountpoints=/tmp/himl-letters,/tmp/himl-folder",
    "--output_datasets=azureml://datastores/workspaceblobstore/paths/results,found+download",
    "--base_image=example.azurecr.io/base:1", "--max_epochs=3",
)  # fmt: skip


def add_data(azureml: AzureML, name: str, version: str = "1", kind: str = "uri_folder") -> None:
    uri = f"azureml://datastores/workspaceblobstore/paths/{name}/"
    prefix = f"{azureml.workspace.prefix}/data/{name}/versions/{version}"
    azureml.state.data[name, version] = {
        "id": prefix, "name": version, "type": "Microsoft.MachineLearningServices/workspaces/data/versions",
        "properties": {"dataUri": uri, "dataType": kind, "description": None, "tags": {}, "properties": {},
                       "isArchived": False, "isAnonymous": False},
    }  # fmt: skip


def test_everything_that_is_asked_for_arrives(project: Path, himl: Himl, azureml: AzureML) -> None:
    add_data(azureml, "letters")
    (project / "key.pub").write_text("ssh-ed25519 AAAA somebody\n")
    plan = plan_of(himl, *ALL_FLAGS)
    job = submitted(himl(*ALL_FLAGS), azureml)
    (request,) = azureml.received("PUT", "*/jobs/*")
    assert request.query["api-version"] == "2025-01-01-preview"
    body = request.body["properties"]
    program = f"python .himl_runner/start.py himl-runner {plan.argv[0]}"
    assert body["command"].startswith(program)
    assert body["jobType"] == "Command"
    assert (body["displayName"], body["experimentName"]) == (plan.display_name, plan.experiment)
    assert (plan.display_name, plan.experiment) == ("it's a $HOME", "My_experiment")
    assert body["computeId"] == f"{azureml.workspace.prefix}/computes/gpu"
    assert body["resources"] == {"instanceCount": plan.num_nodes, "shmSize": "16g", "properties": {}}
    assert body["distribution"] == {"distributionType": "Mpi", "processCountPerInstance": 1}
    assert body["limits"] == {"jobLimitsType": "Command", "timeout": "PT1H30M"}
    assert plan.limits.max_run_seconds == 5400
    assert body["identity"] == {"identityType": "UserIdentity"}
    assert body["environmentVariables"] == DEFAULT_VARIABLES | plan.environment
    assert plan.environment == {"SMALL": "a value, 'quoted' $HOME"}
    assert body["tags"].items() >= dict(plan.tags).items()
    assert body["tags"]["colour"] == "blue"
    assert body["tags"]["snapshot_hash"] == plan.snapshot_hash
    assert body["services"] == {
        "jupyter": {"jobServiceType": "JupyterLab"},
        "ssh": {"jobServiceType": "SSH", "properties": {"sshPublicKeys": "ssh-ed25519 AAAA somebody"}},
        "tensorboard": {"jobServiceType": "TensorBoard", "properties": {"logDir": "logs"}},
        "vscode": {"jobServiceType": "VSCode"},
    }
    assert body["inputs"] == {
        "INPUT_0": {"jobInputType": "uri_folder", "mode": "ReadOnlyMount",
                    "uri": f"{azureml.workspace.prefix}/data/letters/versions/1"},
        "INPUT_1": {"jobInputType": "uri_folder", "mode": "Download",
                    "uri": "azureml://datastores/workspaceblobstore/paths/some/folder"},
    }  # fmt: skip
    assert body["outputs"] == {
        "OUTPUT_0": {"jobOutputType": "uri_folder", "mode": "ReadWriteMount",
                     "uri": "azureml://datastores/workspaceblobstore/paths/results"},
        "OUTPUT_1": {"jobOutputType": "uri_folder", "mode": "Upload", "assetName": "found"},
    }  # fmt: skip
    assert body["properties"]["AZURE_ML_INPUT_PathOnCompute_INPUT_0"] == "/tmp/himl-letters"
    assert body["properties"]["AZURE_ML_INPUT_PathOnCompute_INPUT_1"] == "/tmp/himl-folder"
    (environment,) = azureml.received("PUT", "*/environments/*")
    assert environment.body["properties"]["image"] == "example.azurecr.io/base:1"
    registered = yaml.safe_load(environment.body["properties"]["condaFile"])
    assert registered == yaml.safe_load(plan.software.conda_file), "the plan shows what is registered"
    packages = registered["dependencies"][-1]["pip"]
    assert packages[0] == "torch==2.13.0"
    assert tuple(packages[1:]) == plan.software.runner_requirements
    assert any(package.startswith("pytorch-lightning") for package in packages)
    assert job.name.startswith("small_")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--num_nodes=3", "--max_run_duration=2d", "--interactive_services=vscode", "--tag=x"),
        ("--different_seeds=3",),
        ("--crossval_count=5", "--max_run_duration=1h", "--num_nodes=2", "--identity_based_auth"),
        (
            "--sweep=l_rate=loguniform(1e-5,1e-1) trainer.gradient_clip_val=uniform(0.1,1) "
            "weight_decay=quniform(0,1,0.25) momentum=normal(0.5,0.1)",
            "--sampling=random", "--max_trials=7", "--max_concurrent_trials=3", "--sampling_seed=11",
            "--early_termination=bandit(slack_factor=0.1,evaluation_interval=2,delay_evaluation=5)",
            "--primary_metric=val/loss", "--goal=maximize", "--azure_datasets=letters", "--docker_shm_size=1g",
        ),
        (
            "--sweep=l_rate=uniform(0.1,0.5) weight_decay=quniform(0,8,2)", "--sampling=bayesian", "--max_trials=4",
            "--primary_metric=val/loss", "--output_datasets=found",
        ),
        (
            "--sweep=random_seed=0..3", "--primary_metric=val/loss",
            "--early_termination=truncation_selection(truncation_percentage=20)",
        ),
        ("--sweep=tag=a,b", "--primary_metric=val/loss", "--early_termination=median_stopping"),
    ],
)  # fmt: skip
def test_what_is_shown_is_what_is_sent(himl: Himl, azureml: AzureML, arguments: tuple[str, ...]) -> None:
    add_data(azureml, "letters")
    shown = rendered(himl, *arguments)
    submitted(himl(*arguments), azureml)
    sent = without_ids(azureml.received("PUT", "*/jobs/*")[-1].body["properties"], azureml)
    for name, entry in shown["inputs"].items():
        assert entry["uri"] == "azureml:letters@latest"
        assert sent["inputs"][name].pop("uri") == f"{azureml.workspace.prefix}/data/letters/versions/1"
        del entry["uri"]
    assert sent == shown


def test_a_large_grid_becomes_several_jobs(himl: Himl, azureml: AzureML) -> None:
    arguments = ("--sweep=random_seed=0..1499 tag=a,b", "--max_concurrent_trials=9", "--experiment=large")
    shown = himl(*arguments, "--dry_run").stdout
    assert shown.count('"maxTotalTrials": 1000') == 3
    run = himl(*arguments)
    assert run.exit_code == 0, run.stderr
    assert "3000 trials in 3 jobs of random_seed, tag." in run.stderr
    jobs = [azureml.state.jobs[name] for name in re.findall(r"Submitted run (\S+) to azureml", run.stdout)]
    assert [job.body["displayName"] for job in jobs] == ["Small (1 of 3)", "Small (2 of 3)", "Small (3 of 3)"]
    assert [job.body["limits"]["maxConcurrentTrials"] for job in jobs] == [3, 3, 3]
    seeds = [seed for job in jobs for seed in job.body["searchSpace"]["random_seed"][1][0]]
    assert sorted(seeds) == list(range(1500))


def test_a_part_of_a_large_grid_that_is_refused_takes_the_others_along(himl: Himl, azureml: AzureML) -> None:
    before = set(azureml.state.jobs)
    azureml.misbehave("PUT", "*/jobs/*")  # nothing happens to the first
    azureml.misbehave("PUT", "*/jobs/*", status=403)
    run = himl("--sweep=random_seed=0..1499")
    assert run.exit_code != 0
    (job,) = [azureml.state.jobs[name] for name in set(azureml.state.jobs) - before]
    assert job.status in ("Canceled", "CancelRequested")


def test_machines_that_azureml_provides(himl: Himl, azureml: AzureML) -> None:
    arguments = ("--cluster=azureml:serverless", "--instance_type=Standard_NC6s_v3", "--job_tier=spot")
    shown = rendered(himl, *arguments)
    assert shown["queueSettings"] == {"jobTier": "Spot"}
    assert "computeId" not in shown
    submitted(himl(*arguments), azureml)
    sent = without_ids(azureml.received("PUT", "*/jobs/*")[-1].body["properties"], azureml)
    assert sent == shown
    assert azureml.received("GET", "*/computes/*") == []
    search = ("--different_seeds=2", *arguments, "--priority=high")
    submitted(himl(*search), azureml)
    sent = azureml.received("PUT", "*/jobs/*")[-1].body["properties"]
    assert sent["queueSettings"] == {"jobTier": "Spot", "priority": 3}


def test_unchanged_code_needs_four_requests(himl: Himl, azureml: AzureML) -> None:
    submitted(himl(), azureml)
    count, blobs = len(azureml.received()), len(azureml.blob_requests())
    submitted(himl(), azureml)
    again = azureml.received()[count:]
    assert len([request for request in again if request.path.endswith("/token")]) == 1
    control = [request for request in again if request.matches("*", "management.azure.com/*")]
    names = [(request.method, request.path.split("/")[9]) for request in control]
    assert names[0] == ("GET", "computes")
    assert sorted(names[1:3]) == [("GET", "codes"), ("PUT", "environments")]  # at the same time
    assert names[3:] == [("PUT", "jobs")]
    assert len(azureml.blob_requests()) == blobs


def test_a_cluster_that_cannot_be_asked_for_ahead_is_asked_for_again(himl: Himl, azureml: AzureML) -> None:
    azureml.misbehave("GET", "*/computes/gpu", status=404)
    submitted(himl(), azureml)
    asked = [request.status for request in azureml.received("GET", "*/computes/gpu")]
    assert asked[-2:] == [404, 200]


def test_a_checkpoint_that_is_not_there_is_missed_before_the_job(himl: Himl, azureml: AzureML) -> None:
    add_job(azureml, "ended_run", {"outputs/checkpoints/last.ckpt": b"x"}, status="Completed")
    count = len(azureml.received("PUT", "*/jobs/*"))
    for checkpoint, message in {
        "ended_run:missing.ckpt": "has no file checkpoints/missing.ckpt; its status is Completed",
        "no_run_of_that_name": "no run 'no_run_of_that_name'",
    }.items():
        refused = himl(f"--src_checkpoint={checkpoint}", "--resume_training")
        assert refused.exit_code == EXIT_USAGE
        assert message in refused.stderr
    assert (
        "Its checkpoints are ended_run:last.ckpt."
        in himl("--src_checkpoint=ended_run:missing.ckpt", "--resume_training").stderr
    )
    assert len(azureml.received("PUT", "*/jobs/*")) == count
    submitted(himl("--src_checkpoint=ended_run", "--resume_training"), azureml)
    add_job(azureml, "running_run", {}, status="Running")
    submitted(himl("--src_checkpoint=running_run", "--resume_training"), azureml)


ODD = """ it's "odd": $HOME `id` \\ $(id) * ~ # ! {inputs.x} ${{inputs.INPUT_0}} {search_space.y} %41\ttab
new line; ünï 雪 -- """


def test_every_argument_arrives_as_it_was_typed(himl: Himl, azureml: AzureML) -> None:
    job = submitted(himl(f"--tag={ODD}", "--tracking_uri=none"), azureml)
    azureml.run_pending_jobs()
    assert job.status == "Completed", azureml.log(job)
    config = json.loads(azureml.artifacts(job)["outputs/run/config.json"])
    assert config["tag"]["value"] == ODD


def test_a_job_is_submitted_run_and_followed(project: Path, himl: Himl, azureml: AzureML) -> None:
    (project / "tool.sh").write_text("#!/bin/sh\n")
    (project / "tool.sh").chmod(0o755)
    with azureml.executing():
        run = himl("--wait_for_completion", "--max_epochs=2")
    assert run.exit_code == 0, run.stderr + run.stdout
    (job,) = (job for job in azureml.state.jobs.values() if job.name in run.stdout)
    assert f"Run {job.name}: FINISHED" in run.stdout
    assert "Training epoch 1" in run.stdout, "the log was followed"
    assert "is not in a git repository" in run.stderr, "who submits is told"
    assert "git repository" not in run.stdout, "in the job there is never one"
    assert job.status == "Completed"
    # The runner of this very tree ran, although another one is installed where the stand-in runs jobs.
    assert re.search(rf"the runner is in \S+/{job.name}/attempt_0/node_0/wd/.himl_runner/health_ml/", run.stdout)
    assert f"\n  status    himl-runner --status={job.name} --cluster=azureml\n" in run.stdout
    status = invoke([f"--status={job.name}", "--cluster=azureml"], folder=project)
    assert status.exit_code == 0, status.stderr
    assert f"Run {job.name}: FINISHED\n  page      https://" in status.stdout


def test_the_workspace_can_be_named(project: Path, himl: Himl, azureml: AzureML) -> None:
    (project / "config.json").rename(project / "mine.json")
    assert "No AzureML workspace is named" in himl().stderr
    run = himl("--workspace_config_path=mine.json", "--auth=environment")
    assert f"--cluster=azureml '--workspace_config_path={project}/mine.json'" in run.stdout, run.stderr
    refused = himl("--workspace_config_path=mine.json", "--auth=workload_identity")
    assert "workload_identity:  AZURE_FEDERATED_TOKEN_FILE is not set" in refused.stderr
    assert "environment:" not in refused.stderr


def test_a_search_gets_its_values(himl: Himl, azureml: AzureML) -> None:
    space = "--sweep=random_seed=3,4 trainer.gradient_clip_val=0.5 tag=choice(a b,c)"
    job = submitted(himl(space, "--tracking_uri=none"), azureml)
    azureml.run_pending_jobs()
    assert job.status == "Completed", [azureml.log(azureml.state.jobs[name])[-3000:] for name in job.children]
    found = set()
    for name in job.children:
        config = json.loads(azureml.artifacts(azureml.state.jobs[name])["outputs/run/config.json"])
        found.add(
            (config["random_seed"]["value"], config["trainer.gradient_clip_val"]["value"], config["tag"]["value"])
        )
    assert found == {(3, 0.5, "a b"), (3, 0.5, "c"), (4, 0.5, "a b"), (4, 0.5, "c")}
    assert set(job.body["searchSpace"]) == {"random_seed", "trainer_gradient_clip_val", "tag"}


def test_a_search_for_a_metric_that_nobody_logs_fails(himl: Himl, azureml: AzureML) -> None:
    job = submitted(himl("--sweep=random_seed=1", "--primary_metric=val/los", "--tracking_uri=none"), azureml)
    azureml.run_pending_jobs()
    (trial,) = (azureml.state.jobs[name] for name in job.children)
    assert trial.status == "Failed"
    assert "The search is about the metric 'val/los', and this trial has logged only" in azureml.log(trial)
    assert "Did you mean 'val/loss'?" in azureml.log(trial)


def test_a_job_reads_and_writes_data(project: Path, himl: Himl, azureml: AzureML) -> None:
    azureml.azurite.write(azureml.workspace.default_container, "texts/a.txt", b"alpha")
    text = CONTAINER.replace(
        'print("the runner is in", health_ml.__file__, flush=True)',
        "[folder], [target] = self.local_datasets, self.output_dataset_folders\n"
        '        (target / "copy.txt").write_text((folder / "a.txt").read_text() * 2)',
    )
    (project / "small.py").write_text(text)
    written = "azureml://datastores/workspaceblobstore/paths/written"
    arguments = ("--azure_datasets=texts", "--datastore=workspaceblobstore", f"--output_datasets={written}")
    job = submitted(himl(*arguments, "--tracking_uri=none"), azureml)
    azureml.run_pending_jobs()
    assert job.status == "Completed", azureml.log(job)
    assert azureml.azurite.read(azureml.workspace.default_container, "written/copy.txt") == b"alphaalpha"


def test_trials_write_to_a_folder_each(project: Path, himl: Himl, azureml: AzureML) -> None:
    text = CONTAINER.replace(
        'print("the runner is in", health_ml.__file__, flush=True)',
        '(self.output_dataset_folders[0] / "seed.txt").write_text(str(self.random_seed))',
    )
    (project / "small.py").write_text(text)
    written = "azureml://datastores/workspaceblobstore/paths/of_trials"
    job = submitted(himl("--sweep=random_seed=5,6", f"--output_datasets={written}", "--tracking_uri=none"), azureml)
    azureml.run_pending_jobs()
    container = azureml.workspace.default_container
    found = {name: azureml.azurite.read(container, f"of_trials/{name}/seed.txt") for name in job.children}
    assert sorted(found.values()) == [b"5", b"6"]


def test_two_folds_of_a_container_that_asks_for_them(project: Path, himl: Himl, azureml: AzureML) -> None:
    text = CONTAINER.replace("self.max_epochs = 1", "self.max_epochs = 1\n        self.crossval_count = 2")
    (project / "small.py").write_text(text)
    job = submitted(himl("--tracking_uri=none"), azureml)
    azureml.run_pending_jobs()
    assert job.status == "Completed", [azureml.log(azureml.state.jobs[name])[-3000:] for name in job.children]
    assert len(job.children) == 2


# --- refusals: nothing is uploaded, and there is no job ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster=gpv"], "has no compute cluster 'gpv'. Did you mean 'gpu'? It has cpu, gpu, low-priority."),
        (["--cluster=azureml"], "--cluster=azureml names no cluster"),
        (["--num_nodes=5"], "--num_nodes=5: gpu has at most 4"),
        (["--instance_type=x", "--job_tier=spot"], "--instance_type has no effect on gpu: leave it out. --job_tier"),
        (["--priority=low"], "--priority has no effect on a single job"),
        (["--different_seeds=2", "--interactive_services=vscode"], "--interactive_services has no effect on a search"),
        (["--azure_datasets=nothing"], "There is no data asset 'nothing'"),
        (["--azure_datasets=known:7"], "The data asset known:7 does not exist"),
        (["--azure_datasets=known@best"], "The data asset known@best does not exist"),
        (["--azure_datasets=new", "--datastore=blobstore"], "has no datastore 'blobstore'. Did you mean 'workspace"),
        (["--azure_datasets=azureml://datastores/x/paths/y"], "has no datastore 'x'"),
        (["--azure_datasets=a b"], "'a b' names no dataset"),
        (["--local_datasets=/x"], "these folders are on this machine"),
        (["--conda_env=absent.yml"], "absent.yml cannot be read: No such file"),
        (["--azure_environment=nothing:3"], "the workspace has no azureml:nothing:3"),
        (["--azure_environment=nothing"], "the workspace has no azureml:nothing@latest"),
        (["--azure_environment=a:1", "--conda_env=environment.yml"], "--conda_env and --azure_environment each say"),
        (["--docker_build_context=."], "has no file Dockerfile"),
        (["--base_image=x", "--azure_environment=a:1"], "--base_image has no effect with --azure_environment"),
        (["--experiment=My experiment"], "The name of the experiment, 'My experiment', may have letters"),
        (["--docker_shm_size=lots"], "--docker_shm_size=lots is no size"),
        (["--max_run_duration=30s"], "too short for AzureML"),
        (['--sweep=tag="it\'s",b'], "would not arrive as it is"),
        (["--sweep=random_seed=0..1000", "--max_trials=1001"], "1001 trials are more than the 1000"),
        (["--sweep=random_seed=0..2000", "--max_concurrent_trials=2"], "2001 trials need 3 jobs"),
        (["--sweep=l_rate=loguniform(1e-5,1)", "--sampling=bayesian", "--max_trials=2", "--primary_metric=m"],
         "l_rate is loguniform"),
        (["--sweep=l_rate=uniform(1,2)", "--sampling=bayesian", "--max_trials=2", "--primary_metric=m",
          "--early_termination=median_stopping"], "no early termination for --sampling=bayesian"),
        (["--interactive_services=ssh"], "needs a key"),
        (["--ssh_public_key=small.py"], "--ssh_public_key has no effect without"),
        (["--output_datasets=found:2", "--different_seeds=2"], "every trial would write this version"),
        (["--output_datasets=found@best"], "a job cannot write to a label"),
        (["--regression_test_folder=/tmp"], "--regression_test_folder=/tmp does not travel"),
    ],
)  # fmt: skip
def test_what_azureml_cannot_do(himl: Himl, azureml: AzureML, arguments: list[str], message: str) -> None:
    add_data(azureml, "known")
    run = himl(*arguments)
    assert run.exit_code != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert azureml.received("PUT") == []
    assert azureml.blob_requests("PUT") == []


def test_files_that_cannot_work_there(project: Path, himl: Himl, azureml: AzureML) -> None:
    (project / "environment.yml").write_text("dependencies:\n- pip:\n  - -r requirements.txt\n  - ./wheel.whl\n")
    run = himl()
    assert run.exit_code == 2
    assert "'-r requirements.txt' needs a file of this machine; './wheel.whl' is a path" in run.stderr
    (project / "environment.yml").unlink()
    assert "There is no environment.yml in" in himl().stderr
    (project / "environment.yml").write_text(ENVIRONMENT)
    (project / ".himl_runner").mkdir()
    (project / ".himl_runner" / "x.py").touch()
    assert "The folder .himl_runner belongs to himl-runner" in himl().stderr
    assert azureml.received("PUT", "*/jobs/*") == []


# --- troubles ---------------------------------------------------------------------------------------------------------


def test_an_upload_that_fails_leaves_no_job_and_can_be_repeated(
    project: Path, himl: Himl, azureml: AzureML, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("health_ml.azure.rest.Patience.seconds_before", lambda self, attempt, asked=0.0: 0.01)
    (project / "new.txt").write_text("content of this test alone")
    azureml.misbehave("PUT", "*.blob.core.windows.net/*", status=503, times=-1)
    run = himl()
    assert run.exit_code == 2
    assert "503" in run.stderr
    assert azureml.received("PUT", "*/codes/*") == azureml.received("PUT", "*/jobs/*") == []
    azureml.cloud.misbehaviour.troubles.clear()
    submitted(himl(), azureml)


def test_throttling_is_waited_for(project: Path, himl: Himl, azureml: AzureML) -> None:
    (project / "throttled.txt").write_text("new content")
    troubles = [
        azureml.misbehave("GET", "*/computes/*", status=503, retry_after=0),
        azureml.misbehave("PUT", "*/environments/*", status=429, retry_after=0),
        azureml.misbehave("GET", "*/codes/*", status=429, retry_after=0),
        azureml.misbehave("POST", "*/startPendingUpload", close=True),
        azureml.misbehave("PUT", "*.blob.core.windows.net/*", status=503, retry_after=0, times=2),
        azureml.misbehave("PUT", "*/codes/*", lost=True),
        azureml.misbehave("PUT", "*/jobs/*", lost=True),
    ]
    submitted(himl(), azureml)
    assert [trouble.met for trouble in troubles] == [1, 1, 1, 1, 2, 1, 1]


def test_a_job_whose_answer_is_lost_is_the_users(himl: Himl, azureml: AzureML, monkeypatch: pytest.MonkeyPatch) -> None:
    azureml.misbehave("PUT", "*/jobs/*", lost=True)
    azureml.misbehave("PUT", "*/jobs/*", status=500, times=-1)
    monkeypatch.setattr("azure.core.pipeline.policies.RetryPolicy.sleep", lambda *arguments, **options: None)
    before = set(azureml.state.jobs)
    run = himl()
    assert run.exit_code == 0, run.stderr
    (name,) = set(azureml.state.jobs) - before
    assert f"Submitted run {name} to azureml" in run.stdout


# --- environments and data --------------------------------------------------------------------------------------------


def test_a_named_environment_is_used_in_its_exact_version(himl: Himl, azureml: AzureML) -> None:
    for version in ("3", "4"):
        prefix = f"{azureml.workspace.prefix}/environments/AzureML-acpt/versions/{version}"
        azureml.state.environments["AzureML-acpt", version] = {
            "id": prefix, "name": version, "type": "Microsoft.MachineLearningServices/workspaces/environments/versions",
            "properties": {"image": "curated", "isAnonymous": False, "tags": {}, "properties": {}},
        }  # fmt: skip
    for name, version in (("AzureML-acpt:3", "3"), ("AzureML-acpt", "4"), ("azureml:AzureML-acpt@latest", "4")):
        job = submitted(himl(f"--azure_environment={name}"), azureml)
        assert job.body["environmentId"].endswith(f"AzureML-acpt/versions/{version}") or job.body[
            "environmentId"
        ].endswith(f"AzureML-acpt:{version}"), job.body["environmentId"]
    assert azureml.received("PUT", "*/environments/*") == []


def test_an_image_that_azureml_builds(project: Path, himl: Himl, azureml: AzureML) -> None:
    context = project / "docker"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM ubuntu\n")
    (context / "ignored.txt").write_text("ignored")
    (context / "outputs").mkdir()
    (context / "outputs" / "model.ckpt").write_text("a job would not get this, an image does")
    (context / ".amlignore").write_text("ignored.txt\n")
    submitted(himl("--docker_build_context=docker"), azureml)
    submitted(himl("--docker_build_context=docker"), azureml)
    (registered,) = azureml.received("PUT", "*/environments/*")
    uri = registered.body["properties"]["build"]["contextUri"]
    container, prefix = re.search(r"windows.net[^/]*/([^/]+)/(.+?)/?$", uri).groups()  # type: ignore[union-attr]
    sent = {name.removeprefix(f"{prefix}/") for name in azureml.azurite.names(container, prefix)}
    assert sent == {".amlignore", "Dockerfile", "outputs/model.ckpt"}
    (context / ".env").write_text("PASSWORD=x")
    refused = himl("--docker_build_context=docker")
    assert refused.exit_code != 0
    assert ".env" in refused.stderr
    (context / ".env").unlink()
    (context / "Dockerfile").write_text("FROM debian\n")
    submitted(himl("--docker_build_context=docker"), azureml)
    assert len({request.path for request in azureml.received("PUT", "*/environments/*")}) == 2


def test_a_data_asset_is_made_on_first_use(himl: Himl, azureml: AzureML) -> None:
    typed_wrong = himl("--azure_datasets=fresh_leters", "--datastore=workspaceblobstore")
    assert typed_wrong.exit_code != 0
    assert "nor a file in the folder fresh_leters on the datastore workspaceblobstore" in typed_wrong.stderr
    azureml.azurite.write(azureml.workspace.default_container, "fresh_letters/a.txt", b"a")
    for _ in range(2):
        job = submitted(himl("--azure_datasets=fresh_letters", "--datastore=workspaceblobstore"), azureml)
        assert job.body["inputs"]["INPUT_0"]["uri"].endswith("/data/fresh_letters/versions/1")
    (made,) = azureml.received("PUT", "*/data/*")
    properties = made.body["properties"]
    assert properties["dataUri"] == "azureml://datastores/workspaceblobstore/paths/fresh_letters/"
    assert properties["description"].startswith("The folder fresh_letters on the datastore workspaceblobstore")


def test_a_data_asset_that_is_a_file(himl: Himl, azureml: AzureML) -> None:
    add_data(azureml, "table", "2", "uri_file")
    job = submitted(himl("--azure_datasets=table:2", "--mount_in_azureml"), azureml)
    assert job.body["inputs"]["INPUT_0"]["jobInputType"] == "uri_file"
    assert job.body["inputs"]["INPUT_0"]["mode"] == "ReadOnlyMount"


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_stay_here(project: Path, himl: Himl, azureml: AzureML) -> None:
    import subprocess

    address = "https://user:very-secret-password@example.com/code.git"
    for command in (["init", "--quiet"], ["remote", "add", "origin", address]):
        subprocess.run(["git", *command], cwd=project, check=True, timeout=30)
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "x"], cwd=project, check=True)
    job = submitted(
        himl("--src_checkpoint=https://example.com/a.ckpt?sig=abcdefghijklmnop", "--resume_training"), azureml
    )
    assert job.tags["git_remote"] == "https://***@example.com/code.git"
    assert job.properties["mlflow.source.git.commit"] == job.tags["git_commit"]
    assert job.properties["mlflow.source.git.repoURL"] == "https://***@example.com/code.git"
    sent = json.dumps([request.body for request in azureml.received("PUT")])
    assert "very-secret-password" not in sent
    assert "abcdefghijklmnop" not in json.dumps(job.tags)
