"""Splits of a table: exact sizes, no shared subjects or groups, and folds that use each subject once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_ml.errors import ArgumentsError
from health_ml.training.dataset_splits import DatasetSplits, ModelExecutionMode, exact_sizes


def table(subjects: int = 100, samples: int = 2, group_size: int = 4) -> pd.DataFrame:
    rows = [
        {"subject": f"s{subject}", "group": subject // group_size, "sample": sample}
        for subject in range(subjects)
        for sample in range(samples)
    ]
    return pd.DataFrame(rows)


def counts(splits: DatasetSplits, column: str = "subject") -> tuple[int, int, int]:
    return splits.train[column].nunique(), splits.test[column].nunique(), splits.val[column].nunique()


@pytest.mark.parametrize(
    ("subjects", "proportions", "expected"),
    [
        (100, (0.6, 0.2, 0.2), (60, 20, 20)),
        (10, (0.6, 0.2, 0.2), (6, 2, 2)),
        (100, (0.7, 0.0, 0.3), (70, 0, 30)),
        (7, (0.5, 0.25, 0.25), (3, 2, 2)),
        (3, (0.9, 0.05, 0.05), (1, 1, 1)),
        (1000, (1 / 3, 1 / 3, 1 / 3), (334, 333, 333)),
    ],
)
def test_sizes_are_the_exact_shares(
    subjects: int, proportions: tuple[float, float, float], expected: tuple[int, ...]
) -> None:
    splits = DatasetSplits.from_proportions(table(subjects), *proportions, subject_column="subject")
    assert counts(splits) == expected
    assert splits.number_of_subjects() == subjects
    assert len(splits.train) + len(splits.val) + len(splits.test) == 2 * subjects


@given(st.integers(0, 500), st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any))
def test_sizes_always_add_up_and_are_near(count: int, weights: list[int]) -> None:
    proportions = [weight / sum(weights) for weight in weights]
    sizes = exact_sizes(count, proportions)
    assert sum(sizes) == count
    for size, proportion in zip(sizes, proportions, strict=True):
        assert abs(size - count * proportion) < 2
        assert size > 0 or proportion == 0 or count < 3


def test_shuffle_depends_on_the_seed_alone() -> None:
    def train_subjects(**arguments: Any) -> list[str]:
        splits = DatasetSplits.from_proportions(table(), 0.6, 0.2, 0.2, subject_column="subject", **arguments)
        return list(splits.train["subject"].unique())

    assert train_subjects(random_seed=1) == train_subjects(random_seed=1)
    assert train_subjects(random_seed=1) != train_subjects(random_seed=2)
    assert train_subjects(shuffle=False) == [f"s{index}" for index in range(60)]


def test_groups_stay_together() -> None:
    splits = DatasetSplits.from_proportions(table(), 0.6, 0.2, 0.2, subject_column="subject", group_column="group")
    assert counts(splits, "group") == (15, 5, 5)
    assert counts(splits) == (60, 20, 20)


def test_given_subjects_and_groups(caplog: pytest.LogCaptureFixture) -> None:
    by_subject = DatasetSplits.from_subject_ids(table(8), ["s1"], ["s2", "s99"], ["s3"], subject_column="subject")
    assert counts(by_subject) == (1, 1, 1)
    assert "ignored: s99" in caplog.text
    by_group = DatasetSplits.from_groups(table(12), [0], [1], [2], group_column="group", subject_column="subject")
    assert counts(by_group) == (4, 4, 4)
    assert by_group.group_column == "group"
    without_subjects = DatasetSplits.from_groups(table(12), [0], [1], [2], group_column="group")
    assert without_subjects.subject_column is None


def test_parts_by_mode_and_as_text() -> None:
    splits = DatasetSplits.from_proportions(table(10), 0.6, 0.2, 0.2, subject_column="subject")
    assert splits[ModelExecutionMode.TRAIN] is splits.train
    assert splits[ModelExecutionMode.TEST] is splits.test
    assert splits[ModelExecutionMode.VAL] is splits.val
    assert str(splits) == "Train: 6, Test: 2, and Val: 2. Total subjects: 10"


@pytest.mark.parametrize("fold_count", [2, 3, 7, 80])
def test_each_subject_validates_in_exactly_one_fold(fold_count: int) -> None:
    splits = DatasetSplits.from_proportions(table(), 0.6, 0.2, 0.2, subject_column="subject")
    validated: Counter[str] = Counter()
    for fold in splits.get_k_fold_cross_validation_splits(fold_count, random_seed=3):
        assert fold.test is splits.test
        assert len(fold.train) + len(fold.val) == 160
        assert abs(fold.val["subject"].nunique() - 80 / fold_count) < 1
        validated.update(fold.val["subject"].unique())
    assert validated == Counter([*splits.train["subject"].unique(), *splits.val["subject"].unique()])


def test_folds_are_those_of_scikit_learn() -> None:
    from sklearn.model_selection import KFold

    splits = DatasetSplits.from_proportions(table(), 0.6, 0.2, 0.2, subject_column="subject")
    subjects = pd.concat([splits.train, splits.val])["subject"].unique()
    expected = [set(subjects[val]) for _, val in KFold(5, shuffle=True, random_state=8).split(subjects)]
    assert [set(fold.val["subject"]) for fold in splits.get_k_fold_cross_validation_splits(5, 8)] == expected


def test_folds_keep_groups_together_and_are_balanced() -> None:
    uneven = pd.concat([table(group_size=4), table(40, samples=9, group_size=40).assign(subject="x", group="big")])
    splits = DatasetSplits.from_proportions(uneven, 0.8, 0.0, 0.2, subject_column="subject", group_column="group")
    folds = splits.get_k_fold_cross_validation_splits(4)
    validated = [group for fold in folds for group in fold.val["group"].unique()]
    assert Counter(validated) == Counter([*range(25), "big"])
    assert sorted(len(fold.val) for fold in folds) == [64, 64, 72, 360]


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ((0.5, 0.2, 0.2), "must be ~ 1 and none negative, found: 0.89"),
        ((1.2, -0.4, 0.2), "none negative"),
        ((0.8, 0.2, 0.0), r"proportion_val\(0.0\) must be in range"),
        ((0.0, 0.2, 0.8), r"proportion_train\(0.0\)"),
    ],
)
def test_wrong_proportions(proportions: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        DatasetSplits.from_proportions(table(), *proportions, subject_column="subject")


def test_overlapping_subjects_and_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="no intersection, found subjects: s1"):
        DatasetSplits.from_subject_ids(table(8), ["s1"], ["s1"], ["s2"], subject_column="subject")
    with pytest.raises(ValueError, match="no intersection, found groups: 0"):
        DatasetSplits.from_subject_ids(table(8), ["s1"], [], ["s2"], subject_column="subject", group_column="group")


def test_empty_parts_are_refused_unless_allowed() -> None:
    with pytest.raises(ValueError, match=r"train_ids\(2\), val_ids\(0\) must have at least one value"):
        DatasetSplits.from_subject_ids(table(8), ["s1"], [], [], subject_column="subject")
    rows = table(2)
    splits = DatasetSplits(rows, rows[:0], rows[:0], subject_column="subject", allow_empty=True)
    assert splits.number_of_subjects() == 2


def test_unknown_column_names_the_nearest() -> None:
    with pytest.raises(ArgumentsError, match=r"no column 'subjct'. Did you mean 'subject'\?"):
        DatasetSplits.from_proportions(table(), 0.6, 0.2, 0.2, subject_column="subjct")
    with pytest.raises(ArgumentsError, match="have no subject column"):
        DatasetSplits(table(2), table(2), table(2)).number_of_subjects()


@pytest.mark.parametrize("fold_count", [0, 1, 9])
def test_wrong_number_of_folds(fold_count: int) -> None:
    splits = DatasetSplits.from_proportions(table(10), 0.6, 0.2, 0.2, subject_column="subject")
    with pytest.raises(ArgumentsError, match=f"n_splits must be >= 2 and at most .* 8, found {fold_count}"):
        splits.get_k_fold_cross_validation_splits(fold_count)
