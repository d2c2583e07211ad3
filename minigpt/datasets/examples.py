"""Examples for classifiers: images, sounds and rows of tables, each with its class."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.datasets import signals, splits
from minigpt.datasets.signals import ArrayEncoder
from minigpt.datasets.stream import Shuffled
from minigpt.datasets.tables import MISSING, TableEncoder, number, read_csv
from minigpt.messages import check, nearest, silent


@dataclass
class Examples:
    """Three parts, each a pair x, y: images x (N, Y, X, C), sounds x (N, T) or tables x (N, F),
    float32, and the class of each example as y (N,) int32."""

    kind: str  # "image", "sound" or "table"
    classes: list
    train: tuple
    validation: tuple
    test: tuple
    encoder: object  # makes such x of new files
    positive: int | None  # the class that is to be found, if there are two
    groups: tuple | None = None  # a title, and each test row's group, to list errors by

    def crc(self):
        """CRC-32 of classes and all parts: a resumed run and a report must see the same."""
        crc = zlib.crc32(" ".join(self.classes).encode())
        for array in (*self.train, *self.validation, *self.test):
            crc = zlib.crc32(np.ascontiguousarray(array), crc)
        return crc


def of_arrays(kind, classes, parts, rate):
    """Examples of raw images or sounds, as signals.py gives them."""
    encoder = ArrayEncoder.fit(kind, parts[0][0], rate)
    parts = [(encoder.scaled(x), y) for x, y in parts]
    return Examples(kind, classes, *parts, encoder, 1 if len(classes) == 2 else None)


def of_table(path, seed, target, positive=None, audited=None, tell=silent):
    """Examples of a CSV file.

    target: the column of the class; positive: the class that is to be found, by default the second
    of two; audited: a column of ages, by which the report tells errors apart.
    """
    columns, lines = read_csv(path, tell)
    remedy = nearest(str(target), columns, f"name one of {', '.join(columns)}")
    check(target in columns, path, f"a column {target}", "none", remedy)
    cells, where = columns.pop(target), f"{path}: column {target}"
    check(columns, where, "further columns to learn from", "none", "add some")
    check_classes(cells, where)
    classes, y = signals.labels(cells, where)
    places = splits.stratified(y, seed)
    try:
        encoder = TableEncoder.fit(columns, places[0], lines, lambda note: tell(f"{path}: {note}"))
        x = encoder.encode_columns(columns, lines)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    index = classes.index(positive or classes[1]) if len(classes) == 2 else None
    groups = None
    if audited:
        ages = np.array(columns[audited], float)[places[2]]
        names = np.array(["under 30", "30 to 44", "45 and over"])
        groups = audited, names[np.digitize(ages, [30, 45])]
    parts = [(x[part], y[part]) for part in places]
    return Examples("table", classes, *parts, encoder, index, groups)


def check_classes(cells, where):
    """Raise ValueError unless a column can be the class: a cell in each row, no amounts."""
    count, gaps = len(set(cells)), sum(cell in MISSING for cell in cells)
    check(not gaps, where, "a class in each row", f"{gaps} rows without", "leave these out")
    words = any(number(cell) is None for cell in cells)
    remedy = "name a column of classes, not of amounts"
    check(words or count <= 20, where, "20 numbers at most", count, remedy)


class Entry(NamedTuple):
    """A data set with a name."""

    kind: str
    load: Callable  # function(path, seed, **columns) -> Examples
    file: str
    columns: dict = {}  # of_table's target, positive and audited


# Is a tumour of the breast malignant? Will a loan of a bank turn bad, that is, not be paid back?
MALIGNANT = {"target": "diagnosis", "positive": "malignant"}
BAD = {"target": "creditability", "positive": "bad", "audited": "age_in_years"}
EXAMPLES = {
    "digits": Entry("image", lambda path, seed: of_arrays(*signals.digits(path)), "digits.csv.gz"),
    "sounds": Entry("sound", lambda path, seed: of_arrays(*signals.sounds(seed)), ""),
    "tumours": Entry("table", of_table, "tumours.csv", MALIGNANT),
    "credit": Entry("table", of_table, "credit.csv", BAD),
}


def load(name, target, seed, folder, tell=silent):
    """The Examples of a name in EXAMPLES, whose file is in the folder, or of a path.

    tell: see messages.note
    """
    if name in EXAMPLES:
        entry = EXAMPLES[name]
        return entry.load(Path(folder) / entry.file, seed, **entry.columns)
    path = Path(name)
    if not path.exists():
        remedy = nearest(name, EXAMPLES, "check the path")
        raise FileNotFoundError(f"{name}: expected a file or folder, found nothing; {remedy}")
    if not path.is_dir():
        return of_table(path, seed, target, tell=tell)
    if signals.mnist_files(path):
        return of_arrays(*signals.mnist(path))
    return of_arrays(*signals.class_folder(path, seed, tell))


def encoder_from(config):
    """The encoder whose config() this is."""
    if config["kind"] == "table":
        return TableEncoder(config["columns"])
    return ArrayEncoder(**config)


class Rows(Shuffled):
    """Examples in random order. vary(x, rng) -> x changes the inputs of a batch without changing
    their class, so that each epoch shows new variants, and the model learns fewer by heart."""

    block_size, unit, scale = 1, "rows", 1.0
    epochs = 200  # at most, within --minutes

    def __init__(self, x, y, seed, vary=None):
        self.x, self.y, self.vary = x, y, vary
        super().__init__(len(x), seed)

    def batch(self, n):
        """-> x (n, ...), y (n,)"""
        # The Generator depends on the position alone, so that a resumed run draws the same.
        rng = np.random.default_rng((self.seed, self.epoch, self.index))
        places = self.take(n)
        x = self.x[places]
        return self.vary(x, rng) if self.vary else x, self.y[places]


def shifted(x, rng):
    """Each image moved down and right by -1, 0 or 1 pixels, edges repeated.  x (N, Y, X, C)"""
    n, height, width, _ = x.shape
    down, right = rng.integers(-1, 2, (2, n, 1))
    rows = np.clip(np.arange(height) - down, 0, height - 1)  # (N, Y): where each comes from
    columns = np.clip(np.arange(width) - right, 0, width - 1)  # (N, X)
    return x[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]


def played(x, rng):
    """Each sound played faster or slower, and so up to three semitones higher or lower, from a
    random place, softer. At its end it goes on with its beginning.  x (N, T)"""
    n, T = x.shape
    pitch, start, loudness = rng.uniform((-0.25, 0, 0.3), (0.25, T, 1), (n, 3)).T[:, :, None]
    place = start + np.arange(T) * 2**pitch  # in octaves: 3 of 12 semitones are 0.25
    i = place.astype(int)
    part = (place - i).astype(np.float32)  # between samples i and i + 1: a line
    a = np.take_along_axis(x, i % T, 1)
    b = np.take_along_axis(x, (i + 1) % T, 1)
    return (a + part * (b - a)) * loudness.astype(np.float32)


VARY = {"image": shifted, "sound": played, "table": None}  # how the examples of a kind vary
