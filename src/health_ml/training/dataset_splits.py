"""Splits a table of samples into training, validation and test parts that share no subject and no group."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from health_ml.errors import ArgumentsError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


class ModelExecutionMode(Enum):
    """The three parts of a dataset."""

    TRAIN = "Train"
    TEST = "Test"
    VAL = "Val"


@dataclass
class DatasetSplits:
    """Three tables with the same columns. No subject, and no group if there are groups, is in two of them.

    :param train: Samples to train on.
    :param val: Samples to validate on.
    :param test: Samples to test on; may be empty.
    :param subject_column: Column with the subject of each sample.
    :param group_column: Column with the group of each sample; subjects of one group stay together.
    :param allow_empty: Whether the training and validation parts may be empty.
    :raises ArgumentsError: If the parts overlap, or a part is empty that must not be.
    """

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    subject_column: str | None = None
    group_column: str | None = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        self._check_columns()
        for column, what in ((self.subject_column, "subjects"), (self.group_column, "groups")):
            shared = _shared_values(self._unique(column)) if column is not None else set()
            if shared:
                raise ArgumentsError(
                    f"Train, Test, and Val splits must have no intersection, found {what}: {_shortened(shared)}",
                    "Give each of them to one split only.",
                )
        if not self.allow_empty and (len(self.train) == 0 or len(self.val) == 0):
            raise ArgumentsError(
                f"train_ids({len(self.train)}), val_ids({len(self.val)}) must have at least one value.",
                "Put at least one subject into each, or set allow_empty.",
            )

    def _check_columns(self) -> None:
        for table in (self.train, self.val, self.test):
            for column in (self.subject_column, self.group_column):
                if column is not None:
                    _check_column(table, column)

    def __str__(self) -> str:
        counts = [len(values) for values in self.unique_subjects()]
        return f"Train: {counts[0]}, Test: {counts[1]}, and Val: {counts[2]}. Total subjects: {sum(counts)}"

    def __getitem__(self, mode: ModelExecutionMode) -> pd.DataFrame:
        """Returns one of the three parts."""
        return {
            ModelExecutionMode.TRAIN: self.train,
            ModelExecutionMode.TEST: self.test,
            ModelExecutionMode.VAL: self.val,
        }[ModelExecutionMode(mode)]

    def unique_subjects(self) -> tuple[Any, Any, Any]:
        """Returns the subjects for training, test and validation, in this order."""
        train, test, val = self._unique(self.subject_column)
        return train, test, val

    def number_of_subjects(self) -> int:
        """Returns the number of subjects in all three parts."""
        return sum(len(values) for values in self.unique_subjects())

    def _unique(self, column: str | None) -> list[Any]:
        if column is None:
            raise ArgumentsError("These splits have no subject column.", "Give subject_column when creating them.")
        return [table[column].unique() for table in (self.train, self.test, self.val)]

    # --- how to make them ---------------------------------------------------------------------------------------------

    @staticmethod
    def from_proportions(
        df: pd.DataFrame,
        proportion_train: float,
        proportion_test: float,
        proportion_val: float,
        *,
        subject_column: str = "",
        group_column: str | None = None,
        shuffle: bool = True,
        random_seed: int = 0,
    ) -> DatasetSplits:
        """Returns a split in which each part has its share of the subjects, or of the groups if there are groups.

        The sizes are the exact shares, rounded so that every subject is used.

        :param df: All samples.
        :param proportion_train: Share of the training part, more than 0.
        :param proportion_test: Share of the test part; may be 0.
        :param proportion_val: Share of the validation part, more than 0.
        :param subject_column: Column with the subject of each sample.
        :param group_column: Column with the group of each sample.
        :param shuffle: Whether to assign subjects at random, instead of in their order in the table.
        :param random_seed: Seed of the shuffle.
        :raises ArgumentsError: If the shares are not between 0 and 1, or do not sum up to 1.
        """
        proportions = (proportion_train, proportion_test, proportion_val)
        if any(share < 0 for share in proportions) or not math.isclose(sum(proportions), 1.0, abs_tol=1e-6):
            raise ArgumentsError(
                f"proportion_train({proportion_train}) + proportion_val({proportion_val}) + "
                f"proportion_test({proportion_test}) must be ~ 1 and none negative, found: {sum(proportions)}"
            )
        if proportion_train == 0 or proportion_val == 0:
            raise ArgumentsError(
                f"proportion_train({proportion_train}) and proportion_val({proportion_val}) must be in range (0, 1)"
            )
        key_column = subject_column if group_column is None else group_column
        _check_column(df, key_column)
        keys = list(df[key_column].unique())
        if shuffle:
            random.Random(random_seed).shuffle(keys)  # noqa: S311  nothing here is a secret
        train_size, test_size, _ = exact_sizes(len(keys), proportions)
        return _from_keys(
            df,
            (keys[:train_size], keys[train_size : train_size + test_size], keys[train_size + test_size :]),
            key_column=key_column,
            subject_column=subject_column,
            group_column=group_column,
        )

    @staticmethod
    def from_subject_ids(
        df: pd.DataFrame,
        train_ids: Sequence[Any],
        test_ids: Sequence[Any],
        val_ids: Sequence[Any],
        *,
        subject_column: str = "",
        group_column: str | None = None,
    ) -> DatasetSplits:
        """Returns the split that has the given subjects in its parts."""
        return _from_keys(
            df,
            (train_ids, test_ids, val_ids),
            key_column=subject_column,
            subject_column=subject_column,
            group_column=group_column,
        )

    @staticmethod
    def from_groups(
        df: pd.DataFrame,
        train_groups: Sequence[Any],
        test_groups: Sequence[Any],
        val_groups: Sequence[Any],
        *,
        group_column: str,
        subject_column: str = "",
    ) -> DatasetSplits:
        """Returns the split that has the given groups in its parts."""
        return _from_keys(
            df,
            (train_groups, test_groups, val_groups),
            key_column=group_column,
            subject_column=subject_column,
            group_column=group_column,
        )

    def get_k_fold_cross_validation_splits(self, n_splits: int, random_seed: int = 0) -> list[DatasetSplits]:
        """Returns the folds of a cross-validation over the training and validation parts; the test part stays.

        Over all folds, every subject is used for validation exactly once. With groups, the subjects of a group are
        in the same fold, the folds are balanced by their number of samples, and the seed has no effect.

        :param n_splits: Number of folds, at least 2.
        :param random_seed: Seed of the assignment of subjects to folds.
        :raises ArgumentsError: If there are fewer subjects, or groups, than folds.
        """
        import pandas as pd

        both = pd.concat([self.train, self.val])
        column = self.group_column or self.subject_column
        if column is None:
            raise ArgumentsError("These splits have no subject column.", "Give subject_column when creating them.")
        keys = both[column].unique()
        if not 2 <= n_splits <= len(keys):
            raise ArgumentsError(
                f"n_splits must be >= 2 and at most the number of different values of {column!r} in the training "
                f"and validation parts, {len(keys)}, found {n_splits}"
            )
        if self.group_column is None:
            folds = _random_folds(list(keys), n_splits, random_seed)
        else:
            folds = _balanced_folds(both[column], n_splits)
        return [
            DatasetSplits(
                train=both[~both[column].isin(fold)],
                val=both[both[column].isin(fold)],
                test=self.test,
                subject_column=self.subject_column,
                group_column=self.group_column,
            )
            for fold in folds
        ]


def exact_sizes(count: int, proportions: Sequence[float]) -> list[int]:
    """Returns whole numbers that sum up to a count and are as near to its shares as possible.

    Where there are enough items, no share above zero is rounded down to nothing.
    """
    shares = [round(count * proportion, 9) for proportion in proportions]
    sizes = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: sizes[index] - shares[index])
    for index in by_remainder[: count - sum(sizes)]:
        sizes[index] += 1
    for index, proportion in enumerate(proportions):
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        if proportion > 0 and sizes[index] == 0 and sizes[largest] > 1:
            sizes[index] += 1
            sizes[largest] -= 1
    return sizes


def _random_folds(keys: list[Any], count: int, seed: int) -> list[list[Any]]:
    """Returns the keys in folds whose sizes differ by at most one."""
    # The legacy generator, because it deals the same folds as scikit-learn's KFold for the same seed.
    order = np.arange(len(keys))
    np.random.RandomState(seed).shuffle(order)
    return [[keys[index] for index in fold] for fold in np.array_split(order, count)]


def _balanced_folds(groups: pd.Series[Any], count: int) -> list[list[Any]]:
    """Returns the groups in folds with similar numbers of samples: the largest first, each to the lightest fold."""
    folds: list[list[Any]] = [[] for _ in range(count)]
    weights = [0] * count
    for group, size in groups.value_counts().items():
        lightest = weights.index(min(weights))
        folds[lightest].append(group)
        weights[lightest] += int(size)
    return folds


def _from_keys(
    df: pd.DataFrame,
    keys: tuple[Sequence[Any], Sequence[Any], Sequence[Any]],
    *,
    key_column: str,
    subject_column: str,
    group_column: str | None,
) -> DatasetSplits:
    """Returns the split with the rows that have the given values in a column: train, test, val."""
    _check_column(df, key_column)
    missing = set().union(*keys) - set(df[key_column].unique())
    if missing:
        logger.warning("Not in column %r of the dataset, and ignored: %s", key_column, _shortened(missing))
    train, test, val = (df[df[key_column].isin(list(part))] for part in keys)
    return DatasetSplits(
        train=train, test=test, val=val, subject_column=subject_column or None, group_column=group_column
    )


def _check_column(table: pd.DataFrame, column: str) -> None:
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        raise ArgumentsError(
            f"The table has no column {column!r}. {did_you_mean(column, names)}".strip(),
            f"Its columns are {', '.join(names)}.",
        )


def _shared_values(parts: Iterable[Iterable[Any]]) -> set[Any]:
    return set().union(*(first & second for first, second in combinations(map(set, parts), 2)))


def _shortened(values: Iterable[Any]) -> str:
    ordered = sorted(map(str, values))
    return ", ".join(ordered[:10]) + (f", … ({len(ordered)} in all)" if len(ordered) > 10 else "")
