"""Follows the logs of a run, and says why it failed.

The SDK's own stream needs a storage key and shows nothing of a run that has ended, so the logs are read here from the
addresses that run history hands out: from where the last look stopped, and of every process and every trial.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from health_ml.azure.blob_reader import BlobReader
from health_ml.azure.history import RunFacts, RunHistory
from health_ml.azure.rest import ServiceError
from health_ml.errors import AuthenticationError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

logger = logging.getLogger(__name__)

FINAL_STATUSES = frozenset({"Completed", "Failed", "Canceled", "NotResponding", "Finished"})
WAITING_STATUSES = frozenset({"NotStarted", "Queued", "Starting", "Provisioning", "Preparing"})
POLL_SECONDS = 2.0
LONGEST_POLL_SECONDS = 15.0
LAST_LINES = 30
MOST_REFUSALS = 20
"""How often in a row no token may be had before following ends: az itself needs the network for a new one."""
SHOWN_LOGS = re.compile(r"(user_logs|azureml-logs)/.*\.txt|logs/azureml/(stdout|stderr)logs\.txt")
"""What the processes of a job write. The logs of the service itself are of no interest as long as all goes well."""
_PROCESS = re.compile(r"std_log_process_0*(\d+)\.txt")
_RETRY = re.compile(r"retry_0*(\d+)/")
_TRACEBACK = "Traceback (most recent call last)"
_FAILED_LOG = re.compile(r"log file '([^']+)'")

Write = Callable[[str], object]


def stream_logs(client: MLClient, run_id: str, write: Write, *, poll_seconds: float = POLL_SECONDS) -> None:
    """Hands every line that a run logs to ``write``, from the beginning, until the run has ended.

    With several processes, each line starts with its process; lines of the trials of a sweep start with the trial. If
    the run fails, what AzureML says about that follows, with the last lines of the process that failed. While the
    service does not answer, this waits for it.

    :raises RunNotFoundError: If there is no such run.
    """
    with RunHistory.of_client(client) as history, BlobReader() as blobs:
        RunLogs(history, blobs, history.run(run_id)).follow(write, poll_seconds=poll_seconds)


class _LogFile:
    """One log that grows.

    :param prefix: What each of its lines starts with.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.position = 0
        self._rest = b""

    def take(self, content: bytes, write: Write) -> None:
        """Hands over the complete lines in what the log has gained."""
        self.position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._write(line, write)

    def flush(self, write: Write) -> None:
        """Hands over a last line without a line end."""
        if self._rest:
            self._write(self._rest, write)
            self._rest = b""

    def _write(self, line: bytes, write: Write) -> None:
        # A progress bar draws over its line again and again: only the last state is of interest.
        text = line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
        write(f"{self.prefix}{text}")


class RunLogs:
    """The logs of a run and, if it is a sweep, of its trials."""

    def __init__(self, history: RunHistory, blobs: BlobReader, run: RunFacts) -> None:
        self._history = history
        self._blobs = blobs
        self._run = run
        self._logs: dict[tuple[str, str], _LogFile] = {}
        self._ended: set[str] = set()
        self._refusals = 0

    def follow(self, write: Write, *, poll_seconds: float) -> None:
        """Hands over every line until the run has ended."""
        pause = poll_seconds
        while True:
            before = self._received
            has_ended = self._look(write)
            if has_ended:
                return
            is_quiet = self._received == before
            pause = min(LONGEST_POLL_SECONDS, pause * 1.2) if is_quiet else poll_seconds
            time.sleep(pause)

    @property
    def _received(self) -> int:
        return sum(log.position for log in self._logs.values())

    def _look(self, write: Write) -> bool:
        """Hands over what is new, and returns True if the run has ended and all of its logs were handed over."""
        try:
            details = self._history.details(self._run.run_id)
            for child in self._history.children(self._run):
                if child.run_id not in self._ended and child.status not in WAITING_STATUSES:
                    self._forward(child.run_id, self._history.details(child.run_id), f"[{child.run_id}] ", write)
            self._refusals = 0
            return self._forward(self._run.run_id, details, "", write)
        except AuthenticationError as error:
            self._refusals += 1
            if self._refusals >= MOST_REFUSALS:
                raise
            logger.warning("%s Still following.", error.message)
            return False
        except ServiceError as error:
            if error.status in (401, 403, 404):
                raise
            logger.warning("%s Still following.", error.message)
            return False

    def _forward(self, run_id: str, details: Mapping[str, Any], prefix: str, write: Write) -> bool:
        """Hands over the news of one run, and returns True if it has ended."""
        has_ended = details.get("status") in FINAL_STATUSES
        files = {name: url for name, url in (details.get("logFiles") or {}).items() if SHOWN_LOGS.fullmatch(name)}
        has_many = sum(_PROCESS.search(name) is not None for name in files) > 1
        for name in sorted(files, key=_order):
            key = run_id, name
            if key not in self._logs:
                self._logs[key] = _LogFile(prefix + _label(name, has_many=has_many))
            self._read(self._logs[key], files[name], write)
            if has_ended:
                self._logs[key].flush(write)
        if has_ended and run_id not in self._ended:
            self._ended.add(run_id)
            for line in self._failure(details):
                write(f"{prefix}{line}")
        return has_ended

    def _read(self, log: _LogFile, url: str, write: Write) -> None:
        while True:
            facts, content = self._blobs.read(url, log.position)
            log.take(content, write)
            if not content or log.position >= facts.size:
                return

    def _failure(self, details: Mapping[str, Any]) -> list[str]:
        """Returns what AzureML says about a run that failed, and the last lines of its log."""
        text = error_text(details)
        if details.get("status") not in ("Failed", "NotResponding") and not text:
            return []
        lines = ["", f"AzureML: {details.get('runId')} {details.get('status')}", *text.splitlines()]
        name, last_lines = self._failing_log(details, text)
        if name:
            lines += [f"The last lines of {name}:", *(f"  {line}" for line in last_lines)]
        return lines

    def _failing_log(self, details: Mapping[str, Any], error: str) -> tuple[str, list[str]]:
        """Returns the log of the process that failed, and its last lines.

        When one process fails the service ends the others, and may blame one of these: so a log that ends with a
        traceback comes first.
        """
        found: tuple[str, list[str]] = ("", [])
        for name in failing_logs(details, error):
            lines = self._last_lines(details["logFiles"][name])
            if any(line.startswith(_TRACEBACK) for line in lines):
                return name, lines
            found = found if found[0] else (name, lines)
        return found

    def _last_lines(self, url: str) -> list[str]:
        size = self._blobs.facts(url).size
        start = max(0, size - (64 << 10))
        content = b""
        while start < size:
            _, part = self._blobs.read(url, start)
            if not part:
                break
            content += part
            start += len(part)
        return content.decode("utf-8", errors="replace").splitlines()[-LAST_LINES:]


def error_text(details: Mapping[str, Any]) -> str:
    """Returns what AzureML says about the failure of a run, with the innermost reasons, or an empty text."""
    error = (details.get("error") or {}).get("error") or {}
    texts: list[str] = []
    while error:
        text = ": ".join(str(error[key]) for key in ("code", "message") if error.get(key))
        if text and text not in texts:
            texts.append(text)
        texts += [str(entry["message"]) for entry in error.get("details") or [] if entry.get("message")]
        error = error.get("innerError") or {}
    return "\n".join(texts)


def failing_logs(details: Mapping[str, Any], error: str) -> list[str]:
    """Returns the logs of the last attempt of a run, that of the process that the error names first."""
    names = sorted((str(name) for name in details.get("logFiles") or {} if SHOWN_LOGS.fullmatch(name)), key=_order)
    last_attempt = [name for name in names if _order(name)[0] == _order(names[-1])[0]]
    named = _FAILED_LOG.search(error)
    wanted = named[1].rpartition("/")[2] if named else ""
    return sorted(last_attempt, key=lambda name: name.rpartition("/")[2] != wanted)


def _order(name: str) -> tuple[int, int, str]:
    """Returns what to sort logs by: the attempt, then the process."""
    retry, process = _RETRY.search(name), _PROCESS.search(name)
    return int(retry[1]) if retry else 0, int(process[1]) if process else 0, name


def _label(name: str, *, has_many: bool) -> str:
    process = _PROCESS.search(name)
    return f"[process {process[1]}] " if process and has_many else ""
