"""What a user reads about every kind of trouble that a store makes, with the errors that MLflow really raises."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from health_ml.environment import environment_variables
from health_ml.errors import RunNotFoundError
from health_ml.records.mirror import MLFLOW_ENVIRONMENT
from health_ml.records.mlflow_store import open_client
from health_ml.records.trouble import Trouble, diagnose
from tests.helpers.http_server import send, serving


@pytest.fixture(autouse=True)
def environment_of_the_mirror() -> Iterator[None]:
    with environment_variables(MLFLOW_ENVIRONMENT):
        yield


def trouble_with(address: str) -> Trouble:
    try:
        open_client(address).get_experiment_by_name("E")
    except Exception as error:
        return diagnose(error)
    raise AssertionError("There was no trouble.")


@pytest.mark.parametrize(
    ("status", "reason", "advice", "is_permanent", "has_not_arrived"),
    [
        (400, r"(400 Bad Request)", "", True, True),
        (401, "it does not accept the credentials", "MLFLOW_TRACKING_TOKEN", True, True),
        (403, "no permission", "Ask its owner", True, True),
        (404, "no MLflow server", "Check the address", True, True),
        (429, "it asks to send less (429 Too Many Requests)", "", False, True),
        (500, "it fails (500 Internal Server Error)", "", False, False),
        (503, "it fails (503 Service Unavailable)", "", False, False),
    ],
)
def test_a_server_that_refuses(
    status: int, reason: str, advice: str, is_permanent: bool, has_not_arrived: bool
) -> None:
    def refuse(handler: BaseHTTPRequestHandler, index: int) -> None:
        send(handler, b"no", status=status)

    with serving(refuse) as server:
        trouble = trouble_with(server.url)
    assert reason in trouble.reason
    assert advice in trouble.advice
    assert (trouble.is_permanent, trouble.has_not_arrived) == (is_permanent, has_not_arrived)
    assert len(server.requests) == 1


def test_what_answers_is_no_mlflow() -> None:
    def sign_in(handler: BaseHTTPRequestHandler, index: int) -> None:
        send(handler, b"<html>Sign in</html>")

    def in_circles(handler: BaseHTTPRequestHandler, index: int) -> None:
        send(handler, b"", status=302, Location="/")

    for manners in (sign_in, in_circles):
        with serving(manners) as server:
            assert "no MLflow server, perhaps a page to sign in" in trouble_with(server.url).reason


def test_connections_that_fail() -> None:
    def half(handler: BaseHTTPRequestHandler, index: int) -> None:
        send(handler, b"{", announce=1000)

    def nothing(handler: BaseHTTPRequestHandler, index: int) -> None:
        handler.close_connection = True

    for manners in (half, nothing):
        with serving(manners) as server:
            trouble = trouble_with(server.url)
            assert trouble.reason.startswith("the connection breaks (")
            assert not trouble.has_not_arrived, "the server may have done what it was asked"
    with serving(nothing) as server:
        assert "does not speak HTTPS" in trouble_with(server.url.replace("http:", "https:")).reason
    refused = trouble_with("http://127.0.0.1:9")
    assert refused == Trouble("nobody answers there (connection refused)", has_not_arrived=True)
    unknown = trouble_with("http://no.such.host.invalid")
    assert (unknown.reason, unknown.is_permanent) == ("there is no such host", False)


def test_a_server_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    is_over = threading.Event()

    def hang(handler: BaseHTTPRequestHandler, index: int) -> None:
        is_over.wait(10)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with serving(hang) as server:
        try:
            trouble = trouble_with(server.url)
        finally:
            is_over.set()
    assert trouble.reason.startswith("no answer in time")
    assert not trouble.is_permanent


def test_a_database_that_is_locked(store: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        trouble = trouble_with(f"{store}?timeout=0.1")
        other.rollback()
    other.close()
    assert "another program has locked the database" in trouble.reason
    assert not trouble.is_permanent


def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database " * 500)
    trouble = trouble_with(f"sqlite:///{tmp_path / 'notes.txt'}")
    assert "not a database" in trouble.reason
    assert trouble.is_permanent
    for path in (tmp_path / "notes.txt" / "mlflow.db", Path("/proc/nowhere/mlflow.db")):
        trouble = trouble_with(f"sqlite:///{path}")
        assert str(path.parent) in trouble.reason
        assert "give another store with --tracking_uri" in trouble.advice
        assert trouble.is_permanent


def test_a_database_of_an_older_mlflow(store: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '2b4d017a5e9b'")
    database.close()
    trouble = trouble_with(store)
    assert "mlflow db upgrade" in trouble.advice
    assert trouble.is_permanent


def test_what_else_can_happen() -> None:
    full = diagnose(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/mlflow.db"))
    assert full == Trouble("No space left on device: /data/mlflow.db", "Free some space there.")
    assert diagnose(PermissionError(errno.EACCES, "Permission denied", "/data/mlflow.db")).is_permanent
    for text in ("database or disk is full", "disk I/O error"):
        assert "takes nothing more" in diagnose(sqlite3.OperationalError(text)).reason
    assert diagnose(sqlite3.OperationalError("attempt to write a readonly database")).is_permanent
    assert diagnose(RunNotFoundError("it was deleted.", "Restore it.")) == Trouble(
        "it was deleted", "Restore it.", is_permanent=True
    )
    assert diagnose(ValueError("https://me:hunter2@host failed.\nmore")).reason == "https://***@host failed"
    assert diagnose(ValueError()).reason == "ValueError"
