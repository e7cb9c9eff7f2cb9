"""What a user may write as --src_checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_ml.checkpoints.parser import CheckpointParser, mask_url
from health_ml.environment import environment_variables, working_directory
from health_ml.errors import ArgumentsError, CheckpointError, HimlError
from health_ml.settings import ENV_START_DIRECTORY


@pytest.mark.parametrize(
    ("text", "run_id", "remote_path"),
    [
        ("2025-01-31T120000Z_HelloWorld", "2025-01-31T120000Z_HelloWorld", "checkpoints/last.ckpt"),
        ("run_1:best.ckpt", "run_1", "checkpoints/best.ckpt"),
        ("run-1:custom/path/best.ckpt", "run-1", "custom/path/best.ckpt"),
        ("fan_out:best", "fan_out", "checkpoints/best"),
        ("  run_1  ", "run_1", "checkpoints/last.ckpt"),
        ("run:epoch=3-val:loss=0.2.ckpt", "run", "checkpoints/epoch=3-val:loss=0.2.ckpt"),
    ],
)
def test_run_ids(text: str, run_id: str, remote_path: str) -> None:
    parser = CheckpointParser(text)
    assert (parser.is_aml_run_id, parser.is_url, parser.is_local_file) == (True, False, False)
    assert (parser.run_id, parser.remote_path) == (run_id, remote_path)
    parser.validate()


@pytest.mark.parametrize(
    "text",
    ["https://me:pw@example.org/m.ckpt", "http://me:pw@localhost/m.ckpt", "http://h:80/a/b.pt?x=1", "HTTP://h/m.ckpt"],
)
def test_urls(text: str) -> None:
    parser = CheckpointParser(text)
    assert (parser.is_url, parser.is_local_file, parser.is_aml_run_id, parser.run_id) == (True, False, False, "")
    parser.validate()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s3://b/k", r"starts with 's3://', which cannot be fetched\. Download the file .* first"),
        ("file:///x/y.ckpt", r"Write the path alone: /x/y\.ckpt\."),
        ("C:\\models\\x.ckpt", "is a Windows path"),
        ("C:/models/x.ckpt", "is a Windows path"),
        ("\\\\server\\share\\x.ckpt", "is a Windows path"),
        ("run:../../x", "would leave the folder of the run"),
        ("run:a/./x.ckpt", "would leave the folder of the run"),
        ("run:/etc/passwd", "absolute path"),
        ("run:a\\b.ckpt", "backslash"),
        ("run:a//b.ckpt", "empty part"),
        ("run:folder/", "empty part"),
        ("run:", "names no file after the colon"),
        (":x.ckpt", "no run id before the colon"),
        ("https://", "names no host"),
        ("https://host/folder/", "ends with a folder"),
        ("http://[::1/x.ckpt", "is no URL"),
        ("http://me:password@example.org/x.ckpt", r"http://\*\*\*@example.org/x.ckpt' would send its password"),
        ("http://host:99999/x.ckpt", "is no URL"),
        ("run\n2", "control characters"),
    ],
)
def test_what_can_be_nothing_is_refused_with_the_choices(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*Accepted are a file, an http\(s\) URL, a run id"):
        CheckpointParser(text)


@pytest.mark.parametrize("text", ["no/such/file", "missing.ckpt", "./run", "model.pt", "../run:x", "/no/such.ckpt"])
def test_a_missing_file_is_not_taken_for_a_run_id(text: str, tmp_path: Path) -> None:
    with working_directory(tmp_path):
        parser = CheckpointParser(text)
    assert [parser.is_local_file, parser.is_url, parser.is_aml_run_id] == [False] * 3
    with pytest.raises(CheckpointError, match=r"There is no checkpoint file /"):
        parser.validate()
    assert parser.local_path() == tmp_path / text


def test_an_existing_file_wins_over_a_run_id(tmp_path: Path) -> None:
    (tmp_path / "bare_name").write_bytes(b"x")
    (tmp_path / "a:b.ckpt").write_bytes(b"x")
    with working_directory(tmp_path):
        for name in ("bare_name", "a:b.ckpt"):
            parser = CheckpointParser(name)
            assert (parser.is_local_file, parser.is_aml_run_id) == (True, False)


def test_relative_paths_survive_a_change_of_the_working_directory(tmp_path: Path, checkpoint: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with working_directory(tmp_path):
        parser = CheckpointParser("given.ckpt")
    with working_directory(elsewhere):
        assert parser.is_local_file
        assert parser.get_or_download_checkpoint(elsewhere) == checkpoint


def test_other_ranks_are_told_where_the_user_typed_the_command(tmp_path: Path, checkpoint: Path) -> None:
    with environment_variables({ENV_START_DIRECTORY: str(tmp_path)}):
        assert CheckpointParser("given.ckpt").local_path() == checkpoint


def test_home_is_expanded(tmp_path: Path, checkpoint: Path) -> None:
    with environment_variables({"HOME": str(tmp_path)}):
        assert CheckpointParser("~/given.ckpt").is_local_file
    with pytest.raises(CheckpointError, match="~nobody_of_this_name/x"):
        CheckpointParser("~nobody_of_this_name/x").validate()


def test_a_folder_is_refused_with_the_checkpoints_in_it(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder, not a file\. The folder holds given\.ckpt"):
        CheckpointParser(str(tmp_path)).validate()


def test_nothing_is_no_checkpoint() -> None:
    parser = CheckpointParser("")
    assert not parser
    assert [parser.is_local_file, parser.is_url, parser.is_aml_run_id] == [False] * 3
    with pytest.raises(ArgumentsError, match=r"^The checkpoint is empty"):
        parser.validate()


def test_equality_hash_and_text() -> None:
    assert CheckpointParser("run") == CheckpointParser("run") != CheckpointParser("run2")
    assert CheckpointParser("run") != "run"
    assert len({CheckpointParser("run"), CheckpointParser("run")}) == 1
    assert str(CheckpointParser("run:a.ckpt")) == "run:a.ckpt"
    assert repr(CheckpointParser("run")) == "CheckpointParser('run')"


def test_texts_of_a_url_hold_no_secrets() -> None:
    url = "https://user:pass@host/m.ckpt?sv=2024&sig=SECRET#token"
    parser = CheckpointParser(url)
    assert parser.checkpoint == url
    assert str(parser) == "https://***@host/m.ckpt?sv=***&sig=***"
    assert "SECRET" not in repr(parser)
    assert mask_url("https://h/x?SECRET") == "https://h/x?***"


def parser_or_error(text: str) -> CheckpointParser | ArgumentsError:
    try:
        return CheckpointParser(text)
    except ArgumentsError as error:
        return error


@given(st.text())
def test_any_text_is_accepted_or_refused_with_the_choices(text: str) -> None:
    parser = parser_or_error(text)
    if isinstance(parser, ArgumentsError):
        assert "Accepted are" in parser.hint
        return
    assert [parser.is_url, parser.is_aml_run_id, parser.is_local_file].count(True) <= 1
    assert CheckpointParser(parser.checkpoint) == parser
    if parser.is_aml_run_id:
        path = Path(parser.remote_path)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert "/" not in parser.run_id
    elif not (parser.is_url or parser.is_local_file):
        with pytest.raises(HimlError, match="Accepted are"):
            parser.validate()


@given(st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True), st.from_regex(r"[a-z0-9=-]{1,9}", fullmatch=True))
def test_every_run_id_and_file_name_is_found_again(run_id: str, name: str) -> None:
    parser = CheckpointParser(f"{run_id}:{name}.ckpt")
    assert (parser.run_id, parser.remote_path) == (run_id, f"checkpoints/{name}.ckpt")


@given(st.text(alphabet="abcXYZ019%+/.-_", min_size=1))
def test_masking_hides_every_query_value(text: str) -> None:
    secret = f"S3CR3T{text}"
    masked = mask_url(f"https://host/x.ckpt?sig={secret}&{secret}&se=2025;{secret}#{secret}")
    assert masked == "https://host/x.ckpt?sig=***&***&se=***"


def test_the_command_line_loads_neither_torch_nor_requests_with_it() -> None:
    code = "import sys, health_ml.checkpoints.parser; print(sorted({'torch', 'requests'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
