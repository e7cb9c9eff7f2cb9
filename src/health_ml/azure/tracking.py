"""Logging to a workspace through MLflow from a machine outside of AzureML."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from health_ml.azure.auth import ARM_SCOPE, INTERACTIVE, get_credential
from health_ml.azure.client import find_workspace
from health_ml.azure.history import workspace_tracking_uri
from health_ml.errors import AuthenticationError
from health_ml.planning.sign_in import AuthMethod
from health_ml.settings import ENV_AUTH

logger = logging.getLogger(__name__)

_TOKEN_OF_JOB = "MLFLOW_TRACKING_TOKEN"  # noqa: S105  # the name of a variable


def find_tracking_uri(
    environ: Mapping[str, str], *, start_directory: Path, config_path: Path | None = None, auth: str | None = None
) -> str:
    """Returns the address under which MLflow logs to the workspace of the user, after signing in to it once.

    :param environ: The environment variables of this process.
    :param start_directory: Where the command was typed.
    :param config_path: The value of ``--workspace_config_path``.
    :param auth: The value of ``--auth``.
    :raises WorkspaceError: If no workspace is named, or what names it cannot be read.
    :raises AuthenticationError: If no way to sign in works without a person.
    :raises ServiceError: If the workspace does not exist, or does not answer.
    """
    workspace = find_workspace(config_path=config_path, start_directory=start_directory, environ=environ)
    if auth in {method.value for method in INTERACTIVE}:
        raise _needs_no_person(auth)
    credential = get_credential(environ=environ, auth=auth)
    credential.get_token(ARM_SCOPE)
    method: AuthMethod | None = credential.method
    if method in INTERACTIVE:
        raise _needs_no_person(method.value)
    return workspace_tracking_uri(workspace.arm_id, credential)


def _needs_no_person(method: str) -> AuthenticationError:
    return AuthenticationError(
        f"The process that logs to AzureML while the training goes on cannot sign in with {method}: that asks a person "
        "again and again.",
        "Run az login, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET of a service principal.",
    )


def sign_in_for_mlflow(tracking_uri: str, environ: Mapping[str, str]) -> None:
    """Lets the plugin of AzureML for MLflow sign in as this package does, in this process.

    Left to itself it knows fewer ways to sign in, starts a process for each token of the Azure CLI, and asks a person
    where nobody looks. In a job it uses the token of the job.

    :param tracking_uri: The address of a workspace.
    :param environ: The environment variables of this process.
    """
    if environ.get(_TOKEN_OF_JOB):
        return
    try:
        from azureml.mlflow._internal.service_context_loader import _AzureMLServiceContextLoader as Loader
        from azureml.mlflow._internal.utils import ServiceContext
    except ImportError as error:
        logger.info("The plugin of AzureML signs in on its own: %s", error)
        return
    host, _, path = tracking_uri.removeprefix("azureml://").partition("/")
    names = path.split("/")
    place = {key.lower(): value for key, value in pairwise(names)}
    subscription, group, name = (place.get(key, "") for key in ("subscriptions", "resourcegroups", "workspaces"))
    if not (subscription and group and name):
        return
    credential = get_credential(environ=environ, auth=environ.get(ENV_AUTH) or None)
    Loader.add_service_context(
        tracking_uri,
        ServiceContext(
            host_url=f"https://{host}",
            subscription_id=subscription,
            workspace_name=name,
            resource_group_name=group,
            auth=credential,
        ),
    )
