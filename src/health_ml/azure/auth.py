"""Signing in to Azure: a stated order of methods, one token per scope, and an error that names what was tried.

The order is: service principal in environment variables, identity of the user inside a job, workload identity,
managed identity, Azure CLI, device code, browser. The last two ask a person, and are tried only where one sits at a
terminal. ``--auth`` picks one method and tries no other.
"""

from __future__ import annotations

import logging
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from health_ml.errors import AuthenticationError, join_choices
from health_ml.planning.sign_in import AuthMethod

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential

logger = logging.getLogger(__name__)

ARM_SCOPE = "https://management.azure.com/.default"
REFRESH_BEFORE_SECONDS = 300
"""A token is fetched again this long before it expires, so that no request starts with one that is about to."""
INTERACTIVE_SECONDS = 180
CLI_SECONDS = 60
PROBE_SECONDS = 1.0
METADATA_SERVICE = "http://169.254.169.254"
_TIMEOUTS: dict[str, Any] = {"connection_timeout": 15, "read_timeout": 60}
_METADATA_SETTINGS: dict[str, Any] = {"connection_timeout": 2, "retry_total": 2, "retry_status": 2}
_SHOWN_CHARACTERS = 400

Prompt = Callable[[str], object]


CONFIGURED_ON_PURPOSE = frozenset({AuthMethod.ENVIRONMENT, AuthMethod.ON_BEHALF_OF, AuthMethod.WORKLOAD_IDENTITY})
"""Methods that are tried only if somebody has set their variables: when one of them is refused, no other is tried,
because the job would then run in another name than the one that was configured."""

INTERACTIVE = frozenset({AuthMethod.DEVICE_CODE, AuthMethod.BROWSER})

UNREACHABLE_ADVICE = "Check the network, and HTTPS_PROXY where there is a proxy; then repeat the command."
_ADVICE = {
    AuthMethod.ENVIRONMENT: "Correct AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET (or the HIML_ "
    "variables); or, to sign in as yourself, remove them or give --auth=azure_cli.",
    AuthMethod.ON_BEHALF_OF: "Submit the job with --identity_based_auth: only then may it act in your name.",
    AuthMethod.WORKLOAD_IDENTITY: "Correct AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE, which "
    "Kubernetes sets for a pod that has an identity.",
    AuthMethod.MANAGED_IDENTITY: "Give this machine an identity in Azure; AZURE_CLIENT_ID says which of several.",
    AuthMethod.AZURE_CLI: "Install the Azure CLI if it is missing, and run az login, with --tenant=… if the "
    "subscription is in another tenant than your own.",
    AuthMethod.DEVICE_CODE: f"Repeat the command, and sign in within {INTERACTIVE_SECONDS} seconds.",
    AuthMethod.BROWSER: f"Repeat the command, and sign in within {INTERACTIVE_SECONDS} seconds; where no browser "
    "opens, use --auth=device_code.",
}
"""What to do where a method is the only one that counts, and does not work."""


def advice_on(method: AuthMethod | None) -> str:
    """Returns what to do after a sign-in that does not work.

    :param method: The only way of signing in that counts; None: any would do.
    """
    if method is not None:
        return _ADVICE[method]
    return (
        "Run az login, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET of a service principal; "
        "--auth=device_code or --auth=browser asks you to sign in."
    )


class _NotAvailableError(Exception):
    """A method cannot be used here."""


class CachingCredential:
    """A credential that tries methods in order, keeps to the first that works, and fetches one token per scope.

    The SDK asks for a token in each of its service clients; with the Azure CLI each of these would be a process.

    :param methods: What is tried, in order: the method and what makes its credential.
    """

    def __init__(self, methods: Mapping[AuthMethod, Callable[[], TokenCredential]]) -> None:
        self._methods = methods
        self._credential: TokenCredential | None = None
        self._tokens: dict[tuple[object, ...], AccessToken] = {}
        self._lock = threading.Lock()
        self.method: AuthMethod | None = None

    def get_token(
        self, *scopes: str, claims: str | None = None, tenant_id: str | None = None, **options: Any
    ) -> AccessToken:
        """Returns a token for the scopes.

        :param claims: What a service demands besides, after it refused a token: never answered from memory.
        :param tenant_id: The tenant to ask, if not the default one.
        :raises AuthenticationError: If no method gives one, with the reason of each.
        """
        key = (*scopes, tenant_id)
        with self._lock:
            known = self._tokens.get(key)
            if known is not None and claims is None and known.expires_on - time.time() > REFRESH_BEFORE_SECONDS:
                return known
            with _quiet_sdk():
                token = self._fetch(scopes, {"claims": claims, "tenant_id": tenant_id, **options})
            self._tokens[key] = token
            return token

    def prefetch(self, scope: str) -> None:
        """Fetches a token ahead if no person has to be asked; what goes wrong is said when it is needed."""
        from azure.core.exceptions import AzureError

        with self._lock, _quiet_sdk():
            if (scope, None) in self._tokens:
                return
            for method in (method for method in self._methods if method not in INTERACTIVE):
                try:
                    credential = self._methods[method]()
                    token = credential.get_token(scope)
                except _NotAvailableError:
                    continue
                except (AzureError, ValueError, OSError):
                    if method in CONFIGURED_ON_PURPOSE:
                        return
                else:
                    self.method, self._credential = method, credential
                    self._tokens[scope, None] = token
                    return

    def forget(self) -> None:
        """Asks for new tokens next time: a service has refused one."""
        with self._lock:
            self._tokens.clear()

    def close(self) -> None:
        """Closes the connections of the method in use."""
        close = getattr(self._credential, "close", None)
        if close is not None:
            close()

    def _fetch(self, scopes: tuple[str, ...], options: dict[str, Any]) -> AccessToken:
        from azure.core.exceptions import AzureError

        if self._credential is not None and self.method is not None:
            try:
                return self._credential.get_token(*scopes, **options)
            except (AzureError, ValueError, OSError) as error:
                raise self._error({self.method: error}) from error
        failures: dict[AuthMethod, Exception] = {}
        for method, make in self._methods.items():
            try:
                credential = make()
                token = credential.get_token(*scopes, **options)
            except _NotAvailableError as error:
                failures[method] = error
            except (AzureError, ValueError, OSError) as error:  # a file with a certificate or a token may be missing
                failures[method] = error
                if method in CONFIGURED_ON_PURPOSE:
                    break
            else:
                logger.debug("Signed in to Azure with %s.", method.value)
                self.method, self._credential = method, credential
                return token
        raise self._error(failures)

    def _error(self, failures: Mapping[AuthMethod, Exception]) -> AuthenticationError:
        """Returns an error that says for each method why it did not work, and what would help."""
        tried = "\n".join(f"  {method.value + ':':<20}{_reason(error)}" for method, error in failures.items())
        text = f"Azure gave no token. Tried, in this order:\n{tried}\n"
        if any(
            _is_unreachable(error) for method, error in failures.items() if method is not AuthMethod.MANAGED_IDENTITY
        ):
            return AuthenticationError(text, UNREACHABLE_ADVICE)
        last = list(failures)[-1]
        # Nothing is tried after a service principal that was refused.
        is_only = len(failures) == 1 or last in CONFIGURED_ON_PURPOSE
        return AuthenticationError(text, advice_on(last if is_only else None))


def get_credential(
    *, environ: Mapping[str, str], auth: str | None = None, prompt: Prompt | None = None
) -> CachingCredential:
    """Returns a credential for every service of Azure. Signs in when its first token is asked for.

    :param environ: The environment variables of this process.
    :param auth: The only method to try; None tries all in order.
    :param prompt: Shows a person what to do to sign in. Default: as a warning in the log.
    :raises AuthenticationError: If there is no such method.
    """
    methods = _methods(environ, prompt or _warn)
    if auth is None:
        has_person = sys.stdin is not None and sys.stdin.isatty()
        methods |= {} if has_person else dict.fromkeys(INTERACTIVE, _nobody_there)
        return CachingCredential(methods)
    choices = [method.value for method in AuthMethod]
    if auth not in choices:
        raise AuthenticationError(f"There is no way {auth!r} to sign in to Azure.", f"Choose {join_choices(choices)}.")
    return CachingCredential({AuthMethod(auth): methods[AuthMethod(auth)]})


def _methods(environ: Mapping[str, str], prompt: Prompt) -> dict[AuthMethod, Callable[[], TokenCredential]]:
    return {
        AuthMethod.ENVIRONMENT: lambda: _service_principal(environ),
        AuthMethod.ON_BEHALF_OF: lambda: _on_behalf_of(environ),
        AuthMethod.WORKLOAD_IDENTITY: lambda: _workload_identity(environ),
        AuthMethod.MANAGED_IDENTITY: lambda: _managed_identity(environ),
        AuthMethod.AZURE_CLI: lambda: _azure_cli(environ),
        AuthMethod.DEVICE_CODE: lambda: _device_code(environ, prompt),
        AuthMethod.BROWSER: lambda: _browser(environ),
    }


def _service_principal(environ: Mapping[str, str]) -> TokenCredential:
    tenant = environ.get("AZURE_TENANT_ID") or environ.get("HIML_TENANT_ID", "")
    client = environ.get("AZURE_CLIENT_ID") or environ.get("HIML_SERVICE_PRINCIPAL_ID", "")
    secret = environ.get("AZURE_CLIENT_SECRET") or environ.get("HIML_SERVICE_PRINCIPAL_PASSWORD", "")
    certificate = environ.get("AZURE_CLIENT_CERTIFICATE_PATH", "")
    needed = {
        "AZURE_TENANT_ID": tenant,
        "AZURE_CLIENT_ID": client,
        "AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH": secret or certificate,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise _NotAvailableError(f"{join_choices(missing, 'and')} {'are' if len(missing) > 1 else 'is'} not set.")
    from azure.identity import CertificateCredential, ClientSecretCredential

    if secret:
        return ClientSecretCredential(tenant, client, secret, **_TIMEOUTS)
    password = environ.get("AZURE_CLIENT_CERTIFICATE_PASSWORD")
    return CertificateCredential(tenant, client, certificate, password=password, **_TIMEOUTS)


def _on_behalf_of(environ: Mapping[str, str]) -> TokenCredential:
    if not environ.get("OBO_ENDPOINT"):
        raise _NotAvailableError("this is no job that runs in the name of a user (OBO_ENDPOINT is not set).")
    from azure.ai.ml.identity import AzureMLOnBehalfOfCredential

    return AzureMLOnBehalfOfCredential(**_TIMEOUTS)


def _workload_identity(environ: Mapping[str, str]) -> TokenCredential:
    names = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE")
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise _NotAvailableError(f"{join_choices(missing, 'and')} {'are' if len(missing) > 1 else 'is'} not set.")
    from azure.identity import WorkloadIdentityCredential

    tenant, client, file = (environ[name] for name in names)
    return WorkloadIdentityCredential(tenant_id=tenant, client_id=client, token_file_path=file, **_TIMEOUTS)


def _managed_identity(environ: Mapping[str, str]) -> TokenCredential:
    if not any(environ.get(name) for name in ("IDENTITY_ENDPOINT", "MSI_ENDPOINT")):
        address = environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or METADATA_SERVICE
        if not _answers(address):
            raise _NotAvailableError(f"this machine is not in Azure: nothing answers at {address}.")
    from azure.identity import ManagedIdentityCredential

    client = environ.get("AZURE_CLIENT_ID") or environ.get("DEFAULT_IDENTITY_CLIENT_ID") or None
    return ManagedIdentityCredential(client_id=client, **_METADATA_SETTINGS)


def _answers(address: str) -> bool:
    """Returns whether something listens there; without this question the SDK would try for half a minute."""
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _azure_cli(environ: Mapping[str, str]) -> TokenCredential:
    if shutil.which("az", path=environ.get("PATH")) is None:
        raise _NotAvailableError("the Azure CLI (az) is not installed.")
    from azure.identity import AzureCliCredential

    return AzureCliCredential(tenant_id=environ.get("AZURE_TENANT_ID", ""), process_timeout=CLI_SECONDS)


def _device_code(environ: Mapping[str, str], prompt: Prompt) -> TokenCredential:
    from azure.identity import DeviceCodeCredential

    def show(address: str, code: str, expires: object) -> None:
        prompt(f"To sign in to Azure, open {address} in a web browser and enter the code {code}.")

    return DeviceCodeCredential(prompt_callback=show, timeout=INTERACTIVE_SECONDS, **_tenant(environ), **_TIMEOUTS)


def _browser(environ: Mapping[str, str]) -> TokenCredential:
    from azure.identity import InteractiveBrowserCredential

    return InteractiveBrowserCredential(timeout=INTERACTIVE_SECONDS, **_tenant(environ), **_TIMEOUTS)


def _nobody_there() -> TokenCredential:
    raise _NotAvailableError(
        "nobody can be asked, because the standard input is no terminal; --auth asks all the same."
    )


def _tenant(environ: Mapping[str, str]) -> dict[str, str]:
    tenant = environ.get("AZURE_TENANT_ID")
    return {"tenant_id": tenant} if tenant else {}


def _warn(text: str) -> None:
    logger.warning("%s", text)


def _quiet_sdk() -> AbstractContextManager[None]:
    """Keeps the SDK from warning of each method that fails: the error at the end names them all."""
    return quiet_library("azure.identity", logging.CRITICAL)


_quiet_lock = threading.Lock()
_quiet: dict[str, tuple[int, int]] = {}
"""The libraries that are quiet now: how many ask for it, and the level to go back to."""


@contextmanager
def quiet_library(name: str, level: int) -> Iterator[None]:
    """Drops what a library logs that is less severe than a level. Several threads may ask for it at once."""
    library = logging.getLogger(name)
    with _quiet_lock:
        count, before = _quiet.get(name, (0, library.level))
        if not count:
            library.setLevel(level)
        _quiet[name] = (count + 1, before)
    try:
        yield
    finally:
        with _quiet_lock:
            count, before = _quiet.pop(name)
            if count > 1:
                _quiet[name] = (count - 1, before)
            else:
                library.setLevel(before)


def _reason(error: Exception) -> str:
    """Returns the first paragraph of an error of the SDK on one line: what follows are links to its help pages."""
    text = " ".join(str(error).strip().partition("\n\n")[0].split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _is_unreachable(error: BaseException | None) -> bool:
    """Returns whether a question had no answer at all; the SDK wraps that into the error of a refusal."""
    from azure.core.exceptions import ServiceRequestError, ServiceResponseError

    while error is not None:
        if isinstance(error, (ServiceRequestError, ServiceResponseError)):
            return True
        error = error.__cause__
    return False
