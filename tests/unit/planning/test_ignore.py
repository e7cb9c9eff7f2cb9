from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_ml.errors import SnapshotError
from health_ml.planning.ignore import IgnoreRules, find_repository
from health_ml.planning.ignore_patterns import IgnoreRule, PatternList, bytes_view, parse_patterns
from health_ml.planning.tree_walk import TreeListing, walk_tree
from tests.helpers.git_reference import files_of_git, git, rules_of_git

PARTS = ["a", "b", "ab", "a.b", "x y", "[", "é", "b\\", "a ", "#a", "!b", "doc"]
PATTERN_ATOMS = [
    "a", "b", "ab", ".b", "x", " ", "y", "*", "*", "**", "?", "/", "/", "/", "[ab]", "[!a]", "[a-b]", "[[:alpha:]]",
    "[",
    "]", "\\", "\\*", "é", "!", "#", "doc", "**/", "/**", "/**/", "[^b]", "[]a]", "[\\]]", "[[:x:]]", "[[:a]", "[é]",
    "[a-]", "[b-a]", "\\ ",
]  # fmt: skip


def make_tree(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def paths(listing: TreeListing) -> list[str]:
    return [path for path, _ in listing.files]


def ignored(listing: TreeListing) -> dict[str, str]:
    return {entry.path: str(entry.rule) for entry in listing.ignored}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    return tmp_path


# --- the same as git ------------------------------------------------------------------------------------------------

lines = st.lists(st.lists(st.sampled_from(PATTERN_ATOMS), min_size=1, max_size=5).map("".join), max_size=5)
trees = st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join), min_size=1, max_size=10)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(files=trees, top=lines, nested=lines, exclude=lines)
def test_travels_exactly_what_git_lists(
    repository: Path, files: list[str], top: list[str], nested: list[str], exclude: list[str]
) -> None:
    for entry in repository.iterdir():
        if entry.name != ".git":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for path in files:
        if not any((repository / above).is_file() for above in map(str, Path(path).parents) if above != "."):
            target = repository / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_dir():
                target.write_text("content")
    folders = [entry for entry in repository.iterdir() if entry.is_dir() and entry.name != ".git"]
    (repository / ".gitignore").write_text("\n".join(top))
    (repository / ".git/info/exclude").write_text("\n".join(exclude))
    for folder in folders[:2]:
        (folder / ".gitignore").write_text("\n".join(nested) + "\n")

    listing = walk_tree(repository)

    assert set(paths(listing)) == files_of_git(repository)
    by_rule = {path.rstrip("/"): rule for path, rule in ignored(listing).items() if not rule.startswith("default")}
    assert by_rule == rules_of_git(repository, list(by_rule))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    written=lines,
    names=st.lists(st.sampled_from([*PARTS, "c", "d.e"]), min_size=1, max_size=6, unique=True),
    folder=st.lists(st.sampled_from(PARTS), max_size=3).map(lambda parts: "".join(f"{part}/" for part in parts)),
)
def test_what_concerns_nothing_matches_nothing(written: list[str], names: list[str], folder: str) -> None:
    patterns = PatternList(parse_patterns("\n".join(written).encode(), source="x"))
    view = [bytes_view(name) for name in names]
    if patterns.concerns_nothing(view, bytes_view(folder)):
        matches = [patterns.match(name, bytes_view(folder) + name, is_folder=True) for name in view]
        assert matches == [None] * len(names)


def test_nearly_everything_is_seen_to_concern_nothing() -> None:
    patterns = PatternList(parse_patterns(b"*.log\n__pycache__/\n*.py[co]\n/outputs/\ndocs/_build/\n", source="x"))
    assert patterns.concerns_nothing(["a.py", "b.txt"], "package/sub/")
    assert patterns.concerns_nothing(["outputs", "a.py"], "package/sub/")
    assert not patterns.concerns_nothing(["outputs"], "")
    assert not patterns.concerns_nothing(["a.py"], "docs/")
    assert not PatternList(parse_patterns(b"a[x/]b", source="x")).concerns_nothing(["axb"], "")
    assert not any(patterns.concerns_nothing([name], "package/sub/") for name in ("a.log", "__pycache__", "a.pyc"))


@pytest.mark.parametrize(
    ("pattern", "path", "is_matched"),
    [
        ("*.log", "a/b/c.log", True),
        ("/*.log", "a/c.log", False),
        ("a/*.log", "a/c.log", True),
        ("a/*.log", "a/b/c.log", False),
        ("a/**/c.log", "a/c.log", True),
        ("a/**/c.log", "a/b/b/c.log", True),
        ("**/c.log", "c.log", True),
        ("a/**", "a/b/c.log", True),
        ("c.???", "c.log", True),
        ("[a-c].log", "b.log", True),
        ("[!a-c].log", "b.log", False),
        ("\\!x", "!x", True),
        ("\\#x", "#x", True),
        ("x\\ ", "x ", True),
        ("x   ", "x", True),
        ("# x", "# x", False),
        ("x\\", "x\\", False),
        ("[[:digit:]]", "7", True),
        ("[[:punct:]x]", "x", True),
        ("a[", "a[", False),
        ("??", "é", True),
        ("?", "é", False),
    ],
)
def test_pattern(repository: Path, pattern: str, path: str, is_matched: bool) -> None:
    make_tree(repository, {path: ""})
    (repository / ".git/info/exclude").write_text(pattern + "\n")
    patterns = PatternList(parse_patterns(pattern.encode(), source="x"))
    view = bytes_view(path)
    assert (patterns.match(view.rsplit("/")[-1], view, is_folder=False) is not None) == is_matched
    assert (path not in files_of_git(repository)) == is_matched


def test_reads_windows_line_ends_and_a_byte_order_mark(repository: Path) -> None:
    (repository / ".gitignore").write_bytes(b"\xef\xbb\xbf*.log\r\n\r\nb \r\n")
    make_tree(repository, {"a.log": "", "b": "", "c": ""})
    assert set(paths(walk_tree(repository))) == {".gitignore", "c"} == files_of_git(repository)


def test_snapshot_of_a_folder_in_a_repository_obeys_the_rules_above_it(repository: Path) -> None:
    make_tree(
        repository,
        {
            ".gitignore": "*.tmp\nwork/sub/c\n/d\n",
            ".git/info/exclude": "e",
            "work/sub/c": "",
            "work/a.tmp": "",
            "work/d": "",
            "work/e": "",
            "work/.gitignore": "!keep.tmp\n",
            "work/keep.tmp": "",
        },
    )
    listing = walk_tree(repository / "work")
    assert set(paths(listing)) == {".gitignore", "d", "keep.tmp"} == files_of_git(repository / "work")
    assert ignored(listing) == {
        "a.tmp": "../.gitignore:1: *.tmp",
        "e": "../.git/info/exclude:1: e",
        "sub/c": "../.gitignore:2: work/sub/c",
    }


def test_a_folder_that_is_not_the_users_does_not_heed_its_repository(repository: Path) -> None:
    make_tree(repository, {".gitignore": "*.py\n", "package/a.py": "", "package/b.pyc": "", "package/sub/c.py": ""})
    assert paths(walk_tree(repository / "package", heeds_git=False)) == ["a.py", "sub/c.py"]
    assert paths(walk_tree(repository / "package")) == []


def test_work_tree_of_another_repository_obeys_its_shared_list(repository: Path, tmp_path: Path) -> None:
    git(repository, "commit", "-q", "--allow-empty", "-m", "start")
    git(repository, "worktree", "add", "-q", "side")
    (repository / ".git/info/exclude").write_text("private\n")
    make_tree(repository, {"side/private": "", "side/public": ""})
    assert set(paths(walk_tree(repository / "side"))) == {"public"} == files_of_git(repository / "side")


def test_tracked_file_travels_although_a_pattern_names_it(repository: Path) -> None:
    make_tree(repository, {".gitignore": "data/\n*.bin\n", "data/small.csv": "1", "data/large.csv": "2", "a.bin": "3"})
    (repository / "data/link.csv").symlink_to("small.csv")
    git(repository, "add", "-f", "data/small.csv", "a.bin", "data/link.csv")
    listing = walk_tree(repository)
    assert set(paths(listing)) == {".gitignore", "data/small.csv", "a.bin", "data/link.csv"} == files_of_git(repository)
    assert ignored(listing) == {".git/": "default: .git", "data/": ".gitignore:1: data/"}


def test_tracked_file_stays_if_amlignore_names_it(repository: Path) -> None:
    make_tree(repository, {".gitignore": "data/\n", ".amlignore": "*.csv\n", "data/a.csv": "1", "data/b.txt": "2"})
    git(repository, "add", "-f", "data")
    assert paths(walk_tree(repository)) == [".amlignore", ".gitignore", "data/b.txt"]


def test_without_a_repository_the_ignore_files_still_hold(tmp_path: Path) -> None:
    make_tree(tmp_path, {".gitignore": "a\n", "a": "", "b": "", "sub/.gitignore": "*\n!c\n", "sub/c": "", "sub/d": ""})
    assert find_repository(tmp_path) is None
    assert paths(walk_tree(tmp_path)) == [".gitignore", "b", "sub/c"]


def test_link_named_gitignore_is_not_read(repository: Path) -> None:
    make_tree(repository, {"rules": "a\n", "a": ""})
    (repository / ".gitignore").symlink_to("rules")
    assert "a" in paths(walk_tree(repository))
    assert "a" in files_of_git(repository)


# --- .amlignore and the defaults ------------------------------------------------------------------------------------


def test_amlignore_adds_to_gitignore_and_takes_back(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            ".gitignore": "a\nb\nbuild/\n",
            ".amlignore": "!b\nc\n!/build/\n",
            "sub/.amlignore": "d\n!c\n",
            **{name: "" for name in ("a", "b", "c", "d", "build/x", "sub/a", "sub/b", "sub/c", "sub/d")},
        },
    )
    listing = walk_tree(tmp_path)
    assert [path for path in paths(listing) if "ignore" not in path] == ["b", "build/x", "d", "sub/b", "sub/c"]
    assert ignored(listing) == {
        "a": ".gitignore:1: a",
        "c": ".amlignore:2: c",
        "sub/a": ".gitignore:1: a",
        "sub/d": "sub/.amlignore:1: d",
    }


DEFAULT_IGNORED = [
    ".git/config", "src/__pycache__/a.pyc", "a.pyc", ".mypy_cache/x", "web/node_modules/x/y", "outputs/run/x",
    "logs/x", "mlruns/0/x", "mlflow.db", "mlflow.db-wal", "deep/model.ckpt", ".venv/pyvenv.cfg",
    "conda/conda-meta/history",
    "old/run/status.jsonl", ".ipynb_checkpoints/x",
]  # fmt: skip
DEFAULT_KEPT = ["src/outputs/a.py", "src/logs/a.py", "run/a.py", "env/a.py", ".gitattributes", "conda-meta.txt"]


def test_defaults_keep_away_what_runs_and_tools_leave_behind(tmp_path: Path) -> None:
    make_tree(tmp_path, dict.fromkeys([*DEFAULT_IGNORED, *DEFAULT_KEPT], ""))
    listing = walk_tree(tmp_path)
    assert sorted(paths(listing)) == sorted(DEFAULT_KEPT)
    rules = ignored(listing)
    assert rules[".venv/"] == "default: a virtual environment (it holds pyvenv.cfg)"
    assert rules["conda/"] == "default: a Conda environment (it holds conda-meta/history)"
    assert rules["old/"] == "default: the folder of a run (it holds run/status.jsonl)"
    assert rules["deep/model.ckpt"] == "default: *.ckpt"
    assert all(rule.startswith("default: ") for rule in rules.values())


def test_amlignore_takes_defaults_back_by_name(tmp_path: Path) -> None:
    make_tree(tmp_path, dict.fromkeys(["outputs/x", "logs/x", ".venv/pyvenv.cfg", "a.ckpt", "b.ckpt"], ""))
    (tmp_path / ".amlignore").write_text("!/outputs/\n!a.ckpt\n!.venv\n")
    assert paths(walk_tree(tmp_path)) == [".amlignore", ".venv/pyvenv.cfg", "a.ckpt", "outputs/x"]


@pytest.mark.parametrize("file", [".amlignore", ".gitignore"])
def test_list_of_what_is_wanted_does_not_take_defaults_back(tmp_path: Path, file: str) -> None:
    make_tree(tmp_path, dict.fromkeys([".git/a.py", "outputs/a.py", "env/pyvenv.cfg", "src/a.py", "src/a.txt"], ""))
    (tmp_path / file).write_text("*\n!*/\n!*.py\n")
    assert paths(walk_tree(tmp_path)) == ["src/a.py"]


def test_extra_patterns_are_as_strong_as_defaults(tmp_path: Path) -> None:
    make_tree(tmp_path, dict.fromkeys(["results/x", "a/results/x"], ""))
    listing = walk_tree(tmp_path, extra_patterns=("/results/",))
    assert paths(listing) == ["a/results/x"]
    assert ignored(listing) == {"results/": "default: /results/"}


def test_ignored_folder_is_never_entered(tmp_path: Path) -> None:
    make_tree(tmp_path, {".gitignore": "big/\n", "big/deep/x": "", "a": ""})
    (tmp_path / "big").chmod(0)  # root could list it; the report shows that nobody tried
    try:
        listing = walk_tree(tmp_path)
    finally:
        (tmp_path / "big").chmod(0o755)
    assert (paths(listing), ignored(listing)) == ([".gitignore", "a"], {"big/": ".gitignore:1: big/"})


def test_judge_path_looks_at_the_folders_above(tmp_path: Path) -> None:
    make_tree(tmp_path, {".gitignore": "data/\n", "data/sub/x": "", "env/pyvenv.cfg": "", "env/x": "", "ok/x": ""})
    rules = IgnoreRules(tmp_path)
    assert rules.judge_path("data/sub/x") == IgnoreRule(".gitignore", 1, "data/")
    assert "virtual environment" in str(rules.judge_path("env/x"))
    assert "virtual environment" in str(rules.judge_path("env"))
    assert rules.judge_path("ok/x") is None


def test_ignore_file_that_is_a_folder_is_no_ignore_file(tmp_path: Path) -> None:
    make_tree(tmp_path, {".gitignore/x": "", "a": ""})
    assert paths(walk_tree(tmp_path)) == [".gitignore/x", "a"]


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="nowhere is not a folder"):
        walk_tree(tmp_path / "nowhere")
