"""What the audit of dependencies fails on, and what it only says."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.police import REPOSITORY


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_dependencies", REPOSITORY / ".ci" / "audit_dependencies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "other", "skip_reason": "Dependency not found on PyPI"}
BAD = {
    "name": "requests",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2030-1"], "fix_versions": ["1.1"], "description": ""}],
}


def test_a_known_vulnerability_fails_the_check(audit: ModuleType) -> None:
    lines, code = audit.judge(answer(CLEAN, BAD), {})
    assert code == 1
    assert lines == ["VULNERABLE requests 1.0: PYSEC-1, repaired in 1.1", "2 packages audited."]


def test_an_accepted_one_does_not_and_its_reason_is_said(audit: ModuleType) -> None:
    accepted = audit.read_accepted("# why\n\nCVE-2030-1 is never called\n")
    lines, code = audit.judge(answer(BAD), accepted)
    assert code == 0
    assert lines[0] == "accepted requests 1.0: PYSEC-1, repaired in 1.1: is never called"
    lines, code = audit.judge(answer(CLEAN), accepted)
    assert (code, lines[0]) == (0, "not found any more, to be removed from the list: CVE-2030-1")


def test_an_exception_needs_a_reason(audit: ModuleType) -> None:
    with pytest.raises(ValueError, match="CVE-2030-1 lacks a reason"):
        audit.read_accepted("CVE-2030-1 \n")


def test_what_was_not_audited_is_said(audit: ModuleType) -> None:
    lines, code = audit.judge(answer(CLEAN, UNKNOWN), {})
    assert (code, lines) == (
        0,
        ["NOT AUDITED: 1 of 2 packages are unknown to the service.", "1 packages audited."],
    )
    lines, code = audit.judge(answer(UNKNOWN), {})
    assert code == 0
    assert "None was audited: the advisory service has no data." in lines[0]


@pytest.mark.parametrize("output", ["", "Traceback", "[]", "{}"])
def test_a_service_that_does_not_answer_fails_nothing_and_is_said(
    audit: ModuleType, output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "ask", lambda requirements: (output, "ConnectionError: no route to host"))
    assert audit.main("constraints.txt") == 0
    assert capsys.readouterr().out == (
        "NOT AUDITED: the advisory service cannot be reached. ConnectionError: no route to host\n"
    )


def test_the_answer_of_a_program_is_read(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"print({json.dumps(json.dumps(answer(BAD)))})"
    run = audit.subprocess.run

    def instead(command: list[str], **options: Any) -> Any:
        assert command[:5] == [sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt"]
        return run([sys.executable, "-c", program], **options)

    monkeypatch.setattr(audit.subprocess, "run", instead)
    assert audit.main("constraints.txt") == 1
    audit.subprocess.run = run


def test_the_list_of_exceptions_can_be_read(audit: ModuleType) -> None:
    assert all(audit.read_accepted(audit.ACCEPTED_FILE.read_text()).values())
