"""Finds the AzureML workspace and connects to it, and turns the SDK's errors into ours."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_ml.azure.auth import ARM_SCOPE, UNREACHABLE_ADVICE, CachingCredential, advice_on, get_credential
from health_ml.environment import paused_garbage_collection
from health_ml.errors import AuthenticationError, HimlError, WorkspaceError, join_choices

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.exceptions import HttpResponseError

CONFIG_FILE = "config.json"
CONFIG_FOLDERS = ("", ".azureml")
"""Folders below a searched one in which the file may be; the SDK of AzureML knows the second one too."""
KEYS = ("subscription_id", "resource_group", "workspace_name")
SCOPE_KEY = "Scope"
"""What the file has instead if a job wrote it: the address of the workspace in Azure."""
_SCOPE = re.compile(
    r"/?subscriptions/([^/]+)/resourceGroups/([^/]+)/providers/Microsoft\.MachineLearningServices/workspaces/([^/]+)/?",
    re.IGNORECASE,
)
JOB_VARIABLES = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")
"""Variables of a job, which name the workspace that it runs in."""
USER_VARIABLES = (
    ("HIML_SUBSCRIPTION_ID", "HIML_RESOURCE_GROUP", "HIML_WORKSPACE_NAME"),
    ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_WORKSPACE_NAME"),
)
TIMEOUTS: Mapping[str, Any] = {"connection_timeout": 20, "read_timeout": 120}
"""Seconds after which a request that gets no answer fails, and is sent again as far as the SDK retries it."""
_HINT = (
    "Download config.json in the studio (the name of the workspace, top right) into the folder of your project, "
    "name it with --workspace_config_path, or set HIML_SUBSCRIPTION_ID, HIML_RESOURCE_GROUP and HIML_WORKSPACE_NAME."
)


@dataclass(frozen=True)
class WorkspaceName:
    """Which workspace.

    :param subscription_id: Id of its subscription.
    :param resource_group: Its resource group.
    :param name: Its name.
    """

    subscription_id: str
    resource_group: str
    name: str

    @property
    def arm_id(self) -> str:
        """The id of the workspace in Azure's resource manager, which is the start of every path below it."""
        return (
            f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.name}"
        )


def find_workspace(*, config_path: Path | None, start_directory: Path, environ: Mapping[str, str]) -> WorkspaceName:
    """Returns the workspace that the user means.

    That is the one in the given file; in a job the one that the job runs in; else the one in the nearest
    ``config.json`` at or above the start directory; else the one that variables name.

    :param config_path: The value of ``--workspace_config_path``: a file, or a folder with a ``config.json``.
    :param start_directory: Where the search starts.
    :param environ: The environment variables of this process.
    :raises WorkspaceError: If nothing names one, or what names it cannot be read.
    """
    if config_path is not None:
        path = start_directory / config_path.expanduser()
        return _read_config(path / CONFIG_FILE if path.is_dir() else path, "--workspace_config_path")
    in_job = _from_variables(environ, JOB_VARIABLES)
    if in_job is not None:
        return in_job
    for folder in (start_directory, *start_directory.parents):
        for place in CONFIG_FOLDERS:
            path = folder / place / CONFIG_FILE
            if path.is_file() and not _is_of_something_else(path):
                return _read_config(path, "the nearest one to this folder")
    for names in USER_VARIABLES:
        found = _from_variables(environ, names)
        if found is not None:
            return found
    raise WorkspaceError(f"No AzureML workspace is named: {_what_is_missing(start_directory, environ)}.", _HINT)


def connect(
    workspace: WorkspaceName,
    *,
    environ: Mapping[str, str],
    auth: str | None = None,
    credential: CachingCredential | None = None,
) -> MLClient:
    """Returns the SDK's client of a workspace. Neither signs in nor sends anything yet.

    :param auth: The only method of signing in; None tries all.
    :param credential: What signs in, if there is one already.
    :raises AuthenticationError: If there is no such method.
    """
    credential = credential or get_credential(environ=environ, auth=auth)
    with paused_garbage_collection():
        from azure.ai.ml import MLClient

    return MLClient(
        credential, workspace.subscription_id, workspace.resource_group, workspace.name, enable_telemetry=False,
        **TIMEOUTS,
    )  # fmt: skip


@contextmanager
def azure_errors(
    doing: str, workspace: WorkspaceName, *, credential: CachingCredential | None = None
) -> Iterator[None]:
    """Turns the errors of Azure's SDKs into ours.

    :param doing: What is done, as the start of a sentence, for example ``The job cannot be submitted``.
    :param credential: Who asks, to name the tenant where access is denied.
    :raises WorkspaceError: For every error of the SDKs.
    :raises AuthenticationError: If Azure refuses the token.
    """
    from azure.core.exceptions import (
        AzureError,
        ClientAuthenticationError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    try:
        yield
    except HimlError:
        raise
    except (ServiceRequestError, ServiceResponseError) as error:
        raise WorkspaceError(
            f"{doing}: Azure cannot be reached: {_first_line(error)}.",
            UNREACHABLE_ADVICE,
        ) from error
    except HttpResponseError as error:
        is_refused = isinstance(error, ClientAuthenticationError) or error.status_code == 401
        if is_refused or error.status_code == 403:
            raise _access_error(doing, error, workspace, credential, is_refused=is_refused) from error
        missing = _missing_part(error, workspace)
        if missing:
            raise WorkspaceError(f"{doing}: {missing}", _HINT) from error
        raise WorkspaceError(f"{doing}: {message_of(error)}") from error
    except AzureError as error:
        raise WorkspaceError(f"{doing}: {_first_line(error)}") from error


def message_of(error: HttpResponseError) -> str:
    """Returns what the service wrote, without the dump of the answer that the SDK adds."""
    inner = getattr(error, "error", None)
    text = getattr(inner, "message", None) or _first_line(error)
    return str(text).strip()


def _access_error(
    doing: str,
    error: HttpResponseError,
    workspace: WorkspaceName,
    credential: CachingCredential | None,
    *,
    is_refused: bool,
) -> WorkspaceError:
    names = f"workspace {workspace.name}, resource group {workspace.resource_group}"
    where = f"{names}, subscription {workspace.subscription_id}{_tenant_text(credential)}"
    if is_refused:
        return AuthenticationError(
            f"{doing}: Azure does not accept the sign-in ({where}): {message_of(error)}",
            f"{advice_on(credential.method if credential else None)} --auth chooses another way to sign in.",
        )
    return WorkspaceError(
        f"{doing}: access is denied ({where}): {message_of(error)}",
        "Ask the owner of the workspace for the role 'AzureML Data Scientist', or sign in as somebody who has it; "
        "az account show says who you are.",
    )


def _tenant_text(credential: CachingCredential | None) -> str:
    """Returns the tenant of the token in use, which is not always the one that its user thinks of."""
    if credential is None or credential.method is None:
        return ""
    try:
        payload = credential.get_token(ARM_SCOPE).token.split(".")[1]
        tenant = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["tid"]
    except (HimlError, IndexError, KeyError, TypeError, ValueError):
        return f", signed in with {credential.method.value}"
    return f", tenant {tenant}, signed in with {credential.method.value}"


def _missing_part(error: HttpResponseError, workspace: WorkspaceName) -> str:
    """Returns a sentence if the subscription, resource group or workspace does not exist, else an empty text."""
    code = str(getattr(getattr(error, "error", None), "code", ""))
    text = message_of(error)
    if code == "SubscriptionNotFound":
        return f"there is no subscription {workspace.subscription_id}, or you have no access to it."
    if code == "ResourceGroupNotFound":
        return f"subscription {workspace.subscription_id} has no resource group {workspace.resource_group!r}."
    if error.status_code == 404 and f"workspaces/{workspace.name}'" in text:
        return f"resource group {workspace.resource_group} has no workspace {workspace.name!r}."
    return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(getattr(error, "message", None) or error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")


def _from_variables(environ: Mapping[str, str], names: tuple[str, ...]) -> WorkspaceName | None:
    values = [environ.get(name, "") for name in names]
    return WorkspaceName(*values) if all(values) else None


def _what_is_missing(start_directory: Path, environ: Mapping[str, str]) -> str:
    reasons = [f"there is no {CONFIG_FILE} of a workspace in {start_directory} or above it"]
    for names in USER_VARIABLES:
        missing = [name for name in names if not environ.get(name)]
        if len(missing) < len(names):
            given = [name for name in names if name not in missing]
            reasons.append(f"{join_choices(missing, 'and')} missing beside {join_choices(given, 'and')}")
    if len(reasons) == 1:
        reasons.append("the variables HIML_SUBSCRIPTION_ID and so on are not set")
    return ", and ".join(reasons)


def _is_of_something_else(path: Path) -> bool:
    """Returns whether a file has the name but not the keys: many programs call their settings config.json."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return not isinstance(content, dict) or not any(key in content for key in (*KEYS, SCOPE_KEY))


def _read_config(path: Path, source: str) -> WorkspaceName:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WorkspaceError(f"{path} ({source}) cannot be read: {error.strerror}.", _HINT) from error
    except ValueError as error:
        raise WorkspaceError(f"{path} ({source}) is no JSON: {error}.", _HINT) from error
    values = content if isinstance(content, dict) else {}
    scope = _SCOPE.fullmatch(str(values.get(SCOPE_KEY) or ""))
    values = {**(dict(zip(KEYS, scope.groups(), strict=True)) if scope else {}), **values}
    no_texts = [f"{key} is {json.dumps(values[key])}" for key in KEYS if not isinstance(values.get(key, ""), str)]
    if no_texts:
        problem = f"{join_choices(no_texts, 'and')}, which is no text"
        raise WorkspaceError(
            f"{path} ({source}): {problem}.", f'Write it in quotes, like "{KEYS[-1]}": "my-workspace".'
        )
    missing = [key for key in KEYS if not values.get(key, "").strip()]
    if missing:
        raise WorkspaceError(f"{path} ({source}) does not say {join_choices(missing, 'and')}.", _HINT)
    return WorkspaceName(*(values[key].strip() for key in KEYS))
