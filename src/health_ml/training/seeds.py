"""Seeds of all random number generators."""

from __future__ import annotations


def seed_all(seed: int, *, has_workers: bool = False) -> int:
    """Seeds Python, NumPy and torch on all devices, and returns the seed.

    :param has_workers: Also derive the seeds of the processes that load data, each from its rank and index, so that
        no two of them produce the same augmentations.
    """
    from pytorch_lightning import seed_everything  # takes seconds to import

    return int(seed_everything(seed, workers=has_workers, verbose=False))
