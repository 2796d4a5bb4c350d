# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of five clinics, each into a folder of its own: python make_folders.py FOLDER."""

import csv
import sys
from pathlib import Path

from sklearn.datasets import load_diabetes


def main(folder: Path) -> None:
    x, y = load_diabetes(return_X_y=True)
    table = [[*(20 * row), target / 100] for row, target in zip(x, y, strict=True)]
    for number in range(5):
        clinic = folder / str(number)
        clinic.mkdir(parents=True, exist_ok=True)
        patients = table[number::5]
        for part, chosen in (("train", patients[:68]), ("test", patients[68:])):
            with (clinic / f"{part}.csv").open("w", newline="") as lines:
                csv.writer(lines).writerows(chosen)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
