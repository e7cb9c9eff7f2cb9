from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_ml.errors import PlanError
from health_ml.planning.early_termination import (
    BanditPolicy,
    EarlyTerminationPolicy,
    Goal,
    MedianStoppingPolicy,
    TruncationSelectionPolicy,
    decide_stop,
    policy_from_value,
)

MAXIMIZE, MINIMIZE = Goal.MAXIMIZE, Goal.MINIMIZE


def is_stopped(policy: EarlyTerminationPolicy, *histories: list[float], goal: Goal = MAXIMIZE) -> bool:
    """True if the first of the trials has to stop."""
    return bool(decide_stop(policy, 0, histories=dict(enumerate(histories)), goal=goal))


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "delay", "looked_at"),
    [
        (1, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (2, 0, [2, 4, 6, 8]),
        (1, 5, [5, 6, 7, 8]),
        (3, 4, [6]),
        (3, 6, [6]),
        (5, 7, []),
    ],
)
def test_policy_looks_at_each_multiple_of_the_interval_from_the_delay_on(
    interval: int, delay: int, looked_at: list[int]
) -> None:
    policy = BanditPolicy(evaluation_interval=interval, delay_evaluation=delay, slack_amount=0)
    due = [count for count in range(9) if is_stopped(policy, [0.0] * count, [1.0] * 9)]
    assert due == looked_at


def test_reason_names_policy_interval_and_numbers() -> None:
    reason = decide_stop(BanditPolicy(slack_factor=0.2), "a", histories={"a": [0.5], "b": [0.9]}, goal=MAXIMIZE)
    assert reason == (
        "Stopped early by the bandit policy at interval 1: 0.5 is beyond 0.75, the slack on the best, 0.9."
    )


# --- bandit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "best", "goal", "expected"),
    [
        # The example of the reference: the best has 0.8, and a trial with Y stops if Y + Y * 0.2 < 0.8.
        (0.66, 0.8, MAXIMIZE, True),
        (0.67, 0.8, MAXIMIZE, False),
        (1.21, 1.0, MINIMIZE, True),
        (1.19, 1.0, MINIMIZE, False),
        (-1.19, -1.0, MAXIMIZE, False),
        (-1.21, -1.0, MAXIMIZE, True),
        (-0.84, -1.0, MINIMIZE, False),
        (-0.82, -1.0, MINIMIZE, True),
    ],
)
def test_bandit_with_slack_factor(own: float, best: float, goal: Goal, expected: bool) -> None:
    assert is_stopped(BanditPolicy(slack_factor=0.2), [own], [best], goal=goal) is expected


@pytest.mark.parametrize(
    ("own", "goal", "expected"),
    [(0.69, MAXIMIZE, True), (0.71, MAXIMIZE, False), (1.11, MINIMIZE, True), (1.09, MINIMIZE, False)],
)
def test_bandit_with_slack_amount(own: float, goal: Goal, expected: bool) -> None:
    best = 0.9
    amount = 0.2
    assert is_stopped(BanditPolicy(slack_amount=amount), [own], [best], goal=goal) is expected


def test_bandit_counts_the_best_that_a_trial_has_reported() -> None:
    assert not is_stopped(BanditPolicy(slack_amount=0.1), [0.9, 0.1], [0.5, 0.95])


def test_bandit_compares_at_the_same_interval() -> None:
    assert not is_stopped(BanditPolicy(slack_amount=0.1), [0.5], [0.55, 0.9, 0.99])


# --- median ----------------------------------------------------------------------------------------------------------


def test_median_compares_the_best_with_the_median_of_averages() -> None:
    # averages up to interval 2: 0.3 (own), 0.4, 0.6; median 0.4
    assert is_stopped(MedianStoppingPolicy(), [0.25, 0.35], [0.3, 0.5], [0.6, 0.6])
    assert not is_stopped(MedianStoppingPolicy(), [0.15, 0.45], [0.3, 0.5], [0.6, 0.6])
    # an average of a later interval, 0.7, would have stopped it
    assert not is_stopped(MedianStoppingPolicy(), [0.15, 0.45], [0.3, 0.5, 0.9, 0.9], [0.6, 0.6, 1, 1])


def test_median_minimizes() -> None:
    assert is_stopped(MedianStoppingPolicy(), [3.0], [1.0], [2.0], goal=MINIMIZE)
    assert not is_stopped(MedianStoppingPolicy(), [2.0], [1.0], [3.0], goal=MINIMIZE)


# --- truncation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percentage", "stopped"), [(19, []), (20, [0]), (39, [0]), (40, [0, 1]), (99, [0, 1, 2, 3])])
def test_truncation_stops_the_given_share_of_the_worst(percentage: int, stopped: list[int]) -> None:
    histories = {trial: [trial / 10] for trial in range(5)}
    policy = TruncationSelectionPolicy(truncation_percentage=percentage)
    found = [trial for trial in histories if decide_stop(policy, trial, histories=histories, goal=MAXIMIZE)]
    assert found == stopped
    upside_down = {trial: [-trial / 10] for trial in range(5)}
    found = [trial for trial in histories if decide_stop(policy, trial, histories=upside_down, goal=MINIMIZE)]
    assert found == stopped


def test_truncation_stops_none_of_several_equal_trials() -> None:
    policy = TruncationSelectionPolicy(truncation_percentage=50)
    assert not is_stopped(policy, [1.0], [1.0], [1.0], [2.0])
    assert is_stopped(policy, [1.0], [1.0], [2.0], [2.0])


def test_truncation_leaves_out_trials_that_have_not_come_as_far() -> None:
    policy = TruncationSelectionPolicy(truncation_percentage=50)
    assert not is_stopped(policy, [0.1, 0.1], [0.9])
    assert is_stopped(policy, [0.1, 0.1], [0.05, 0.9])


# --- all of them -----------------------------------------------------------------------------------------------------

POLICIES = [
    BanditPolicy(slack_factor=0.1),
    BanditPolicy(slack_amount=0.0),
    MedianStoppingPolicy(),
    TruncationSelectionPolicy(truncation_percentage=80),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("goal", list(Goal))
def test_trial_that_reports_no_numbers_stops(policy: EarlyTerminationPolicy, goal: Goal) -> None:
    assert is_stopped(policy, [math.nan], [1.0], [2.0], [3.0], goal=goal)
    assert not is_stopped(policy, [math.nan], goal=goal)
    assert not is_stopped(policy, [1.0], [math.nan], [math.nan], goal=goal)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("goal", list(Goal))
@given(
    histories=st.lists(
        st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=4), min_size=1, max_size=6
    )
)
def test_the_best_trial_is_never_stopped(
    policy: EarlyTerminationPolicy, goal: Goal, histories: list[list[float]]
) -> None:
    same_length = [history[: min(map(len, histories))] for history in histories]
    bests = [goal.best(history) for history in same_length]
    best = bests.index(goal.best(bests)) if goal.best(bests) in bests else 0
    named = dict(enumerate(same_length))
    assert decide_stop(policy, best, histories=named, goal=goal) == ""


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("median_stopping", MedianStoppingPolicy()),
        ("Median-Stopping", MedianStoppingPolicy()),
        ({"type": "bandit", "slack_factor": 0.1, "delay_evaluation": 3}, BanditPolicy(1, 3, 0.1)),
        ({"policy": "bandit", "slack_amount": 1, "slack_factor": None}, BanditPolicy(slack_amount=1)),
        (
            {"type": "truncation_selection", "truncation_percentage": 20, "evaluation_interval": 2},
            TruncationSelectionPolicy(2, 0, 20),
        ),
        (MedianStoppingPolicy(2), MedianStoppingPolicy(2)),
    ],
)
def test_policy_from_value(value: object, expected: EarlyTerminationPolicy | None) -> None:
    assert policy_from_value(value) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_json_and_back_is_equal(policy: EarlyTerminationPolicy) -> None:
    assert policy_from_value(policy.to_json()) == policy


def test_policies_of_the_sdk_are_understood() -> None:
    sweep = pytest.importorskip("azure.ai.ml.sweep")
    assert policy_from_value(sweep.BanditPolicy(slack_factor=0.15, delay_evaluation=10)) == BanditPolicy(1, 10, 0.15)
    assert policy_from_value(sweep.BanditPolicy(slack_amount=2, evaluation_interval=3)) == BanditPolicy(
        3, slack_amount=2
    )
    assert policy_from_value(sweep.MedianStoppingPolicy(delay_evaluation=5)) == MedianStoppingPolicy(1, 5)
    assert policy_from_value(sweep.TruncationSelectionPolicy(truncation_percentage=20)) == TruncationSelectionPolicy(
        truncation_percentage=20
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("bandi", r"no early termination policy 'bandi'\. Did you mean 'bandit'\? Choose bandit, median_stopping or"),
        ({}, "no early termination policy ''"),
        ("bandit", "needs either slack_factor or slack_amount"),
        ({"type": "bandit", "slack_factor": 1, "slack_amount": 1}, "needs either slack_factor or slack_amount"),
        ({"type": "bandit", "slack_factor": -1}, "slack_factor=-1 has to be 0 or more"),
        (
            {"type": "bandit", "slack_factr": 1, "slack_amount": "x"},
            "slack_factr is unknown; slack_amount is no num",
        ),
        ({"type": "truncation_selection", "truncation_percentage": 100}, "has to be from 1 to 99"),
        (
            {"type": "median_stopping", "evaluation_interval": 0, "delay_evaluation": -1},
            "evaluation_interval=0 has to be 1 or more. delay_evaluation=-1 has to be 0 or more",
        ),
    ],
)
def test_what_is_no_policy(value: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        policy_from_value(value)
