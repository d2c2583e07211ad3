"""Make the tables that this folder keeps from those that their publishers give.

Usage: python data/prepare.py FOLDER_WITH_THE_RAW_FILES
"""

import csv
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
MEASURES = """radius texture perimeter area smoothness compactness concavity concave_points symmetry
fractal_dimension""".split()  # each as mean over the nuclei, as its standard error, and as worst
DROPPED = {"personal_status_and_sex", "foreign_worker"}  # README.md says why


def read(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.reader(f))


def write(name, rows):
    with open(HERE / name, "w", encoding="utf-8", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows(rows)


def digits(raw):
    (HERE / "digits.csv.gz").write_bytes((raw / "digits.csv.gz").read_bytes())


def tumours(raw):
    """The first line, counts and names of the classes, becomes a header; classes become words."""
    first, *rows = read(raw / "breast_cancer.csv")
    header = [f"{part}_{name}" for part in ("mean", "error", "worst") for name in MEASURES]
    words = first[2:]  # malignant, benign
    table = [[*cells, words[int(k)]] for *cells, k in rows]
    write("tumours.csv", [[*header, "diagnosis"], *table])


def credit(raw):
    """Without the dropped columns; no spaces around slashes, at the ends or twice in a row."""
    rows = read(raw / "german_credit.csv")
    kept = [i for i, name in enumerate(rows[0]) if name not in DROPPED]
    clean = [[" ".join(re.sub(r"\s*/\s*", "/", row[i]).split()) for i in kept] for row in rows]
    write("credit.csv", clean)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    for make in (digits, tumours, credit):
        make(Path(sys.argv[1]))
