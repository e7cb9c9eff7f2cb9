"""A short run of every target of the fuzzer, with inputs that look like what its reader expects."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.__main__ import SEEDS
from tests.fuzz.targets import TARGETS
from tests.helpers.police import REPOSITORY

ATOMS = {
    "command_line": ["--model", "--", "=", "\n", "-h", "--config", "--set", "HelloWorld", "5", "--no-", "'", "\0", "é"],
    "environment": ["HIML_ATTEMPT", "LOCAL_RANK", "NODE_RANK", "=", "\n", "0", "-1", "9" * 20, "²", "HIML_RUN_FOLDER"],
    "argument_values": ["\0", "\1", "\5", "\t", "[", "]", "(", ",", "'", '"', "1", "1e9", "nan", "{", "}", ":", "None"],
    "source_checkpoint": ["run_1", ":", "/", "..", ".", "a.ckpt", "https://", "h", "@", "?sig=x", "~", "x" * 300, "\\"],
    "sweep": ["a=", " ", "choice(", "uniform(", ")", ",", "..", "1", "9" * 19, "-", "'", "[", "]", "\x1c", "int("],
    "small_languages": ["1", ".5", "h", "m", "bandit", "(", ")", "slack_factor", "=", ",", "9" * 400, "²"],
    "ignore_file": ["a/b.c", "\n", "*", "**", "/", "!", "[", "]", "\\", "[[:alpha:]]", "#", " ", "?", "é", "^", "-"],
    "config_file": [
        "a: ",
        "\n",
        "  ",
        "- ",
        "&x ",
        "*x",
        "{",
        "}",
        "[",
        "]",
        "'",
        '"',
        "!!python/name:os.system",
        "<<: ",
    ],
    "record_file": ['{"metrics":', "{", "}", '"a":', "1", "null", "\n", '"status":"RUNNING"', ",", "[", "]", '"pid":'],
    "stored_documents": ['{"version":1', ',"files":', "[", "]", ',"argv":', '"a"', "}", "null", "1", ',"dimensions":'],
    "secrets": ["https://", "u:p@h", "token", "=", "password", "Bearer ", "a" * 20, "sig=", "&", "?", " ", "***", ";"],
}
"""What the texts of each target are put together from."""


@pytest.fixture(autouse=True, scope="module")
def no_files_left() -> Iterator[None]:
    yield
    if targets._file.cache_info().currsize:
        shutil.rmtree(targets._file().parent)
        targets._file.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_promises_hold(name: str) -> None:
    texts = st.lists(st.sampled_from(ATOMS[name]), max_size=10).map("".join) if name in ATOMS else st.text()
    inputs = texts.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=200)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(inputs)
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
    for seed in SEEDS.get(name, []):
        TARGETS[name](seed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=10,
    ),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
@example({"epoch": 1, "global_step": 2}, [])
def test_damaged_checkpoints(value: object, changes: list[tuple[int, int]]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(value, 2))
        archive.writestr("x/data/0", b"weights")
    data = bytearray(buffer.getvalue())
    for position, byte in changes:
        data[position % len(data)] = byte
    TARGETS["checkpoint_file"](bytes(data))
    TARGETS["pickled"](bytes(data[40:]))


def test_a_pickle_cannot_grow_in_memory() -> None:
    """Each STACK_GLOBAL of two copies of the name before it would double that name: 2 to the power of 200 bytes."""
    bomb = b"\x80\x04\x8c\x01a\x8c\x01b\x93" + b"\x94h\x002\x93" * 200 + b"."
    TARGETS["pickled"](bomb)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="the extra 'fuzz' is not installed")
def test_the_fuzzer_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "1", "small_languages"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Nothing found.")
    assert list((tmp_path / ".fuzz" / "small_languages").iterdir())
