"""Jobs in AzureML, through version 2 of its SDK; a fan-out is one sweep job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from health_ml.azure.account import AzureMLAccount
from health_ml.azure.client import find_workspace
from health_ml.azure.job_body import job_body
from health_ml.azure.sweep_body import MAX_TRIALS
from health_ml.backends.base import Backend, BackendContext, Request, RunHandle
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.environment import environment_variables, process_environment
from health_ml.errors import HimlError, OutputError, PlanError, WorkspaceError
from health_ml.experiment_config import JOB_FLAGS
from health_ml.planning.plan import JobPlan
from health_ml.planning.provenance import GitState
from health_ml.planning.snapshot import Snapshot, hash_cache_folder, user_cache_folder
from health_ml.records.fan_out_report import FanOutReport
from health_ml.records.record import RunStatus
from health_ml.settings import UPLOAD_MEMORY_FOLDER

logger = logging.getLogger(__name__)

POLL_SECONDS = 10.0
DEFAULT_DATASTORE = "workspaceblobstore"
"""The datastore in the storage account in which AzureML keeps code."""
CANCEL_SECONDS = 30.0
"""How long ``cancel`` waits for the run to end; AzureML gives a job minutes to save what it has."""


class AzureMLRunHandle(RunHandle):
    """A job in AzureML.

    :param run_id: Name of the job.
    :param account: The workspace.
    :param page: Its page in the studio, if that is known.
    :param poll_seconds: How often to ask how the job stands while somebody waits for it.
    """

    def __init__(
        self, run_id: str, account: AzureMLAccount, *, page: str = "", poll_seconds: float = POLL_SECONDS
    ) -> None:
        super().__init__(run_id)
        self._account = account
        self._page = page
        self._poll_seconds = poll_seconds

    @property
    def finding_flags(self) -> tuple[str, ...]:
        """The back end, and the file that names the workspace if it is not the one that is found by itself."""
        path = self._account.config_path
        return ("--cluster=azureml", *([f"--workspace_config_path={path}"] if path else []))

    def facts(self) -> dict[str, str]:
        """Returns the page of the job in the studio."""
        from health_ml.azure.jobs import get_job

        if not self._page:
            with self._account.errors("The page of the run cannot be found"):
                self._page = str(get_job(self._account.client, self.run_id).studio_url or "")
        return {"page": self._page} if self._page else {}

    def status(self) -> RunStatus:
        """Returns how the job stands now."""
        from health_ml.azure.history import RunHistory

        account = self._account
        with account.errors("The status of the run cannot be found"), RunHistory.of_client(account.client) as history:
            # The history knows trials as well as jobs, in one request.
            return history.run(self.run_id).run_status

    def report(self) -> FanOutReport | None:
        """Returns what the trials of a search found, as far as they have recorded it; None for any other run.

        Who may ask for runs may still have no way to the storage: then the table lacks what the trials logged.
        """
        from health_ml.azure.history import RunHistory
        from health_ml.azure.rest import ServiceError
        from health_ml.azure.searches import search_report

        account = self._account
        with account.errors("The trials cannot be listed"), RunHistory.of_client(account.client) as history:
            run = history.run(self.run_id)
            if not run.is_sweep:
                return None
            trials = history.children(run)
            try:
                return search_report(history, run, trials)
            except (ServiceError, OutputError) as error:
                logger.warning("The metrics of the trials cannot be shown: %s", error.message)
                return search_report(history, run, trials, has_records=False)

    def stream(self, write: Callable[[str], object]) -> None:
        """Hands every line of the job's logs to ``write``, from the beginning, until it has ended."""
        from health_ml.azure.logs import stream_logs

        with self._account.errors("The logs of the run cannot be read"):
            stream_logs(self._account.client, self.run_id, write)

    def wait(self, timeout_seconds: float | None = None) -> RunStatus:
        """Returns the status once the job has ended, or the present one when the time is over."""
        from health_ml.azure.jobs import wait_until

        wait_until(lambda: self.status().is_final, timeout_seconds, poll_seconds=self._poll_seconds)
        return self.status()

    def cancel(self) -> None:
        """Cancels the job, its trials included, and waits a while for its end."""
        from health_ml.azure.jobs import cancel_job, wait_until

        if self.status().is_final:
            return
        with self._account.errors("The run cannot be cancelled"):
            cancel_job(self._account.client, self.run_id)
        wait_until(lambda: self.status().is_final, CANCEL_SECONDS, poll_seconds=min(1.0, self._poll_seconds))

    def download(self, pattern: str, target: Path) -> list[Path]:
        """Returns the files of the job that match a glob pattern, downloaded below the target folder."""
        from health_ml.azure.downloads import download_files

        with self._account.errors("The files of the run cannot be downloaded"):
            return download_files(self._account.client, self.run_id, pattern, target)


class AzureMLBackend(Backend):
    """Runs plans on a compute cluster of an AzureML workspace.

    :param account: The workspace.
    :param cluster: Name of the cluster, or "" for looking after runs that exist.
    :param poll_seconds: How often to ask how a job stands while somebody waits for it.
    """

    name: ClassVar[str] = "azureml"
    job_flags: ClassVar[frozenset[str]] = JOB_FLAGS - {"strictly_aml_v1"}
    idle_flags: ClassVar[frozenset[str]] = frozenset({"fail_fast", "output_to"})
    warms_up: ClassVar[bool] = True
    max_trials: ClassVar[int | None] = MAX_TRIALS
    needs_software: ClassVar[bool] = True

    def __init__(self, account: AzureMLAccount, cluster: str = "", *, poll_seconds: float = POLL_SECONDS) -> None:
        self._account = account
        self._cluster = cluster
        self._poll_seconds = poll_seconds
        self._code: tuple[Snapshot, Path] = (Snapshot(()), Path())
        self._compute_lock = threading.Lock()
        self._found_compute: Any = None

    @classmethod
    def create(cls, context: BackendContext) -> AzureMLBackend:
        """Returns the back end for the workspace that the user means. Signs in when something is asked for.

        :raises WorkspaceError: If no workspace is named.
        """
        config = context.config
        workspace = find_workspace(
            config_path=config.workspace_config_path,
            start_directory=context.start_directory or context.project_root,
            environ=process_environment(),
        )
        account = AzureMLAccount(
            workspace,
            environ=process_environment(),
            auth=config.auth.value if config.auth else None,
            config_path=config.workspace_config_path,
        )
        return cls(account, context.target)

    def warm_up(self) -> None:
        """Signs in, if that needs nobody, loads the SDK, and asks for the cluster."""
        self._account.warm_up()
        if self._cluster and self._account.credential.method is not None:
            with suppress(HimlError, OSError, ValueError), self._account.errors("The cluster cannot be found"):
                self._compute()  # what goes wrong is said when the job is submitted

    def render(self, plan: JobPlan) -> Request:
        """Returns the body of the request that creates the job, with names where only the service knows ids.

        :raises PlanError: If no cluster was named, or AzureML cannot do what the plan asks for.
        """
        if not self._cluster:
            raise PlanError("--cluster=azureml names no cluster.", "Write --cluster=azureml:NAME, or --cluster=NAME.")
        return Request(self.name, plan, job_body(plan, self._cluster))

    def keep_code(self, snapshot: Snapshot, folder: Path) -> None:
        """Remembers where the files of the next job are; they are read when they are sent, and checked then."""
        self._code = (snapshot, folder)

    def submit(self, request: Request, *, git_state: GitState | None = None) -> AzureMLRunHandle:
        """Returns a handle of the job after creating it. What may be refused is asked for before files are sent.

        :raises HimlError: If it was refused; there is no job then, and the command can be repeated.
        """
        from health_ml.azure.compute import check_compute
        from health_ml.azure.environments import environment_of, register_environment
        from health_ml.azure.job_datasets import resolve_inputs
        from health_ml.azure.jobs import git_variables, new_job_name, submit_body

        plan = request.plan
        client = self._account.client
        environment = environment_of(plan.software)
        with self._account.errors("The job cannot be submitted"):
            check_compute(self._compute(), plan)
            self._check_checkpoint(plan)
            with self._code_of(plan, has_runner=environment.has_runner) as provide_code:
                inputs = resolve_inputs(client, plan)
                environment_id = register_environment(client, environment)
                code_id = provide_code()
            body = submit_body(request.body, code_id=code_id, environment_id=environment_id, inputs=inputs)
        name = new_job_name(plan.model_name)
        with environment_variables(git_variables(plan.provenance, process_environment())):
            page = self._create(name, body)
        return AzureMLRunHandle(name, self._account, page=page, poll_seconds=self._poll_seconds)

    def attach(self, run_id: str) -> AzureMLRunHandle:
        """Returns a handle of a job of the workspace, whoever submitted it.

        :raises RunNotFoundError: If there is no such job.
        """
        handle = AzureMLRunHandle(run_id, self._account, poll_seconds=self._poll_seconds)
        handle.status()
        return handle

    def _check_checkpoint(self, plan: JobPlan) -> None:
        """Looks for the run that the job starts from: otherwise the job would be the first to miss it."""
        flag = "--src_checkpoint="
        given = [argument.removeprefix(flag) for argument in plan.argv if argument.startswith(flag)]
        checkpoint = CheckpointParser(given[-1] if given else "")
        if not checkpoint.is_aml_run_id:
            return
        from health_ml.azure.checkpoints import check_checkpoint
        from health_ml.azure.history import RunHistory

        with RunHistory.of_client(self._account.client) as history:
            check_checkpoint(history, checkpoint.run_id, checkpoint.remote_path)

    def _compute(self) -> Any:
        """Returns the cluster, after asking for it if nobody has done so yet."""
        from health_ml.azure.compute import find_compute

        with self._compute_lock:
            if self._found_compute is None:
                self._found_compute = find_compute(self._account.client, self._cluster)
            return self._found_compute

    @contextmanager
    def _code_of(self, plan: JobPlan, *, has_runner: bool) -> Iterator[Callable[[], str]]:
        """Yields a function that returns the id of the code, after sending what AzureML does not have.

        Whether AzureML has it all is asked at once, in a thread, while other things are asked.
        """
        from health_ml.azure.code_upload import CodeUpload, memory_file
        from health_ml.azure.job_code import job_code
        from health_ml.azure.storage import permission_for

        snapshot, folder = self._code
        if plan.snapshot_hash and plan.snapshot_hash != snapshot.content_hash:
            raise PlanError("The plan is that of other files than those that travel.", "Submit the job again.")
        environ = process_environment()
        arm_id = self._account.workspace.arm_id
        code = job_code(snapshot, folder, has_runner=has_runner, cache_folder=hash_cache_folder(environ))
        upload = CodeUpload(
            self._account.rest,
            arm_id,
            memory_file=memory_file(user_cache_folder(environ) / UPLOAD_MEMORY_FOLDER, arm_id, folder),
            source_signature=lambda address: permission_for(self._account.client, DEFAULT_DATASTORE, address).signature,
        )
        with ThreadPoolExecutor(1, "himl-code") as pool:
            known = pool.submit(upload.find, code)
            yield lambda: known.result() or upload.send(code).code_id

    def _create(self, name: str, body: dict[str, object]) -> str:
        """Returns the page of the job after creating it.

        If all answers were lost, the job may exist all the same; it must not run without anybody knowing.
        """
        from health_ml.azure.jobs import create_job, get_job

        try:
            with self._account.errors("The job cannot be submitted"):
                return str(create_job(self._account.client, name, body).studio_url or "")
        except WorkspaceError as error:
            try:
                with self._account.errors("The job cannot be found"):
                    page = str(get_job(self._account.client, name).studio_url or "")
            except HimlError:
                raise error from error.__cause__
            logger.warning("AzureML has the job although it reported an error: %s", error)
            return page
