"""What the stand-in does wrong on purpose, rule by rule."""

from __future__ import annotations

import fnmatch
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.azureml.web import Answer, Request


@dataclass
class Trouble:
    """One rule: which requests, how often, and what goes wrong with them."""

    method: str
    pattern: str
    times: int = 1
    """How many requests it meets; -1 for all."""
    status: int | None = None
    delay: float = 0.0
    is_closed: bool = False
    """The connection breaks, and the request has no effect."""
    is_lost: bool = False
    """The request has its effect, and the connection breaks before the answer."""
    answer: Any = None
    """This body instead of the right one; with status 200 if none is given."""
    headers: dict[str, str] = field(default_factory=dict)
    met: int = 0
    """How many requests it has met so far."""

    @property
    def concerns_blobs(self) -> bool:
        """True if blob storage is meant."""
        return ".blob." in self.pattern


class Misbehaviour:
    """The rules in force; the first that matches a request and is not used up applies."""

    def __init__(self) -> None:
        self.troubles: list[Trouble] = []
        self._lock = threading.Lock()

    def next_for(self, request: Request) -> Trouble | None:
        """Returns what goes wrong with this request, or None."""
        with self._lock:
            for trouble in self.troubles:
                is_method = trouble.method in ("*", request.method)
                if not is_method or trouble.met == trouble.times:
                    continue
                if fnmatch.fnmatchcase(f"{request.host}{request.path}", trouble.pattern):
                    trouble.met += 1
                    return trouble
        return None


def troubled_answer(trouble: Trouble) -> Answer | None:
    """Returns the wrong answer after the delay, or None if the right one has to follow."""
    time.sleep(trouble.delay)
    if trouble.is_closed:
        return Answer(is_connection_closed=True)
    if trouble.answer is not None:
        return Answer(trouble.answer, trouble.status or 200, dict(trouble.headers))
    if trouble.status is not None:
        text = {429: "Too many requests.", 503: "The service is unavailable."}.get(trouble.status, "Told to fail.")
        error = {"error": {"code": str(trouble.status), "message": text, "details": []}}
        return Answer(error, trouble.status, dict(trouble.headers))
    return None
