"""Snapshots of a tree of 10,000 files (40 MB) against plain walking, hashing and copying, in the same run.

The caches of the file system are warm in both; "first" means that nothing is known of the tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Row
from health_ml.planning import file_hashes
from health_ml.planning.snapshot import Snapshot, take_snapshot
from health_ml.planning.snapshot_store import SnapshotStore

FOLDERS = 100
FILES_PER_FOLDER = 100
BYTES_PER_FILE = 4000
IGNORED_FILES = 100_000
REPETITIONS = 5

GITIGNORE = """\
*.egg-info/
*.log
*.py[cod]
*.so
.coverage.*
.env*
/build/
/dist/
data/
docs/_build/
[Tt]humbs.db
"""


def write_tree(folder: Path, *, folders: int = FOLDERS, files: int = FILES_PER_FOLDER) -> None:
    """Writes the tree."""
    for number in range(folders):
        package = folder / f"package_{number:03}"
        package.mkdir(parents=True)
        for index in range(files):
            (package / f"module_{index:03}.py").write_bytes(os.urandom(BYTES_PER_FILE))
    (folder / ".gitignore").write_text(GITIGNORE)


def write_ignored(folder: Path, count: int) -> None:
    """Writes many empty files."""
    for number in range(count):
        if number % 1000 == 0:
            part = folder / str(number // 1000)
            part.mkdir(parents=True)
        os.close(os.open(f"{part}/{number}.bin", os.O_CREAT | os.O_WRONLY))


def hash_one_after_the_other(folder: Path) -> list[tuple[str, str]]:
    """Returns path and hash of every file, in the plainest way."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as stream:
                found.append((path, hashlib.sha256(stream.read()).hexdigest()))
    return found


def seconds(action: Callable[[], object], *, before: Callable[[], object] | None = None) -> float:
    """Returns the shortest duration of an action, which other work on the machine disturbs least.

    What has to happen before each is not counted.
    """
    durations = []
    for _ in range(REPETITIONS):
        if before is not None:
            before()
        begin = time.perf_counter()
        action()
        durations.append(time.perf_counter() - begin)
    return min(durations)


def wait_until_settled() -> None:
    """Waits until the cache trusts files that were written just now, as it does a moment after an edit."""
    time.sleep(2 * file_hashes.FINE_CLOCK_MARGIN_NS / 1e9)


def _snapshot_rows(tree: Path, cache: Path) -> list[Row]:
    def take() -> Snapshot:
        return take_snapshot(tree, cache_folder=cache)

    def change_one() -> None:
        (tree / "package_000" / "module_000.py").write_bytes(os.urandom(BYTES_PER_FILE))
        wait_until_settled()

    wait_until_settled()
    plain = seconds(lambda: hash_one_after_the_other(tree))
    first = seconds(take, before=lambda: shutil.rmtree(cache, ignore_errors=True))
    unchanged = seconds(take)
    changed = seconds(take, before=change_one)
    count = len(take().files)
    return [
        Row(f"first snapshot of {count} files / walk and hash", first, plain, first / plain, "value < 2"),
        Row("unchanged / walk and hash", unchanged, plain, unchanged / plain, "value < 0.3"),
        Row("one file changed / walk and hash", changed, plain, changed / plain, "value < 0.35"),
    ]


def _ignored_row(tree: Path, cache: Path, count: int) -> Row:
    aside, ignored = tree.parent / "aside", tree / "data"
    write_ignored(aside, count)
    walking = seconds(lambda: [os.stat(f"{top}/{name}") for top, _, names in os.walk(aside) for name in names])
    without, with_them = [], []
    for _ in range(REPETITIONS):  # in turns, so that both meet the same load
        without.append(_seconds_of_one(tree, cache))
        aside.rename(ignored)
        with_them.append(_seconds_of_one(tree, cache))
        ignored.rename(aside)
    added = max(0.0, min(with_them) - min(without))
    return Row(f"{count} ignored files add / walking them", added, walking, added / walking, "value < 0.1")


def _seconds_of_one(tree: Path, cache: Path) -> float:
    begin = time.perf_counter()
    take_snapshot(tree, cache_folder=cache)
    return time.perf_counter() - begin


def _store_rows(tree: Path, cache: Path, folder: Path) -> list[Row]:
    snapshot = take_snapshot(tree, cache_folder=cache)
    target = folder / "target"

    def clear(what: Path) -> Callable[[], None]:
        return lambda: shutil.rmtree(what, ignore_errors=True)

    store = SnapshotStore(folder / "store")
    copying = seconds(lambda: shutil.copytree(tree, target), before=clear(target))
    storing = seconds(lambda: store.store(snapshot, tree), before=clear(store.folder))
    unpacking = seconds(lambda: store.materialise(snapshot, target), before=clear(target))
    (tree / "package_000" / "module_000.py").write_bytes(os.urandom(BYTES_PER_FILE))
    changed = take_snapshot(tree, cache_folder=cache)
    begin = time.perf_counter()
    assert store.store(changed, tree) == 1
    one = time.perf_counter() - begin
    return [
        Row("store it the first time / copytree", storing, copying, storing / copying, "ratio < 4"),
        Row("store it with one change / copytree", one, copying, one / copying, "ratio < 0.5"),
        Row("unpack it, checked / copytree", unpacking, copying, unpacking / copying, "ratio < 4"),
    ]


def main(folders: int = FOLDERS, files: int = FILES_PER_FOLDER, ignored: int = IGNORED_FILES) -> list[Row]:
    """Returns the rows on taking, storing and unpacking a snapshot."""
    with tempfile.TemporaryDirectory() as folder:
        tree, cache = Path(folder) / "tree", Path(folder) / "cache"
        write_tree(tree, folders=folders, files=files)
        return [
            *_snapshot_rows(tree, cache),
            _ignored_row(tree, cache, ignored),
            *_store_rows(tree, cache, Path(folder)),
        ]
