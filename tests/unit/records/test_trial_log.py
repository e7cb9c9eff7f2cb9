"""The log of the trials of a fan-out, and the history of a metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.search_space import TrialParameters
from health_ml.records.metric_history import MetricHistory
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.trial_log import TrialEnd, TrialLog, read_trials

FIRST = TrialParameters(0, (("l_rate", 1e-5), ("name", "a,b"), ("is_on", True), ("none", None)))
SECOND = TrialParameters(1, (("l_rate", 3), ("name", "ä"), ("is_on", False), ("none", None)))


@pytest.fixture
def folder(tmp_path: Path) -> FanOutFolder:
    return FanOutFolder(tmp_path / "fan")


def test_what_was_written_is_read(folder: FanOutFolder) -> None:
    record = RunRecord.create(folder.record, run_id="fan")
    log = TrialLog(folder, record)
    first = log.start(FIRST, slot=1)
    log.start(SECOND, slot=0)
    log.finish(first, TrialEnd(RunStatus.KILLED, "gone", 2.5))
    assert not first.is_settled
    log.start(FIRST, slot=0)
    end = TrialEnd(RunStatus.FINISHED, "", 3.5)
    log.finish(first, end)
    assert first.is_settled
    record.close()

    states = read_trials(folder)
    assert [state.trial for state in states.values()] == [FIRST, SECOND]
    assert states[0] == first
    assert (states[0].attempts, states[0].slot, states[0].end) == (2, 0, end)
    assert (states[1].attempts, states[1].slot, states[1].end) == (1, 0, None)
    assert not states[1].is_settled


def test_time_of_all_attempts_counts(folder: FanOutFolder) -> None:
    record = RunRecord.create(folder.record, run_id="fan")
    log = TrialLog(folder, record)
    state = log.start(FIRST, slot=0)
    assert state.seconds_until(state.started + 100) == pytest.approx(100)
    log.finish(state, TrialEnd(RunStatus.CANCELLED, "", 100.0))
    log.start(FIRST, slot=0)
    assert state.seconds_until(state.started + 5) == pytest.approx(105)
    assert read_trials(folder)[0].seconds_before == 100
    record.close()


def test_half_a_line_at_the_end_is_not_lost_on_the_next_one(folder: FanOutFolder) -> None:
    record = RunRecord.create(folder.record, run_id="fan")
    TrialLog(folder, record).start(FIRST, slot=0)
    record.close()
    with folder.trials_file.open("a") as file:
        file.write('{"event":"started","index":7')
    record = RunRecord.create(folder.record, run_id="fan")
    TrialLog(folder, record).start(SECOND, slot=0)
    record.close()
    assert list(read_trials(folder)) == [0, 1]


def test_history_has_the_last_value_of_each_epoch(tmp_path: Path) -> None:
    history = MetricHistory(tmp_path / "run", "loss")
    assert list(history.values()) == []
    record = RunRecord.create(tmp_path / "run", run_id="r")
    for epoch, loss in ((0, 5.0), (0, 4.0), (2, 3.0)):
        record.log_metrics({"loss": loss, "other": 1.0}, step=epoch, epoch=epoch)
    record.log_metrics({"other": 1.0}, step=3, epoch=3)
    assert list(history.values()) == [4.0, 3.0]
    record.log_metrics({"loss": 2.0}, step=2, epoch=2)
    record.log_metrics({"loss": 1.0}, step=1, epoch=1)
    record.close()
    assert list(history.values()) == [4.0, 1.0, 2.0], "a run that was resumed repeats an epoch"
    assert list(history.values(before_epoch=2)) == [4.0, 1.0]
    assert history.has(1)
    assert not history.has(3)
