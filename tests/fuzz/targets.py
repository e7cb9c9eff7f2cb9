"""What every reader of text or files from outside promises, as functions that a fuzzer can call with any bytes.

Each function returns silently or raises AssertionError, or lets through an exception that the reader must not raise.
``python -m tests.fuzz`` feeds them with atheris, which looks for new paths through the code; ``test_targets.py`` feeds
them with hypothesis.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from health_ml.checkpoints.download import file_name_of
from health_ml.checkpoints.fetch import resolve_checkpoint
from health_ml.checkpoints.inspect import check_downloaded, read_progress, verify
from health_ml.checkpoints.parser import ACCEPTED_FORMS, CheckpointParser, mask_url
from health_ml.checkpoints.pickle_reader import PickleOutlineError, read_outline
from health_ml.checkpoints.signature import sign
from health_ml.cli.arguments import parse_text, reader_for
from health_ml.cli.command_line import read_command_line
from health_ml.cli.config_file import read_config_files
from health_ml.environment import RunEnvironment
from health_ml.errors import ArgumentsError, CheckpointError, HimlError, PlanError
from health_ml.planning.duration import parse_duration
from health_ml.planning.early_termination import policy_from_text
from health_ml.planning.fan_out import space_of_sweep
from health_ml.planning.ignore_patterns import PatternList, bytes_view, parse_patterns
from health_ml.planning.plan import JobPlan
from health_ml.planning.search_space import SearchSpace
from health_ml.planning.secrets import (
    MASK,
    mask_arguments,
    mask_program_text,
    mask_text,
    remember_secrets,
    secrets_of_one_command,
)
from health_ml.planning.snapshot import Snapshot
from health_ml.records.encoding import decode_line
from health_ml.records.lines import read_lines, read_rows
from health_ml.records.reader import latest_status, parse_metrics, status_from_row


@lru_cache(maxsize=1)
def _file() -> Path:
    """Returns a file of this process that a target may write."""
    return Path(tempfile.mkdtemp(prefix="himl-fuzz-")) / "input"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def command_line(data: bytes) -> None:
    """Any words are read or listed as problems, and none is lost."""
    argv = _text(data).split("\n")
    line = read_command_line(argv)
    if not line.problems:
        mask_arguments(argv)


def argument_values(data: bytes) -> None:
    """Any text is a value of a parameter, or a ValueError says what it takes."""
    from tests.unit.cli.sample_containers import Everything

    names = sorted(name for name, p in Everything.param.objects(instance=False).items() if reader_for(p))
    if not data:
        return
    parameter = Everything.param[names[data[0] % len(names)]]
    try:
        parse_text(parameter, _text(data[1:]))
    except ValueError as error:
        assert str(error)


def source_checkpoint(data: bytes) -> None:
    """Any text is a file, a URL or a run id with a path that stays in the run, or it is refused with the choices."""
    try:
        parser = CheckpointParser(_text(data))
    except ArgumentsError as error:
        assert ACCEPTED_FORMS in error.hint
        return
    if not parser.is_url:
        _resolve(parser)
    if parser.is_url:
        assert "/" not in file_name_of(parser.checkpoint)
        assert not file_name_of(parser.checkpoint).startswith(".")
        assert mask_url(mask_url(parser.checkpoint)) == mask_url(parser.checkpoint)
    if parser.is_aml_run_id:
        assert not set("/\\.\0") & set(parser.run_id)
        parts = parser.remote_path.split("/")
        assert not {"", ".", ".."} & set(parts)


def _resolve(parser: CheckpointParser) -> None:
    """Looks for the file in a project with one run and checks that nothing outside of it is found."""
    project = _file().parent
    (project / "outputs" / "run_1" / "checkpoints").mkdir(parents=True, exist_ok=True)
    try:
        found = resolve_checkpoint(
            parser, start_directory=project / "outputs", project_root=project, download_folder=project
        )
    except HimlError as error:
        assert error.message
        return
    assert not parser.is_aml_run_id or found.is_relative_to(project.resolve())


def environment(data: bytes) -> None:
    """Any variables are facts, or all that are wrong are named."""
    pairs = [line.partition("=") for line in _text(data).split("\n")]
    try:
        RunEnvironment.from_env({name: value for name, _, value in pairs})
    except ArgumentsError as error:
        assert "whole numbers" in error.message


def sweep(data: bytes) -> None:
    """Any text is a search space that survives being stored, or it is refused."""
    try:
        space = space_of_sweep(_text(data))
    except PlanError:
        return
    space.problems()
    stored = json.dumps(space.to_json())
    assert json.dumps(SearchSpace.from_json(json.loads(stored)).to_json()) == stored


def small_languages(data: bytes) -> None:
    """Any text is a duration or a policy, or it is refused."""
    for read in (parse_duration, policy_from_text):
        try:
            read(_text(data))
        except PlanError:
            continue


def ignore_file(data: bytes) -> None:
    """Any bytes are patterns, which match a path or do not. The first line is the path."""
    path, _, patterns = data.partition(b"\n")
    view = bytes_view(_text(path)).strip("/")
    found = PatternList(parse_patterns(patterns[:300], source="fuzz"))
    for is_folder in (False, True):
        found.match(view.rsplit("/")[-1], view, is_folder=is_folder)


def config_file(data: bytes) -> None:
    """Any bytes are entries, or the error names the file."""
    _file().write_bytes(data)
    try:
        for entry in read_config_files([_file().name], start_directory=_file().parent):
            assert entry.shown
    except ArgumentsError as error:
        assert "--config=input" in str(error)


def checkpoint_file(data: bytes) -> None:
    """Any bytes are a checkpoint, or the error says why not. Nothing in them is executed."""
    _file().write_bytes(data)
    for read in (
        read_progress,
        verify,
        sign,
        lambda path: check_downloaded(path, "it", is_length_known=True),
    ):
        try:
            read(_file())
        except CheckpointError as error:
            assert error.message


def pickled(data: bytes) -> None:
    """Any bytes have an outline or are no pickle."""
    try:
        read_outline(io.BytesIO(data))
    except PickleOutlineError as error:
        assert str(error)


def record_file(data: bytes) -> None:
    """Whatever is in a line file, each complete line is an object or nothing."""
    _file().write_bytes(data)
    lines = read_lines(_file())
    assert [line.end for line in lines] == sorted(line.end for line in lines)
    rows = read_rows(_file())
    list(parse_metrics(rows))
    status_from_row(latest_status(rows) or {})


def stored_documents(data: bytes) -> None:
    """Any JSON is a plan, a search space and a snapshot, or it is refused."""
    document = decode_line(data)
    if document is None:
        return
    for read in (JobPlan.from_json, SearchSpace.from_json, Snapshot.from_json):
        try:
            read(document)
        except HimlError as error:
            assert error.message


def secrets(data: bytes) -> None:
    """A secret that is known is in no masked text, whatever is around it, and a password goes whole."""
    text = _text(data)
    half = len(text) // 2
    with secrets_of_one_command():
        remember_secrets({"a_password": "Zx9q7Lw3Kv8s"})
        planted = f"{text[:half]}Zx9q7Lw3Kv8s{text[half:]}"
        for mask in (mask_text, mask_program_text):
            assert "Zx9q7Lw3Kv8s" not in mask(planted)
    assert mask_arguments([f"--password={text}"]) == [f"--password={MASK if text else ''}"]


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        command_line, environment, argument_values, source_checkpoint, sweep, small_languages, ignore_file, config_file,
        checkpoint_file, pickled, record_file, stored_documents, secrets,
    )
}  # fmt: skip
