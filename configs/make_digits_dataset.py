"""Writes scikit-learn's handwritten digits to a folder: ``python configs/make_digits_dataset.py datasets/digits``.

The file ``digits.csv`` has one row per image: the digit, and its 8 by 8 pixels with values from 0 to 16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

FILE_NAME = "digits.csv"


def write_digits(folder: Path) -> Path:
    """Returns the file that it wrote: 1797 images and one line with the names of the columns."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.column_stack([digits.target, digits.data]).astype(int)
    names = ",".join(["digit", *(f"pixel{index}" for index in range(digits.data.shape[1]))])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE_NAME
    np.savetxt(file, rows, fmt="%d", delimiter=",", header=names, comments="", encoding="utf-8")
    return file


def main() -> None:
    """Reads the folder from the command line."""
    parser = argparse.ArgumentParser(description="Write scikit-learn's handwritten digits to a folder.")
    parser.add_argument("folder", type=Path, help="the folder; it is made if it does not exist")
    file = write_digits(parser.parse_args().folder)
    print(f"Wrote {file}. Train on it: himl-runner --model=configs.digits.Digits --local_datasets={file.parent}")


if __name__ == "__main__":
    main()
