"""What git itself says about a tree, with nobody's personal settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str, feed: bytes | None = None, check: bool = True) -> bytes:
    """Returns what git prints."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "XDG_CONFIG_HOME": str(folder / ".no-such-folder"),
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        input=feed,
        capture_output=True,
        env=environment,
        check=False,
        timeout=60,
    )
    assert not check or done.returncode == 0, done.stderr.decode()
    return done.stdout


def files_of_git(folder: Path) -> set[str]:
    """Returns the tracked and untracked files that git's rules do not ignore."""
    listed = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return {path.decode("utf-8", "surrogateescape") for path in listed.split(b"\0") if path}


def rules_of_git(folder: Path, paths: list[str]) -> dict[str, str]:
    """Returns "source:line: pattern" for each path that git ignores."""
    feed = "\0".join(paths).encode("utf-8", "surrogateescape") + b"\0"
    answer = git(folder, "check-ignore", "-v", "-z", "--no-index", "--stdin", feed=feed, check=False)
    fields = answer.decode("utf-8", "surrogateescape").split("\0")[:-1]
    found = {}
    for source, line, pattern, path in zip(*[iter(fields)] * 4, strict=True):
        if not pattern.startswith("!"):
            found[path] = f"{source}:{line}: {pattern}"
    return found
