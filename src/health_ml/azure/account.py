"""A workspace of AzureML and who uses it: what every question to it needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from health_ml.azure.auth import ARM_SCOPE, CachingCredential, get_credential, quiet_library
from health_ml.azure.client import WorkspaceName, azure_errors, connect
from health_ml.azure.rest import ARM_ADDRESS, RestClient

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


class AzureMLAccount:
    """A workspace and who uses it. Nobody signs in before something is asked for.

    :param workspace: The workspace.
    :param environ: The environment variables of this process.
    :param auth: The only way to sign in; None: any.
    :param config_path: The file that the user gave to name it, or None.
    """

    def __init__(
        self,
        workspace: WorkspaceName,
        *,
        environ: Mapping[str, str],
        auth: str | None = None,
        config_path: Path | None = None,
    ) -> None:
        self.workspace = workspace
        self.config_path = config_path
        self._environ = environ
        self.credential: CachingCredential = get_credential(environ=environ, auth=auth)

    @cached_property
    def client(self) -> MLClient:
        """The client of the SDK."""
        return connect(self.workspace, environ=self._environ, credential=self.credential)

    @cached_property
    def rest(self) -> RestClient:
        """The connection to Azure's resource manager for what the SDK cannot do."""
        return RestClient(ARM_ADDRESS, self.credential)

    def warm_up(self) -> None:
        """Signs in, if that needs nobody, and loads the SDK: what takes longest of all that follows."""
        self.credential.prefetch(ARM_SCOPE)
        with _quiet_sdk():
            _ = self.client

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turns the errors of the SDK into ours, and keeps its advice to programmers from the user."""
        with azure_errors(doing, self.workspace, credential=self.credential), _quiet_sdk():
            yield


def _quiet_sdk() -> AbstractContextManager[None]:
    """Keeps back what the SDK has to say about its own classes ("experimental", "deprecated")."""
    return quiet_library("azure.ai.ml", logging.ERROR)
