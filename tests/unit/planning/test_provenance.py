from __future__ import annotations

import importlib.metadata
import logging
import platform
import re
import subprocess
import time
from pathlib import Path

import pytest

from health_ml.planning import provenance
from health_ml.planning.provenance import package_versions, read_git_state


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=trunk")
    (folder / "train.py").write_text("lr = 1\n")
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "First")
    return folder


def test_a_clean_repository(repository: Path) -> None:
    state = read_git_state(repository)
    assert state is not None
    assert state.commit == git(repository, "rev-parse", "HEAD")
    assert (state.branch, state.is_dirty, state.patch, state.untracked) == ("trunk", False, "", ())
    assert state.root == repository.resolve()


def test_a_folder_outside_any_repository(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert read_git_state(tmp_path) is None
        assert read_git_state(tmp_path, is_expected=False) is None
    assert caplog.messages == [f"{tmp_path} is not in a git repository: the state of the code is not recorded."]


def test_the_patch_leads_from_the_commit_to_the_working_tree(repository: Path, tmp_path: Path) -> None:
    (repository / "train.py").write_text("lr = 2\nname = 'é'\n")
    (repository / "weights.bin").write_bytes(b"\0" * 10)
    (repository / "staged.py").write_text("x = 1\n")
    git(repository, "add", "staged.py")
    (repository / "new file.py").write_text("")
    (repository / "deep").mkdir()
    (repository / "deep" / "a.py").write_text("")
    below = repository / "deep"
    state = read_git_state(below)
    assert state is not None
    assert state.is_dirty
    assert set(state.untracked) == {"new file.py", "deep/"}
    assert "patch" not in state.as_document()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    (tmp_path / "p.patch").write_text(state.patch, encoding="utf-8", errors="surrogateescape")
    git(clone, "apply", str(tmp_path / "p.patch"))
    for name in ("train.py", "weights.bin", "staged.py"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes()


def test_a_worktree_a_detached_head_and_the_remote_without_its_password(repository: Path, tmp_path: Path) -> None:
    git(repository, "remote", "add", "origin", "https://me:secret@example.org/x.git")
    worktree = tmp_path / "worktree"
    git(repository, "worktree", "add", "--quiet", "--detach", str(worktree))
    state = read_git_state(worktree)
    assert state is not None
    assert state.branch is None
    assert state.commit == git(repository, "rev-parse", "HEAD")
    assert state.root == worktree.resolve()
    assert state.remote == "https://***@example.org/x.git"


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("")
    git(tmp_path, "add", "a.py")
    state = read_git_state(tmp_path)
    assert state is not None
    assert state.commit is None
    assert state.is_dirty
    assert "no commit yet" in state.notes[0]


def test_a_patch_that_is_too_large_is_cut_at_a_file_and_loudly(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (repository / "train.py").write_text("lr = 2\n")
    (repository / "weights.bin").write_bytes(bytes(range(255, -1, -1)) * 8)
    monkeypatch.setattr(provenance, "MAX_PATCH_BYTES", 400)
    state = read_git_state(repository)
    assert state is not None
    assert state.patch.startswith("diff --git a/train.py")
    assert state.patch.endswith("+lr = 2\n")
    assert "only the files in its first" in state.notes[0]
    assert state.notes[0] in caplog.text


def test_reading_changes_nothing_in_the_repository(repository: Path) -> None:
    (repository / "train.py").touch()  # git would refresh its index
    before = (repository / ".git" / "index").stat().st_mtime_ns
    read_git_state(repository)
    assert (repository / ".git" / "index").stat().st_mtime_ns == before


def test_no_repository_no_git_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_git_state(tmp_path) is None
    assert read_git_state(tmp_path / "missing") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_git_state(tmp_path) is None


def test_a_git_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "GIT_TIMEOUT_SECONDS", 0.3)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert read_git_state(tmp_path) is None
    assert time.monotonic() - started < 5
    assert "timed out" in caplog.text


def test_package_versions_are_those_of_the_metadata() -> None:
    versions = package_versions()
    assert versions.pop("python") == platform.python_version()
    expected: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        expected.setdefault(re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower(), distribution.version)
    assert versions == expected
