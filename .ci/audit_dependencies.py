"""Looks for known vulnerabilities in pinned packages: ``audit_dependencies.py constraints.txt``.

Exit code 1 means that there is one that ``accepted_vulnerabilities.txt`` does not list with a reason. What could not be
audited, because nobody answers or because the service does not know the package, is said, and fails nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ACCEPTED_FILE = Path(__file__).with_name("accepted_vulnerabilities.txt")
TIMEOUT_SECONDS = 300


def main(requirements: str) -> int:
    """Audits a file of pinned requirements, prints what came out, and returns the exit code."""
    try:
        accepted = read_accepted(ACCEPTED_FILE.read_text(encoding="utf-8"))
    except ValueError as error:
        print(error)
        return 1
    output, reason = ask(requirements)
    document = read_answer(output)
    if document is None:
        print(f"NOT AUDITED: the advisory service cannot be reached. {reason}".rstrip())
        return 0
    lines, exit_code = judge(document, accepted)
    print("\n".join(lines))
    return exit_code


def ask(requirements: str) -> tuple[str, str]:
    """Returns what pip-audit answers as JSON, and the last line of what it complains about."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", requirements, "--no-deps", "--disable-pip"]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"It did not answer within {TIMEOUT_SECONDS} s."
    return done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def read_answer(output: str) -> dict[str, Any] | None:
    """Returns the answer of pip-audit, or None if it is none."""
    try:
        document = json.loads(output)
    except ValueError:
        return None
    return document if isinstance(document, dict) and "dependencies" in document else None


def read_accepted(text: str) -> dict[str, str]:
    """Returns the reason of each accepted vulnerability by its id: one per line, with a space between the two.

    :raises ValueError: If a line lacks a reason.
    """
    accepted = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            identifier, _, reason = line.strip().partition(" ")
            if not reason.strip():
                raise ValueError(f"{ACCEPTED_FILE.name}: {identifier} lacks a reason.")
            accepted[identifier] = reason.strip()
    return accepted


def judge(document: dict[str, Any], accepted: dict[str, str]) -> tuple[list[str], int]:
    """Returns what to print about an answer, and the exit code."""
    packages = document["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines, found, exit_code = [], set(), 0
    for package in packages:
        for vulnerability in package.get("vulns", []):
            names = {vulnerability["id"], *vulnerability.get("aliases", [])}
            reason = next((accepted[name] for name in sorted(names) if name in accepted), None)
            found |= names
            repaired = ", ".join(vulnerability.get("fix_versions", [])) or "no version yet"
            what = f"{package['name']} {package['version']}: {vulnerability['id']}, repaired in {repaired}"
            lines.append(f"VULNERABLE {what}" if reason is None else f"accepted {what}: {reason}")
            exit_code = exit_code if reason is not None else 1
    if skipped:
        whole = " None was audited: the advisory service has no data." if len(skipped) == len(packages) else ""
        lines.append(f"NOT AUDITED: {len(skipped)} of {len(packages)} packages are unknown to the service.{whole}")
    lines += [f"not found any more, to be removed from the list: {name}" for name in accepted if name not in found]
    lines.append(f"{len(packages) - len(skipped)} packages audited.")
    return lines, exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
