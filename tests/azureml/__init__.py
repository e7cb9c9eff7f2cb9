"""A stand-in for AzureML, with which the unmodified SDKs (azure-ai-ml, azureml-mlflow) work on this machine alone.

How it is put together: a process takes the stand-in for Azure by its environment alone. ``HTTPS_PROXY`` leads to a
CONNECT proxy (``proxy.py``) that tunnels the service's hosts to a server of ours over TLS (``web.py``, the
``*_routes.py``), blob storage to a real Azurite (``azurite.py``), and refuses every other host. MLflow's routes are
answered by a real MLflow server (``mlflow_server.py``). Answers have the form of the real service's.

How a test uses it, in this folder or after ``from tests.azureml.fixtures import *`` (all fixtures are needed)::

    def test_submission(azureml: AzureML, project: Path) -> None:
        # ``azureml.environment`` is set, and ``project`` the working directory; ``signed_in`` is for tests without one
        ...                                                # MLClient(EnvironmentCredential(), ...), himl-runner, ...
        job = azureml.state.jobs["name"]                   # .body is what was sent, .status, .tags, .children, ...
        azureml.run_pending_jobs()                         # executes what was submitted, in real processes
        assert azureml.received("PUT", "*/jobs/*")[0].body["properties"]["jobType"] == "Command"
        assert azureml.blob_requests("PUT") == []          # what went to blob storage

- ``azureml.config``: content of ``config.json``. ``azureml.workspace``: subscription, resource group, name.
- ``azureml.state``: ``jobs``, ``codes``, ``environments``, ``data`` (by name and version), ``computes`` (``gpu``,
  ``cpu``, ``low-priority``; add ``Compute("name")`` for more; they are reset for each test).
- ``azureml.azurite``: ``names(container, prefix)``, ``read``, ``write``, ``has`` for blobs.
- ``azureml.misbehave("PUT", "*/jobs/*", status=503, retry_after=1)``: the next request of that kind goes wrong; see
  its docstring for delays, broken connections, lost and wrong answers, and blob storage. Reset for each test.
- ``azureml.cloud.secrets = "AccountKey"`` (or ``"None"``, ``"Sas"``): what datastores hand out. Reset for each test.
- ``azureml.executing()``: a block in which jobs run as they come, for clients that wait or follow; with
  ``wait_for_log(job, text)``, ``preempt(job)``, ``log(job)``, ``artifacts(job)``, ``run_data(name)`` (MLflow).
- ``azureml.expect_refused("169.254.169.254:*")``: hosts that this test may ask for in vain.
- ``azureml.cloud.node_variables``: what nodes have besides the variables of AzureML and of the job; ``PYTHONPATH`` of
  this process at first. ``azureml.cloud.grace_seconds``: from SIGTERM to SIGKILL.
- ``azureml.token(audience)``: a token for credentials that do not get theirs from the login service.

Request bodies are checked against Microsoft's type definitions where ``HIML_AZUREML_CONTRACT`` names their folder (or
``shared/azureml`` lies beside the repository); a wrong body fails the test, and so does a host that the proxy refused.
Tests are skipped where Node.js is missing.
"""
