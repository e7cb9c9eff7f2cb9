"""Submitted jobs are executed in real processes, as AzureML does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.azureml.service import AzureML

Script = Callable[..., Any]

DUMP = """
import json, os, sys
from pathlib import Path
Path("outputs/variables.json").write_text(json.dumps(dict(os.environ)))
print("arguments", sys.argv[1:], flush=True)
"""


def test_a_job_runs_with_its_data_and_leaves_its_outputs(
    azureml: AzureML, client: Any, script: Script, tmp_path: Path
) -> None:
    from azure.ai.ml import Input, Output
    from azure.ai.ml.entities import Data

    folder = tmp_path / "letters_to_run"
    folder.mkdir()
    (folder / "a.txt").write_text("alpha")
    client.data.create_or_update(Data(name="letters_to_run", version="1", path=str(folder), type="uri_folder"))
    text = """
import os, sys
from pathlib import Path
data, out, number = sys.argv[1:]
assert data == os.environ["AZURE_ML_INPUT_data"] and out == os.environ["AZURE_ML_OUTPUT_out"]
Path(out, "result.txt").write_text(Path(data, "a.txt").read_text() * int(number))
Path("outputs/sub").mkdir()
Path("outputs/sub/file.txt").write_text("collected")
Path("logs/extra.txt").write_text("also collected")
print("done")
"""
    job = script(
        text,
        command="python main.py ${{inputs.data}} ${{outputs.out}} ${{inputs.number}}",
        inputs={"data": Input(path="azureml:letters_to_run:1", type="uri_folder"), "number": 3},
        outputs={"out": Output(type="uri_folder")},
    )
    name = client.jobs.create_or_update(job).name
    (done,) = azureml.run_pending_jobs()
    assert (done.status, done.exit_codes) == ("Completed", [0]), azureml.log(done)
    assert client.jobs.get(name).status == "Completed"
    artifacts = azureml.artifacts(done)
    assert artifacts == {
        "outputs/sub/file.txt": b"collected",
        "logs/extra.txt": b"also collected",
        "user_logs/std_log.txt": b"done\n",
    }
    assert azureml.azurite.read(azureml.workspace.default_container, f"azureml/{name}/out/result.txt") == b"alpha" * 3


def test_a_job_finds_the_variables_of_a_node(azureml: AzureML, client: Any, script: Script) -> None:
    job = script(DUMP, environment_variables={"MINE": "a 'b' $c"}, experiment_name="tests")
    name = client.jobs.create_or_update(job).name
    (done,) = azureml.run_pending_jobs()
    variables = json.loads(azureml.artifacts(done)["outputs/variables.json"])
    assert variables["MINE"] == "a 'b' $c"
    assert variables["AZUREML_RUN_ID"] == variables["MLFLOW_RUN_ID"] == name
    assert variables["MLFLOW_EXPERIMENT_NAME"] == "tests"
    assert variables["HTTPS_PROXY"] == azureml.environment["HTTPS_PROXY"]
    assert "AZURE_CLIENT_SECRET" not in variables


@pytest.mark.parametrize("kind", ["Mpi", "PyTorch"])
def test_every_process_of_several_nodes_knows_its_rank(
    azureml: AzureML, client: Any, script: Script, kind: str
) -> None:
    import azure.ai.ml

    distribution = getattr(azure.ai.ml, f"{kind}Distribution")(process_count_per_instance=2)
    names = {"Mpi": "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_SIZE AZ_BATCH_MASTER_NODE",
             "PyTorch": "RANK LOCAL_RANK WORLD_SIZE MASTER_PORT"}[kind]  # fmt: skip
    text = f"import os\nprint(*(os.environ[name] for name in '{names}'.split()))"
    client.jobs.create_or_update(script(text, distribution=distribution, instance_count=2))
    (done,) = azureml.run_pending_jobs()
    assert done.status == "Completed", azureml.log(done)
    lines = [content.decode().split() for name, content in azureml.artifacts(done).items() if "std_log" in name]
    assert [line[:3] for line in lines] == [["0", "0", "4"], ["1", "1", "4"], ["2", "0", "4"], ["3", "1", "4"]]
    assert len({line[3] for line in lines}) == 1


def test_a_failed_job_tells_its_last_lines(azureml: AzureML, client: Any, script: Script) -> None:
    from azure.ai.ml.exceptions import JobException

    azureml.cloud.secrets = "AccountKey"
    name = client.jobs.create_or_update(script("raise SystemExit('no such thing')")).name
    (done,) = azureml.run_pending_jobs()
    assert (done.status, done.exit_codes) == ("Failed", [1])
    with pytest.raises(JobException, match=r"exited with status code 1.*no such thing"):
        client.jobs.stream(name)


def test_the_log_of_a_running_job_is_streamed(
    azureml: AzureML, client: Any, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    azureml.cloud.secrets = "AccountKey"
    text = "import time\nfor index in range(3):\n    print('step', index, flush=True)\n    time.sleep(1)"
    name = client.jobs.create_or_update(script(text)).name
    with azureml.executing():
        client.jobs.stream(name)
    assert "step 0\nstep 1\n" in capsys.readouterr().out
    assert client.jobs.get(name).status == "Completed"


@pytest.mark.parametrize(("secrets", "error"), [("Sas", "Incorrect padding"), ("None", "not 'EnvironmentCredential'")])
def test_the_sdk_cannot_stream_what_the_service_answers(
    azureml: AzureML, client: Any, script: Script, secrets: str, error: str
) -> None:
    """A mistake of the SDK: it takes a signature for the key of the account. Nothing here may hide that."""
    azureml.cloud.secrets = secrets
    name = client.jobs.create_or_update(script("import time\nprint('ready', flush=True)\ntime.sleep(2)")).name

    def stream() -> None:
        with azureml.executing():
            azureml.wait_for_log(azureml.state.jobs[name], "ready")
            client.jobs.stream(name)

    with pytest.raises((ValueError, TypeError), match=error):
        stream()


def test_a_running_job_is_cancelled(azureml: AzureML, client: Any, script: Script) -> None:
    text = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('got it', flush=True) or exit(3))\n"
    name = client.jobs.create_or_update(script(text + "print('ready', flush=True)\ntime.sleep(60)")).name
    job = azureml.state.jobs[name]
    with azureml.executing():
        azureml.wait_for_log(job, "ready")
        client.jobs.begin_cancel(name).result()
        assert client.jobs.get(name).status == "Canceled"
    assert azureml.log(job) == "ready\ngot it\n"
    assert job.exit_codes == [3]


def test_a_preempted_job_starts_again_on_a_fresh_node(azureml: AzureML, client: Any, script: Script) -> None:
    text = """
import signal, sys, time
from pathlib import Path
assert not Path("outputs/state.txt").exists()
Path("outputs/state.txt").write_text("saved")
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.05)
print("through", flush=True)
"""
    azureml.cloud.grace_seconds = 0.5
    gate = azureml.folder / "gate"
    line = f"python main.py {gate} --stubborn"
    name = client.jobs.create_or_update(script(text, command=line, compute="low-priority")).name
    job = azureml.state.jobs[name]
    with azureml.executing():
        azureml.wait_for_log(job, "ready")
        azureml.preempt(job)
        deadline = time.monotonic() + 30
        while job.attempt == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        gate.touch()
    assert (job.status, job.attempt) == ("Completed", 1)
    assert azureml.artifacts(job) == {
        "outputs/state.txt": b"saved",
        "outputs/retry_001/state.txt": b"saved",
        "user_logs/std_log.txt": b"ready\n",
        "user_logs/retry_001/std_log.txt": b"ready\nthrough\n",
    }


def test_a_job_above_its_time_limit_is_ended(azureml: AzureML, client: Any, script: Script) -> None:
    client.jobs.create_or_update(script("import time\ntime.sleep(60)", timeout=1))
    (done,) = azureml.run_pending_jobs()
    assert done.status == "Canceled"
    assert done.error == "The job ran longer than its limit."


def test_only_running_jobs_can_be_preempted(azureml: AzureML, client: Any, script: Script) -> None:
    name = client.jobs.create_or_update(script("print()")).name
    with pytest.raises(ValueError, match="is not running: its status is Starting"):
        azureml.preempt(azureml.state.jobs[name])


def test_the_trials_of_a_sweep_run_and_log_to_mlflow(azureml: AzureML, client: Any, script: Script) -> None:
    from azure.ai.ml.sweep import Choice

    text = """
import sys, mlflow
from pathlib import Path
mlflow.log_metric("loss", (float(sys.argv[1]) - 2) ** 2)
Path("outputs/value.txt").write_text(sys.argv[1])
"""
    job = script(text, command="python main.py ${{inputs.x}}", inputs={"x": 1})
    sweep = job(x=Choice([1, 2])).sweep(
        sampling_algorithm="grid", primary_metric="loss", goal="minimize", max_total_trials=2
    )
    sweep.compute = "gpu"
    name = client.jobs.create_or_update(sweep).name
    (done,) = azureml.run_pending_jobs()
    children = [azureml.state.jobs[child] for child in done.children]
    assert [child.status for child in children] == ["Completed", "Completed"], azureml.log(children[0])
    assert [azureml.artifacts(child)["outputs/value.txt"] for child in children] == [b"1", b"2"]
    assert client.jobs.get(name).properties["best_child_run_id"] == f"{name}_1"
    assert sorted(child.name for child in client.jobs.list(parent_job_name=name)) == done.children
    assert client.jobs.get(f"{name}_0").status == "Completed"


def test_outputs_are_downloaded(azureml: AzureML, client: Any, script: Script, tmp_path: Path) -> None:
    text = "from pathlib import Path\nPath('outputs/last.ckpt').write_bytes(b'weights')"
    name = client.jobs.create_or_update(script(text)).name
    azureml.run_pending_jobs()
    client.jobs.download(name, download_path=tmp_path / "download")
    found = list((tmp_path / "download").rglob("last.ckpt"))
    assert [file.read_bytes() for file in found] == [b"weights"]


def test_a_job_that_goes_wrong_in_the_block_is_ended(azureml: AzureML, client: Any, script: Script) -> None:
    name = client.jobs.create_or_update(script("import time\nprint('ready', flush=True)\ntime.sleep(60)")).name

    def fail_while_it_runs() -> None:
        with azureml.executing():
            azureml.wait_for_log(azureml.state.jobs[name], "ready")
            raise KeyError("a mistake of the test")

    with pytest.raises(KeyError, match="a mistake of the test"):
        fail_while_it_runs()
    assert azureml.state.jobs[name].status == "Canceled"


def test_python_of_the_job_is_this_python(azureml: AzureML, client: Any, script: Script) -> None:
    client.jobs.create_or_update(script("import sys\nprint(sys.prefix)"))
    (done,) = azureml.run_pending_jobs()
    assert azureml.log(done).strip() == sys.prefix


def test_data_and_outputs_are_where_the_job_wants_them(
    azureml: AzureML, client: Any, script: Script, tmp_path: Path
) -> None:
    from azure.ai.ml import Input, Output

    azureml.azurite.write(azureml.workspace.default_container, "some/file.txt", b"data")
    text = """
import sys
from pathlib import Path
Path(sys.argv[2], "copy.txt").write_bytes(Path(sys.argv[1], "file.txt").read_bytes())
print(*sys.argv[1:])
"""
    folder, results = tmp_path / "mounted" / "in", tmp_path / "mounted" / "out"
    job = script(
        text,
        command="python main.py ${{inputs.data}} ${{outputs.results}}",
        inputs={"data": Input(path="azureml://datastores/workspaceblobstore/paths/some/", type="uri_folder")},
        outputs={"results": Output(path="azureml://datastores/workspaceblobstore/paths/results/", type="uri_folder")},
    )
    job.properties = {
        "AZURE_ML_INPUT_PathOnCompute_data": str(folder),
        "AZURE_ML_OUTPUT_PathOnCompute_results": str(results),
    }
    client.jobs.create_or_update(job)
    (done,) = azureml.run_pending_jobs()
    assert azureml.log(done) == f"{folder} {results}\n"
    assert azureml.azurite.read(azureml.workspace.default_container, "results/copy.txt") == b"data"
    assert not folder.exists()
    assert not results.exists()


def test_a_cancelled_sweep_ends_its_trials(azureml: AzureML, client: Any, script: Script) -> None:
    from azure.ai.ml.sweep import Choice

    text = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
    job = script(text, command="python main.py ${{inputs.x}}", inputs={"x": 1})
    limits = {"primary_metric": "loss", "goal": "minimize", "max_total_trials": 3, "max_concurrent_trials": 1}
    sweep = job(x=Choice([1, 2, 3])).sweep(sampling_algorithm="grid", **limits)
    sweep.compute = "gpu"
    name = client.jobs.create_or_update(sweep).name
    parent = azureml.state.jobs[name]
    with azureml.executing():
        deadline = time.monotonic() + 30
        while not parent.children and time.monotonic() < deadline:
            time.sleep(0.05)
        azureml.wait_for_log(azureml.state.jobs[f"{name}_0"], "ready")
        client.jobs.begin_cancel(name).result()
    assert parent.status == "Canceled"
    assert [azureml.state.jobs[child].status for child in parent.children] == ["Canceled"] * 3
