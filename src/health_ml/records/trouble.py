"""What is wrong when a store does not take what the mirror sends: said for people, with the way out."""

from __future__ import annotations

import errno
import re
import socket
import ssl
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

from health_ml.errors import HimlError
from health_ml.planning.secrets import mask_text

_LONGEST_REASON = 300
_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
# Error codes of MLflow that another try cannot heal.
_PERMANENT_CODES = frozenset(
    {
        "BAD_REQUEST",
        "CUSTOMER_UNAUTHORIZED",
        "ENDPOINT_NOT_FOUND",
        "FEATURE_DISABLED",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "NOT_FOUND",
        "NOT_IMPLEMENTED",
        "PERMISSION_DENIED",
        "RESOURCE_DOES_NOT_EXIST",
        "UNAUTHENTICATED",
    }
)
_STATUS_OF_CODE = {
    "CUSTOMER_UNAUTHORIZED": 401,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "ENDPOINT_NOT_FOUND": 404,
}
# MLflow has no better place for the status of an answer than the text of its errors.
_STATUS_IN_TEXT = re.compile(r"failed with error code (\d{3}) !=|too many (\d{3}) error responses")
_BROKEN = frozenset({"BadStatusLine", "IncompleteRead", "ProtocolError"})  # of http.client and urllib3
_PERMANENT_ERRNO = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT})
_ADVICE_BY_STATUS = {
    401: f"Set {_CREDENTIALS}.",
    403: f"Ask its owner for permission, or set other credentials: {_CREDENTIALS}.",
    404: "Check the address.",
}
_REASON_BY_STATUS = {
    401: "it does not accept the credentials, or there are none",
    403: "the credentials have no permission for this",
    404: "what answers there is no MLflow server",
    429: "it asks to send less",
}


@dataclass(frozen=True)
class Trouble:
    """What is wrong.

    :param reason: The end of a sentence, without a full stop and without secrets.
    :param advice: What the user can do about it, as sentences; empty if there is nothing but to wait.
    :param is_permanent: True if it makes no sense to try again until somebody has done something.
    :param has_not_arrived: True if it is certain that the store did nothing of what it was asked.
    """

    reason: str
    advice: str = ""
    is_permanent: bool = False
    has_not_arrived: bool = False


def diagnose(error: BaseException) -> Trouble:
    """Returns what an error means that came from MLflow, from the database, or from the system."""
    status = _http_status(error)
    if status is not None:
        return _refusal(status, error)
    for cause in _causes(error):
        trouble = _of_connection(cause) or _of_database(cause) or _of_disk(cause)
        if trouble is not None:
            return trouble
    text = str(error)
    if "out-of-date database schema" in text:
        return Trouble(
            "the database was made by an older MLflow",
            "Back it up, and upgrade it with: mlflow db upgrade <its address>.",
            is_permanent=True,
        )
    if "not in a valid JSON format" in text or "redirects" in text:
        return Trouble("what answers there is no MLflow server, perhaps a page to sign in", _ADVICE_BY_STATUS[404])
    if isinstance(error, HimlError):
        return Trouble(error.message.rstrip("."), error.hint, is_permanent=True)
    return Trouble(_short(text) or type(error).__name__, is_permanent=is_permanent(error))


def is_permanent(error: BaseException) -> bool:
    """Returns True if the store has understood, and refuses: another try would be refused too."""
    return getattr(error, "error_code", None) in _PERMANENT_CODES or isinstance(error, (ImportError, HimlError))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields what an error followed from, the innermost first."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return reversed(chain)


def _http_status(error: BaseException) -> int | None:
    code = str(getattr(error, "error_code", ""))
    if found := _STATUS_IN_TEXT.search(str(error)):
        return int(found[1] or found[2])
    return _STATUS_OF_CODE.get(code)


def _refusal(status: int, error: BaseException) -> Trouble:
    """Returns what a status code of HTTP means."""
    name = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    default = "it fails" if status >= 500 else _short(str(error))
    reason = f"{_REASON_BY_STATUS.get(status, default)} ({f'{status} {name}'.strip()})"
    is_final = status < 500 and status not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    return Trouble(reason, _ADVICE_BY_STATUS.get(status, ""), is_permanent=is_final, has_not_arrived=status < 500)


def _of_connection(cause: BaseException) -> Trouble | None:
    if isinstance(cause, ConnectionRefusedError):
        return Trouble("nobody answers there (connection refused)", has_not_arrived=True)
    if isinstance(cause, socket.gaierror):
        return Trouble("there is no such host", "Check the address.", has_not_arrived=True)
    if isinstance(cause, ssl.SSLCertVerificationError):
        advice = "Name the certificate of who has signed it in MLFLOW_TRACKING_SERVER_CERT_PATH."
        return Trouble(f"its certificate is not trusted: {cause.verify_message}", advice, is_permanent=True)
    if isinstance(cause, ssl.SSLError):
        advice = "If it does without encryption, its address starts with http://."
        return Trouble(f"it does not speak HTTPS ({cause.reason})", advice, is_permanent=True)
    if isinstance(cause, TimeoutError) and (cause.errno is not None or "timed out" in str(cause)):
        return Trouble(f"no answer in time ({cause.strerror or cause})")
    if isinstance(cause, ConnectionError) or type(cause).__name__ in _BROKEN:
        detail = cause.args[-1] if type(cause).__name__ == "ProtocolError" else cause
        return Trouble(f"the connection breaks ({_short(str(detail))})")
    return None


def _of_database(cause: BaseException) -> Trouble | None:
    """Returns what an error of SQLite means; its errors are told apart by their texts only."""
    if type(cause).__module__ != "sqlite3":
        return None
    text = str(cause)
    if "locked" in text:
        return Trouble("another program has locked the database", "End whatever has it open for long.")
    if "full" in text or "disk I/O" in text:
        return Trouble(f"the disk of the database takes nothing more ({text})", "Free some space there.")
    if "readonly" in text or "unable to open" in text:
        advice = "Make it and its folder writable, or give another one with --tracking_uri."
        return Trouble(f"the database cannot be written ({text})", advice, is_permanent=True)
    if "not a database" in text or "malformed" in text:
        advice = "Give another one with --tracking_uri, or move the file away: then a new one is made."
        return Trouble(f"the file is damaged, or not a database ({text})", advice, is_permanent=True)
    return None


def _of_disk(cause: BaseException) -> Trouble | None:
    if not isinstance(cause, OSError) or cause.errno is None or cause.filename is None:
        return None
    reason = f"{cause.strerror}: {cause.filename}"
    if cause.errno in _PERMANENT_ERRNO:
        advice = "Make its folder writable, or give another store with --tracking_uri."
        return Trouble(reason, advice, is_permanent=True)
    return Trouble(reason, "Free some space there." if cause.errno == errno.ENOSPC else "")


def _short(text: str) -> str:
    """Returns the first line, shortened, without secrets."""
    line = mask_text(text).strip().partition("\n")[0]
    return textwrap.shorten(line, _LONGEST_REASON, placeholder=" …").rstrip(".")
