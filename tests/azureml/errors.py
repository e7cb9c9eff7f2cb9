"""Error answers in the form of the service."""

from __future__ import annotations

from typing import Any

from tests.azureml.state import now
from tests.azureml.web import Answer


class ServiceError(Exception):
    """Ends a handler with an error answer."""

    def __init__(self, status: int, code: str, message: str, *, inner: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.inner = inner

    def answer(self) -> Answer:
        """Returns what the client sees."""
        information = [
            {"type": "ComponentName", "info": {"value": "managementfrontend"}},
            {"type": "Time", "info": {"value": now()}},
        ]
        if self.inner is not None:
            information.append({"type": "InnerError", "info": {"value": self.inner}})
        body = {"code": self.code, "message": str(self), "details": [], "additionalInfo": information}
        return Answer({"error": body}, self.status)


def not_found(message: str) -> ServiceError:
    """Returns the error for something that does not exist."""
    return ServiceError(404, "UserError", message, inner={"code": "NotFoundError", "innerError": None})


def bad_request(message: str, *, kind: str = "BadArgument", detail: str | None = None) -> ServiceError:
    """Returns the error for a request that the service refuses."""
    inner = {"code": detail, "innerError": None} if detail else None
    return ServiceError(400, "UserError", message, inner={"code": kind, "innerError": inner})
