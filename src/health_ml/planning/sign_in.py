"""The ways to sign in to Azure by name, for flags; :mod:`health_ml.azure.auth` does it."""

from __future__ import annotations

from enum import Enum


class AuthMethod(Enum):
    """How to sign in to Azure, in the order in which it is tried."""

    ENVIRONMENT = "environment"
    ON_BEHALF_OF = "on_behalf_of"
    WORKLOAD_IDENTITY = "workload_identity"
    MANAGED_IDENTITY = "managed_identity"
    AZURE_CLI = "azure_cli"
    DEVICE_CODE = "device_code"
    BROWSER = "browser"
