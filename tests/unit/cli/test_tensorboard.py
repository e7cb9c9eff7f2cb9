from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from health_ml.cli.program_flags import read_program_flags
from health_ml.cli.tensorboard import TensorBoardFlags, choose_folders, show_tensorboard
from health_ml.errors import ArgumentsError, BackendError, RunNotFoundError
from health_ml.records.tensorboard_writer import ScalarWriter
from health_ml.runner import tensorboard_main


def write_events(run_folder: Path) -> Path:
    folder = run_folder / "logs" / "Lightning"
    writer = ScalarWriter(folder)
    writer.add({"loss": 1.0}, step=1, wall_time=1.0)
    writer.flush()
    writer.close()
    return folder


def make_run(store: Path, run_id: str, experiment: str = "E", *, has_events: bool = True) -> Path:
    record = store / run_id / "run"
    record.mkdir(parents=True)
    (record / "run.json").write_text(json.dumps({"run_id": run_id, "experiment": experiment}))
    if has_events:
        write_events(store / run_id)
    return store / run_id


@pytest.fixture
def place(tmp_path: Path) -> Path:
    store = tmp_path / "outputs"
    make_run(store, "2026-01-01T000000Z_A", "First")
    make_run(store, "2026-01-02T000000Z_A", "First")
    make_run(store, "2026-01-03T000000Z_B", "Second")
    make_run(store, "2026-01-04T000000Z_B", "Second", has_events=False)
    return tmp_path


def chosen(place: Path, *argv: str, find_run: Callable[[str], Path] | None = None) -> list[str]:
    return sorted(choose_folders(read_program_flags(TensorBoardFlags(), argv, place), place, find_run))


def test_which_runs_are_shown(place: Path) -> None:
    assert chosen(place) == ["2026-01-03T000000Z_B"], "the newest one that has something to show"
    assert chosen(place, "--num_runs=2") == ["2026-01-02T000000Z_A", "2026-01-03T000000Z_B"]
    assert chosen(place, "--num_runs=9", "--experiment=First") == ["2026-01-01T000000Z_A", "2026-01-02T000000Z_A"]
    assert chosen(place, "--run=E:2026-01-01T000000Z_A,2026-01-03T000000Z_B") == [
        "2026-01-01T000000Z_A",
        "2026-01-03T000000Z_B",
    ]
    make_run(place / "elsewhere", "2025-01-01T000000Z_C")
    assert chosen(place, "--output_to=elsewhere") == ["2025-01-01T000000Z_C"]
    assert chosen(place, "--output_to=elsewhere", "--run=2025-01-01T000000Z_C") == ["2025-01-01T000000Z_C"]


def test_trials_are_shown_below_their_fan_out(place: Path) -> None:
    fan_out = make_run(place / "outputs", "2026-01-05T000000Z_F", has_events=False)
    (fan_out / "run" / "trials.jsonl").touch()
    for index in (0, 1):
        make_run(fan_out / "trials", str(index))
    assert chosen(place) == ["2026-01-05T000000Z_F/0", "2026-01-05T000000Z_F/1"]
    assert chosen(place, "--run=2026-01-05T000000Z_F_1") == ["2026-01-05T000000Z_F_1"]


def test_runs_may_come_from_elsewhere(place: Path, tmp_path: Path) -> None:
    downloaded = make_run(tmp_path / "downloads", "job_7")
    asked: list[str] = []

    def find(run_id: str) -> Path:
        asked.append(run_id)
        return downloaded

    assert chosen(place, "--run=job_7", find_run=find) == ["job_7"]
    assert asked == ["job_7"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--run=2026-01-02T000000Z_B"], "There is no run '2026-01-02T000000Z_B' in .*Did you mean"),
        (["--run=2026-01-04T000000Z_B"], "no TensorBoard event files of 2026-01-04T000000Z_B. A run writes them"),
        (["--experiment=Frist"], "no run of the experiment 'Frist' in .*Did you mean 'First'"),
        (["--experiment=x"], "The experiments there are First, Second"),
        (["--output_to=empty"], "There is no run with TensorBoard event files in .*--output_to"),
    ],
)
def test_runs_that_cannot_be_shown(place: Path, argv: list[str], text: str) -> None:
    (place / "empty").mkdir()
    with pytest.raises(RunNotFoundError, match=text):
        chosen(place, *argv)


def test_bad_flags_are_named_all_at_once(place: Path) -> None:
    argv = ["--run=a", "--num_runs=2", "--prot=1", "stray", "--output_to=nowhere", "--port=70000"]
    with pytest.raises(ArgumentsError, match=r"himl-tb --help") as info:
        read_program_flags(TensorBoardFlags(), argv, place)
    for text in ("--port=70000", "Did you mean --port", "stray", "have no effect with it", "nowhere: there is no such"):
        assert text in str(info.value)


def test_a_port_that_is_taken(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match=f"--port={port} cannot be used: Address already in use"):
            show_tensorboard([f"--port={port}"], start_directory=place, write=print)


def test_help_and_errors_are_printed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/himl-tb"])
    assert tensorboard_main(["--help"]) == 0
    assert "--num_runs=INT" in capsys.readouterr().out
    assert tensorboard_main(["--run=nope"]) == 2
    assert capsys.readouterr().err.startswith("himl-tb: There is no run 'nope'")


@pytest.mark.slow
def test_tensorboard_serves_the_runs_until_it_is_ended(place: Path) -> None:
    (place / "tensorboard.py").write_text("raise RuntimeError('a file of the user')")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "from health_ml.runner import tensorboard_entry_point as run; run()"
    command = [sys.executable, "-c", code, "--num_runs=2", f"--port={port}"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        names: list[str] = []
        deadline = time.monotonic() + 60
        while len(names) < 2 and time.monotonic() < deadline and process.poll() is None:
            try:
                with urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=5) as answer:
                    names = json.load(answer)
            except (URLError, ConnectionError):
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=30)[0]
    assert sorted(names) == ["2026-01-02T000000Z_A", "2026-01-03T000000Z_B"], output
    assert process.returncode == 0
    assert output.startswith("2 runs: 2026-01-03T000000Z_B, 2026-01-02T000000Z_A")
