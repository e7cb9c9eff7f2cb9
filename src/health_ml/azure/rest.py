"""Requests to the services of a workspace: signed, with time limits, and repeated where that can help."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from health_ml.errors import BackendError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

ARM_ADDRESS = "https://management.azure.com"
REFRESH_BEFORE_SECONDS = 300
"""A token that is valid for less than this is replaced."""
CONNECTIONS = 32
PATIENT_ATTEMPTS = 2
"""How many further attempts a user need not hear of."""
LONGEST_ASKED = 120.0
"""Seconds: the longest pause that a service can ask for."""


class Token(Protocol):
    """A token and when it expires, in seconds since 1970-01-01 UTC."""

    @property
    def token(self) -> str:
        """What goes into the header of a request."""

    @property
    def expires_on(self) -> int:
        """When it expires."""


class Credential(Protocol):
    """Whatever gives out tokens for a scope, like the classes of azure-identity."""

    def get_token(self, *scopes: str) -> Token:
        """Returns a token."""


@dataclass(frozen=True)
class Patience:
    """How long a request may take, and how often it is repeated.

    :param connect_seconds: Until the connection has to stand.
    :param read_seconds: That may pass without a single byte.
    :param attempts: How often to try in a row.
    :param pause: Seconds before the second attempt; doubles with each one.
    :param longest_pause: Most seconds between two attempts, if the service does not ask for more.
    """

    connect_seconds: float = 15.0
    read_seconds: float = 60.0
    attempts: int = 7
    pause: float = 0.5
    longest_pause: float = 30.0

    @property
    def timeouts(self) -> tuple[float, float]:
        """The limits as the requests library takes them."""
        return self.connect_seconds, self.read_seconds

    def seconds_before(self, attempt: int, asked: float = 0.0) -> float:
        """Returns how long to wait before an attempt, the second one having the number 1.

        :param asked: What the service asked for.
        """
        growing = self.pause * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)  # noqa: S311
        return float(max(min(growing, self.longest_pause), min(asked, LONGEST_ASKED)))


class ServiceError(BackendError):
    """A service refused a request, or could not be reached.

    ``status`` is the status of its answer, 0 if there was none.
    """

    status = 0


def service_error(what: str, hint: str = "", *, status: int = 0) -> ServiceError:
    """Returns the error for an answer of a service."""
    error = ServiceError(what, hint)
    error.status = status
    return error


def new_session(connections: int = CONNECTIONS) -> requests.Session:
    """Returns a session that several threads can share."""
    import requests  # half a second that only those pay who need the network
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.auth = _unchanged  # a password in ~/.netrc would replace the header with our token
    session.mount("https://", HTTPAdapter(pool_connections=4, pool_maxsize=connections))
    return session


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class RestClient:
    """Asks one service of a workspace. Close it at the end, or use it as a context manager.

    :param address: Where the service is, without a path.
    :param credential: Who asks.
    :param patience: How often to try, and how long.
    """

    def __init__(self, address: str, credential: Credential, patience: Patience | None = None) -> None:
        self.address = address.rstrip("/")
        self.patience = patience or Patience()
        self._tokens = BearerTokens(credential)
        self._session = new_session()

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def get(self, path: str, /, **query: str) -> dict[str, Any]:
        """Returns the answer to a GET request.

        :raises ServiceError: If the service refuses it, or does not answer in time.
        """
        return self._send("GET", self.address + path, query=query)

    def send(self, method: str, path: str, body: Mapping[str, Any], /, **query: str) -> dict[str, Any]:
        """Returns the answer to a request that can be repeated without harm.

        :raises ServiceError: If the service refuses it, or does not answer in time.
        """
        return self._send(method, self.address + path, query=query, body=body)

    def pages(self, path: str, /, **query: str) -> Iterator[dict[str, Any]]:
        """Yields the entries of a list that comes in pages.

        :raises ServiceError: If the service refuses, does not answer in time, or sends us somewhere else.
        """
        page = self.get(path, **query)
        while True:
            yield from page.get("value") or []
            if page.get("nextLink"):
                page = self._send("GET", self._checked(page["nextLink"]), query={})
            elif page.get("continuationToken"):
                page = self.get(path, **query, continuationToken=page["continuationToken"])
            else:
                return

    def _checked(self, link: str) -> str:
        """Returns the address of a next page, which gets our token: it has to be on the same host."""
        if urlsplit(link)[:2] != urlsplit(self.address)[:2]:
            raise service_error(f"{self.address} sends us to another host for the rest of a list, which is not safe.")
        return link

    def _send(
        self, method: str, url: str, *, query: Mapping[str, str], body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        import requests

        problem = ""
        for attempt in range(self.patience.attempts):
            asked = 0.0
            try:
                answer = self._session.request(
                    method,
                    url,
                    params=dict(query),
                    json=body,
                    headers={"Authorization": f"Bearer {self._tokens.current()}"},
                    timeout=self.patience.timeouts,
                    allow_redirects=False,
                )
            except requests.exceptions.SSLError as error:
                raise service_error(
                    f"{self.address} cannot be trusted: {reason_of(error)}."
                ) from None  # its text has the signature
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                problem = reason_of(error)
            else:
                if answer.status_code < 300:
                    return _content(answer)
                problem, asked = _problem_of(answer), retry_after(answer)
                if answer.status_code == 401 and attempt == 0:
                    self._tokens.forget()
                elif not is_temporary(answer.status_code):
                    raise refusal(method, url, answer.status_code, problem)
            if attempt + 1 < self.patience.attempts:
                pause = self.patience.seconds_before(attempt + 1, asked)
                level = logging.INFO if attempt == PATIENT_ATTEMPTS else logging.DEBUG
                logger.log(level, "%s does not answer yet (%s). Next attempt in %.0f s.", self.address, problem, pause)
                time.sleep(pause)
        raise service_error(
            f"{self.address} does not answer: {problem}, {self.patience.attempts} times in a row.",
            "Check the network, and HTTPS_PROXY where there is a proxy; then repeat the command.",
        )


class BearerTokens:
    """The token that is valid now, for several threads.

    :param scope: What the token is for.
    """

    def __init__(self, credential: Credential, scope: str = f"{ARM_ADDRESS}/.default") -> None:
        self._credential = credential
        self._scope = scope
        self._lock = threading.Lock()
        self._token: Token | None = None

    def current(self) -> str:
        """Returns a token that is valid for some minutes more."""
        with self._lock:
            if self._token is None or self._token.expires_on - time.time() < REFRESH_BEFORE_SECONDS:
                self._token = self._credential.get_token(self._scope)
            return self._token.token

    def forget(self) -> None:
        """Asks for a new token next time, also if it is not here that the old one is remembered."""
        forget = getattr(self._credential, "forget", None)
        with self._lock:
            self._token = None
        if forget is not None:
            forget()


def is_temporary(status: int) -> bool:
    """Returns True for an answer that another try may change."""
    return status in (408, 425, 429) or status >= 500


def retry_after(answer: requests.Response) -> float:
    """Returns the seconds that a service asks to wait, 0 if it does not say."""
    text = answer.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def reason_of(error: BaseException) -> str:
    """Returns the innermost reason of a network error in a few words, without addresses, which may hold secrets."""
    while error.__cause__ is not None or (error.args and isinstance(error.args[0], BaseException)):
        error = error.__cause__ or error.args[0]
    text = str(getattr(error, "reason", None) or error) or type(error).__name__
    return text.partition("http")[0].strip(" .:") or type(error).__name__


def refusal(method: str, url: str, status: int, problem: str) -> ServiceError:
    """Returns the error for a request that it makes no sense to repeat."""
    hints = {
        401: "Sign in again, for example with az login.",
        403: "Ask the owner of the workspace for the role 'AzureML Data Scientist'.",
    }
    host = urlsplit(url).netloc
    return service_error(
        f"{host} refuses {method} with status {status}: {problem}.", hints.get(status, ""), status=status
    )


def _content(answer: requests.Response) -> dict[str, Any]:
    try:
        content = answer.json() if answer.content else {}
    except ValueError as error:
        raise service_error(f"{urlsplit(answer.url).netloc} answered with something else than JSON.") from error
    return content if isinstance(content, dict) else {"value": content}


def _problem_of(answer: requests.Response) -> str:
    """Returns what a service says about its refusal."""
    try:
        content = answer.json()
        error = content.get("error", content)
        text = f"{error.get('code', '')}: {error.get('message', '')}".strip(": ")
    except (ValueError, AttributeError):
        text = ""
    return (text or answer.reason or f"status {answer.status_code}").rstrip(".")
