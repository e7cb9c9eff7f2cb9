from __future__ import annotations

import json
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from health_ml.errors import SnapshotError
from health_ml.planning import file_hashes
from health_ml.planning.snapshot import (
    Snapshot,
    describe_snapshot,
    hash_cache_folder,
    list_tree,
    snapshot_store_folder,
    take_snapshot,
)

HASH_OF_HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "package").mkdir(parents=True)
    (folder / "package/module.py").write_text("hello")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o700)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were read, in place of a look at the disk's counters."""
    read: list[str] = []
    original = file_hashes._hash_one

    def spy(base: str, path: str, buffer: memoryview) -> object:
        read.append(path)
        return original(base, path, buffer)

    monkeypatch.setattr(file_hashes, "_hash_one", spy)
    return read


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files count as settled at once: the change time cannot be set back."""
    monkeypatch.setattr(file_hashes, "FINE_CLOCK_MARGIN_NS", -60_000_000_000)
    monkeypatch.setattr(file_hashes, "COARSE_CLOCK_MARGIN_NS", -60_000_000_000)


# --- the value ------------------------------------------------------------------------------------------------------


def test_manifest_has_path_size_mode_and_hash_in_order(tree: Path) -> None:
    snapshot = take_snapshot(tree)
    assert [file[:3] for file in snapshot.files] == [("package/module.py", 5, 0o644), ("run.sh", 10, 0o755)]
    assert snapshot.files[0].sha256 == HASH_OF_HELLO
    assert snapshot.total_bytes == 15


def test_content_hash_depends_on_content_mode_and_path_only(tree: Path, tmp_path: Path) -> None:
    first = take_snapshot(tree).content_hash
    os.utime(tree / "run.sh", (0, 0))
    assert take_snapshot(tree).content_hash == first
    tree = tree.rename(tmp_path / "elsewhere")
    assert take_snapshot(tree).content_hash == first
    (tree / "run.sh").chmod(0o600)
    second = take_snapshot(tree).content_hash
    (tree / "run.sh").rename(tree / "walk.sh")
    third = take_snapshot(tree).content_hash
    (tree / "walk.sh").write_text("#!/bin/sx\n")
    assert len({first, second, third, take_snapshot(tree).content_hash}) == 4


def test_json_and_back_is_equal(tree: Path) -> None:
    snapshot = take_snapshot(tree)
    again = Snapshot.from_json(json.loads(json.dumps(snapshot.to_json())))
    assert again == snapshot
    assert again.content_hash == snapshot.content_hash


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../evil", "a//b", "", "./a"])
def test_manifest_that_leads_out_of_its_folder_is_refused(tree: Path, path: str) -> None:
    snapshot = take_snapshot(tree)
    values = Snapshot((snapshot.files[0]._replace(path=path),)).to_json()
    with pytest.raises(SnapshotError, match="names the path"):
        Snapshot.from_json(values)


@pytest.mark.parametrize(
    "facts", [{"sha256": "../../../etc/passwd"}, {"sha256": "A" * 64}, {"size": -1}, {"mode": 0o4755}, {"mode": 0o777}]
)
def test_manifest_with_impossible_facts_is_refused(tree: Path, facts: dict[str, object]) -> None:
    snapshot = take_snapshot(tree)
    values = Snapshot((snapshot.files[0]._replace(**facts),)).to_json()
    with pytest.raises(SnapshotError, match="has impossible facts about 'package/module"):
        Snapshot.from_json(values)


def test_manifest_that_names_a_path_twice_is_refused(tree: Path) -> None:
    file = take_snapshot(tree).files[0]
    values = Snapshot((file, file)).to_json()
    with pytest.raises(SnapshotError, match="names a path twice"):
        Snapshot.from_json(values)


def test_changed_manifest_is_refused(tree: Path) -> None:
    values = take_snapshot(tree).to_json()
    values["files"][0][1] = 6
    with pytest.raises(SnapshotError, match="does not fit its content hash"):
        Snapshot.from_json(values)


def test_manifest_without_files_is_refused() -> None:
    with pytest.raises(SnapshotError, match="is damaged: KeyError"):
        Snapshot.from_json({"version": 1})


def test_empty_tree_is_an_empty_snapshot(tmp_path: Path) -> None:
    assert take_snapshot(tmp_path).files == ()
    assert "These 0 files travel" in describe_snapshot(list_tree(tmp_path))


# --- what the tree can hold -----------------------------------------------------------------------------------------


def test_strange_names_travel(tmp_path: Path) -> None:
    names = ["new\nline", "back\\slash", "ä ö.py", "日本語", "x" * 255, " ", "-rf", "tab\t", "'\"", ".hidden", "*"]
    for name in names:
        (tmp_path / name).write_text(name)
    snapshot = take_snapshot(tmp_path)
    assert [file.path for file in snapshot.files] == sorted(names, key=os.fsencode)
    assert Snapshot.from_json(json.loads(json.dumps(snapshot.to_json()))) == snapshot
    assert "'new\\nline'" in describe_snapshot(list_tree(tmp_path))


def test_all_paths_that_cannot_travel_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "ok").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "outside").symlink_to("/etc/hosts")
    (tmp_path / "sub/up").symlink_to("..")
    (tmp_path / "round").symlink_to("round")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")).write_text("")
    with pytest.raises(SnapshotError, match="cannot travel as they are") as caught:
        list_tree(tmp_path)
    message = str(caught.value)
    for expected in (
        "broken is a link to nothing, which does not exist",
        "outside is a link to /etc/hosts, which is outside of",
        "which holds the link: a loop",
        "round is a link that cannot be followed: Too many levels of symbolic links",
        "$'bad\\xff' has a name that is not UTF-8",
        "name them in .amlignore",
    ):
        assert expected in message


def test_ignored_links_are_nobodys_problem(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("/etc")
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / ".amlignore").write_text("data/\nbroken\n")
    assert [file.path for file in take_snapshot(tmp_path).files] == [".amlignore"]


def test_links_inside_the_tree_travel_as_what_they_point_to(tree: Path) -> None:
    (tree / "again").symlink_to("package")
    (tree / "deep").mkdir()
    (tree / "deep/start").symlink_to("../run.sh")
    (tree / "deep/chain").symlink_to("start")
    files = {file.path: file for file in take_snapshot(tree).files}
    assert sorted(files) == ["again/module.py", "deep/chain", "deep/start", "package/module.py", "run.sh"]
    assert files["again/module.py"].sha256 == HASH_OF_HELLO
    assert files["deep/chain"][1:] == files["run.sh"][1:]


def test_links_that_lead_into_each_other_are_a_loop(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").symlink_to(f"../{other}")
    with pytest.raises(SnapshotError, match=r"a/x/x is a link to .*/a, which holds the link: a loop"):
        list_tree(tmp_path)


def test_link_to_something_ignored_does_not_travel(tree: Path) -> None:
    (tree / "outputs/run1").mkdir(parents=True)
    (tree / "outputs/run1/x").write_text("")
    (tree / "latest").symlink_to("outputs/run1")
    assert [file.path for file in take_snapshot(tree).files] == ["package/module.py", "run.sh"]
    assert "latest    default: /outputs/ (the link points to outputs/run1)" in describe_snapshot(list_tree(tree))


def test_pipes_and_sockets_are_left_out_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is limited to 108 bytes
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        text = describe_snapshot(list_tree(tmp_path))
        assert take_snapshot(tmp_path).files == ()
    assert text.count("neither a file nor a folder") == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_and_folders_are_listed(tree: Path) -> None:
    (tree / "run.sh").chmod(0)
    with pytest.raises(SnapshotError, match=r"run.sh \(Permission denied\)"):
        take_snapshot(tree)


def test_unreadable_files_are_listed_together(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(file_hashes, "_hash_one", refuse)
    with pytest.raises(SnapshotError, match=r"package/module.py \(Permission denied\)\. run.sh \(Permission denied\)"):
        take_snapshot(tree)


def test_file_that_changes_while_it_is_read_is_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = file_hashes.hash_descriptor
    calls = []

    def slow(descriptor: int, buffer: memoryview, *, size: int) -> str:
        calls.append(size)
        found = original(descriptor, buffer, size=size)
        if len(calls) == 1:
            (tree / "package/module.py").write_text("hello, once more")
        return found

    monkeypatch.setattr(file_hashes, "hash_descriptor", slow)
    (tree / "run.sh").unlink()
    assert take_snapshot(tree).files[0].size == 16
    assert calls == [5, 16]


def test_file_that_never_stops_changing_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = file_hashes.hash_descriptor

    def slow(descriptor: int, buffer: memoryview, *, size: int) -> str:
        with (tree / "run.sh").open("a") as stream:
            stream.write("x")
        return original(descriptor, buffer, size=size)

    monkeypatch.setattr(file_hashes, "hash_descriptor", slow)
    with pytest.raises(SnapshotError, match=r"run.sh \(something writes to it all the time\)"):
        take_snapshot(tree)


def test_file_that_disappears_does_not_travel(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = file_hashes._hash_fresh

    def late(folder: Path, files: list[object]) -> object:
        (tree / "run.sh").unlink()
        return original(folder, files)  # type: ignore[arg-type]

    monkeypatch.setattr(file_hashes, "_hash_fresh", late)
    assert [file.path for file in take_snapshot(tree).files] == ["package/module.py"]


def test_large_file_is_hashed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "BLOCK_BYTES", 2)
    (tmp_path / "a").write_text("hello")
    (tmp_path / "b").write_text("hell")
    files = take_snapshot(tmp_path).files
    assert files[0].sha256 == HASH_OF_HELLO
    assert files[1].sha256 == "0ebdc3317b75839f643387d783535adc360ca01f33c75f7c1e7373adcd675c0b"


def test_nothing_is_written_to_the_tree(tree: Path, cache: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        return sorted((str(file), file.stat().st_mtime_ns, file.stat().st_mode) for file in [tree, *tree.rglob("*")])

    before = state()
    take_snapshot(tree, cache_folder=cache)
    describe_snapshot(list_tree(tree))
    assert state() == before


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("settled")
def test_unchanged_files_are_not_read_again(tree: Path, cache: Path, hashed: list[str]) -> None:
    first = take_snapshot(tree, cache_folder=cache)
    assert sorted(hashed) == ["package/module.py", "run.sh"]
    hashed.clear()
    assert take_snapshot(tree, cache_folder=cache) == first
    assert hashed == []
    (tree / "package/module.py").write_text("world")
    assert take_snapshot(tree, cache_folder=cache) != first
    assert hashed == ["package/module.py"]


@pytest.mark.usefixtures("settled")
def test_change_that_keeps_size_and_time_is_seen(tree: Path, cache: Path) -> None:
    before = (tree / "package/module.py").stat()
    first = take_snapshot(tree, cache_folder=cache)
    (tree / "package/module.py").write_text("world")
    os.utime(tree / "package/module.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert take_snapshot(tree, cache_folder=cache) != first


def test_file_that_was_just_written_is_not_trusted(tree: Path, cache: Path, hashed: list[str]) -> None:
    (tree / "run.sh").write_text("new")
    take_snapshot(tree, cache_folder=cache)
    hashed.clear()
    (tree / "run.sh").write_text("neu")  # may fall on the same tick of the clock
    snapshot = take_snapshot(tree, cache_folder=cache)
    assert "run.sh" in hashed
    assert snapshot.files[1].sha256 == take_snapshot(tree).files[1].sha256


def test_a_file_is_settled_when_its_clock_has_moved_on() -> None:
    def facts(seconds: float) -> os.stat_result:
        whole = int(seconds)
        nanoseconds = int(seconds * 1e9)
        return os.stat_result((0,) * 10, {"st_mtime_ns": nanoseconds, "st_ctime_ns": nanoseconds, "st_mtime": whole})

    assert not file_hashes._is_settled(facts(100.5), int(100.51e9))
    assert file_hashes._is_settled(facts(100.5), int(100.53e9))
    assert not file_hashes._is_settled(facts(100.0), int(101.9e9))
    assert file_hashes._is_settled(facts(100.0), int(102.1e9))
    assert not file_hashes._is_settled(facts(200.5), int(100e9))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", '{"version": 0, "paths": []}'),
        '{"version": 2, "paths": ["a"], "sha256": [], "facts": ""}',
        '{"version": 2, "paths": ["a"], "sha256": [""], "facts": "AAAA"}',
    ],
)
def test_damaged_cache_costs_nothing_but_time(tree: Path, cache: Path, damage: str) -> None:
    expected = take_snapshot(tree, cache_folder=cache)
    (file,) = cache.iterdir()
    file.write_text(damage)
    assert take_snapshot(tree, cache_folder=cache) == expected
    assert json.loads(file.read_text())["version"] == file_hashes.CACHE_VERSION


@pytest.mark.usefixtures("settled")
def test_cache_that_cannot_be_written_costs_nothing_but_time(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert take_snapshot(tree, cache_folder=tmp_path / "file/cache") == take_snapshot(tree)


@pytest.mark.usefixtures("settled")
def test_several_threads_share_a_cache(tree: Path, cache: Path) -> None:
    for number in range(300):
        (tree / f"file{number}").write_text(str(number))
    found: list[Snapshot] = []
    threads = [threading.Thread(target=lambda: found.append(take_snapshot(tree, cache_folder=cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [take_snapshot(tree)] * 4
    assert len(list(cache.iterdir())) == 1


def test_cache_follows_the_xdg_rules(tmp_path: Path) -> None:
    assert hash_cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "health_ml/snapshot-hashes"
    assert snapshot_store_folder({"HOME": "/home/me"}) == Path("/home/me/.cache/health_ml/snapshots")
    assert snapshot_store_folder({"HOME": "/me", "XDG_CACHE_HOME": "relative"}) == Path(
        "/me/.cache/health_ml/snapshots"
    )


# --- size -----------------------------------------------------------------------------------------------------------


def sparse(file: Path, megabytes: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.truncate(int(megabytes * 1_000_000))


def test_too_large_a_snapshot_names_the_heaviest_folders_before_reading(tree: Path, hashed: list[str]) -> None:
    for number in range(12):
        sparse(tree / f"data{number:02}/x.bin", 10 + number)
    with pytest.raises(SnapshotError, match=r"has 186\.0 MB in 14 files; --max_snapshot_mb allows 150 MB") as caught:
        take_snapshot(tree, max_snapshot_mb=150)
    message = str(caught.value)
    assert "21.0 MB  data11/" in message
    assert "12.0 MB  data02/" in message
    assert "data01/" not in message
    assert hashed == []


def test_large_snapshot_is_a_warning(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    sparse(tree / "x.bin", 101)
    with caplog.at_level(logging.WARNING):
        take_snapshot(tree)
    assert "101.0 MB in 3 files" in caplog.text
    assert "101.0 MB  ./" in caplog.text


def test_small_snapshot_is_silent(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    take_snapshot(tree, max_snapshot_mb=1)
    assert caplog.text == ""


# --- the list -------------------------------------------------------------------------------------------------------


def test_list_shows_files_bytes_and_rules(tree: Path) -> None:
    (tree / ".gitignore").write_text("# comment\n*.log\n")
    (tree / "a.log").write_text("")
    (tree / "package/__pycache__").mkdir()
    sparse(tree / "weights.bin", 1.5)
    assert describe_snapshot(list_tree(tree)) == (
        "These 4 files travel (1.5 MB):\n"
        "            16   .gitignore\n"
        "             5   package/module.py\n"
        "            10 x run.sh\n"
        "     1,500,000   weights.bin\n"
        "\n"
        "Heaviest folders:\n"
        "        1.5 MB   ./\n"
        "       5 bytes   package/\n"
        "\n"
        "These paths do not travel:\n"
        "  a.log                 .gitignore:2: *.log\n"
        "  package/__pycache__/  default: __pycache__/\n"
    )


def test_executable_bit_is_that_of_the_owner(tree: Path) -> None:
    (tree / "run.sh").chmod(0o655)
    assert take_snapshot(tree).files[1].mode == 0o644
