"""The logs of jobs and sweeps are followed, whatever the service does in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from health_ml.azure.history import RunHistory
from health_ml.azure.logs import error_text, failing_logs, stream_logs
from health_ml.azure.rest import ServiceError
from health_ml.errors import AuthenticationError, RunNotFoundError
from tests.azureml.service import AzureML
from tests.azureml.test_downloads import add_job

Script = Callable[..., Any]


@pytest.mark.parametrize("secrets", ["Sas", "None"])
def test_a_running_job_is_followed_to_its_end(azureml: AzureML, client: Any, script: Script, secrets: str) -> None:
    azureml.cloud.secrets = secrets
    text = "import sys, time\nfor index in range(4):\n    print('step', index, 'ü', flush=True)\n    time.sleep(0.4)\n"
    text += "sys.stdout.write('a\\rb\\rc\\nno line end')"
    name = client.jobs.create_or_update(script(text)).name
    lines: list[str] = []
    with azureml.executing():
        follower = threading.Thread(target=stream_logs, args=(client, name, lines.append))
        follower.start()
        azureml.wait_for_log(azureml.state.jobs[name], "step 1")
        azureml.misbehave("GET", "*/details", times=2, status=503)
        azureml.misbehave("GET", "*/details", times=1, close=True)
        follower.join(60)
    assert not follower.is_alive()
    assert lines == ["step 0 ü", "step 1 ü", "step 2 ü", "step 3 ü", "c", "no line end"]
    assert client.jobs.get(name).status == "Completed"


def test_a_failure_is_shown_with_what_azureml_says_and_the_last_lines_of_the_process_that_failed(
    azureml: AzureML, client: Any, script: Script
) -> None:
    from azure.ai.ml import PyTorchDistribution

    text = """
import os, time
rank = os.environ["RANK"]
for index in range(40):
    print("rank", rank, "line", index)
if rank == "1":
    raise MemoryError("no memory left")
time.sleep(30)
"""
    job = script(text, distribution=PyTorchDistribution(process_count_per_instance=1), instance_count=2)
    name = client.jobs.create_or_update(job).name
    azureml.run_pending_jobs()
    lines: list[str] = []
    stream_logs(client, name, lines.append)
    assert lines[:2] == ["[process 0] rank 0 line 0", "[process 0] rank 0 line 1"] or "[process 1]" in lines[0]
    assert "[process 1] MemoryError: no memory left" in lines
    start = lines.index(f"AzureML: {name} Failed")
    assert lines[start + 1].startswith("UserError: Execution failed. User process '/bin/bash' exited with status code")
    assert "The last lines of user_logs/std_log_process_1.txt:" in lines[start:]
    assert lines[-1] == "  MemoryError: no memory left"
    assert len([line for line in lines[start:] if line.startswith("  ")]) == 30


def test_the_trials_of_a_sweep_are_told_apart(azureml: AzureML, client: Any, script: Script) -> None:
    from azure.ai.ml.sweep import Choice

    job = script("import sys\nprint('value', sys.argv[1])", command="python main.py ${{inputs.x}}", inputs={"x": 1})
    sweep = job(x=Choice([1, 2, 3])).sweep(
        sampling_algorithm="grid", primary_metric="loss", goal="minimize", max_total_trials=3
    )
    sweep.compute = "gpu"
    name = client.jobs.create_or_update(sweep).name
    azureml.run_pending_jobs()
    lines: list[str] = []
    stream_logs(client, name, lines.append)
    assert lines == [f"[{name}_{index}] value {index + 1}" for index in range(3)]


def test_a_restarted_job_shows_the_logs_of_every_attempt(azureml: AzureML, client: Any) -> None:
    files = {"user_logs/retry_001/std_log.txt": b"second\n", "user_logs/std_log.txt": b"first\n"}
    add_job(azureml, "restarted", {**files, "system_logs/runtime.txt": b"of the service\n"})
    lines: list[str] = []
    stream_logs(client, "restarted", lines.append)
    assert lines == ["first", "second"]


def test_the_end_of_access_ends_the_following(azureml: AzureML, client: Any) -> None:
    add_job(azureml, "closed", {}, status="Running")
    azureml.misbehave("GET", "*/details", times=-1, status=403)
    with pytest.raises(ServiceError, match="refuses GET with status 403") as caught:
        stream_logs(client, "closed", print)
    assert "role" in caught.value.hint


def test_a_token_that_cannot_be_had_for_a_while_does_not_end_the_following(
    azureml: AzureML, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_job(azureml, "without_token", {"user_logs/std_log.txt": b"line\n"})
    ask, refusals = RunHistory.details, iter(range(3))

    def details(self: RunHistory, run_id: str) -> dict[str, Any]:
        if next(refusals, None) is not None:
            raise AuthenticationError("Azure gave no token.")
        return ask(self, run_id)

    monkeypatch.setattr(RunHistory, "details", details)
    lines: list[str] = []
    stream_logs(client, "without_token", lines.append, poll_seconds=0.01)
    assert lines == ["line"]
    assert caplog.text.count("Still following") == 3
    monkeypatch.setattr("health_ml.azure.logs.MOST_REFUSALS", 2)
    refusals = iter(range(2))
    with pytest.raises(AuthenticationError, match="Azure gave no token"):
        stream_logs(client, "without_token", lines.append, poll_seconds=0.01)


def test_a_run_that_does_not_exist(azureml: AzureML, client: Any) -> None:
    with pytest.raises(RunNotFoundError, match="has no run 'missing'"):
        stream_logs(client, "missing", print)


def test_the_data_plane_is_looked_up_once(azureml: AzureML, client: Any) -> None:
    add_job(azureml, "one", {"user_logs/std_log.txt": b"line\n"})
    with RunHistory.of_client(client):
        before = len(azureml.received("GET", "management.azure.com/*"))
    stream_logs(client, "one", print)
    assert len(azureml.received("GET", "management.azure.com/*")) == before


def test_the_innermost_reason_of_an_error_is_told() -> None:
    inner = {"code": "ImageBuildFailure", "message": "conda failed", "details": [{"message": "no package torhc"}]}
    details = {"error": {"error": {"code": "UserError", "message": "image", "innerError": inner}}}
    assert error_text(details).splitlines() == [
        "UserError: image",
        "ImageBuildFailure: conda failed",
        "no package torhc",
    ]
    assert error_text({"error": None}) == ""


def test_the_failing_log_is_one_of_the_last_attempt() -> None:
    names = ["user_logs/std_log_process_00.txt", "user_logs/std_log_process_10.txt", "user_logs/std_log_process_02.txt"]
    retried = [name.replace("user_logs/", "user_logs/retry_002/") for name in names]
    details = {"logFiles": dict.fromkeys([*names, *retried, "system_logs/a.txt"], "url")}
    named = failing_logs(details, "log file 'user_logs/std_log_process_10.txt'")
    assert named == [retried[1], retried[0], retried[2]]
    assert failing_logs(details, "something else") == [retried[0], retried[2], retried[1]]
    assert failing_logs({"logFiles": {"system_logs/a.txt": ""}}, "") == []
