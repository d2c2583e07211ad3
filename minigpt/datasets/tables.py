"""Examples for classifiers: images, sounds and tables, as arrays of numbers."""

import csv
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt.datasets import signals
from minigpt.datasets.signals import ArrayEncoder
from minigpt.datasets.stream import Shuffled
from minigpt.messages import check, nearest

NAMES = {"digits": "image", "sounds": "sound", "tumours": "table", "credit": "table"}
NAMES |= {"qa": "task", "translation": "task"}
TARGETS = {  # column, positive class, column whose ages are audited
    "tumours": ("diagnosis", "malignant", None),
    "credit": ("creditability", "bad", "age_in_years"),
}
MISSING = {"", "?", "NA"}


@dataclass
class Examples:
    """Three parts, each x float32, images (N, Y, X, C), sounds (N, T) or tables (N, F), and y (N,)
    int32; positive: the class to find, if there are two; groups: a title and each test row's."""

    kind: str
    classes: list
    train: tuple
    validation: tuple
    test: tuple
    encoder: object
    positive: int | None
    groups: tuple | None = None

    def crc(self):
        """CRC-32 of classes and all parts: a resumed run and a report must see the same."""
        crc = zlib.crc32(" ".join(self.classes).encode())
        for array in (*self.train, *self.validation, *self.test):
            crc = zlib.crc32(np.ascontiguousarray(array), crc)
        return crc


class Rows(Shuffled):
    """Examples in random order, each once per epoch; vary(x, rng) -> x changes what is no matter
    of the class, as `shifted` or `played` do."""

    block_size, unit, scale = 1, "rows", 1.0
    epochs = 200  # at most, within --minutes

    def __init__(self, x, y, seed, vary=None):
        self.x, self.y, self.vary = x, y, vary
        super().__init__(len(x), seed)

    def batch(self, n):
        """-> x (n, ...), y (n,)"""
        rng = np.random.default_rng((self.seed, self.epoch, self.index))  # resuming needs no more
        places = self.take(n)
        x = self.x[places]
        return self.vary(x, rng) if self.vary else x, self.y[places]


def shifted(x, rng):
    """Each image moved down and right by -1, 0 or 1 pixels, edges repeated.  x (N, Y, X, C)"""
    n, height, width, _ = x.shape
    down, right = rng.integers(-1, 2, (2, n, 1))
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return x[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]


def played(x, rng):
    """Each sound up to three semitones higher or lower, faster or slower by as much, beginning
    elsewhere, softer, as a ring that closes.  x (N, T)"""
    n, T = x.shape
    pitch, start, loudness = rng.uniform((-0.25, 0, 0.3), (0.25, T, 1), (n, 3)).T[:, :, None]
    place = start + np.arange(T) * 2**pitch
    i = place.astype(int)
    part = (place - i).astype(np.float32)
    a, b = (np.take_along_axis(x, j % T, 1) for j in (i, i + 1))
    return (a + part * (b - a)) * loudness.astype(np.float32)


VARY = {"image": shifted, "sound": played, "table": None}


def kind(names, target):
    """What the words of --data name: "text", "task", "image", "sound" or "table"."""
    kinds = [kind_of(name, target) for name in names]
    one = len(names) == 1 or set(kinds) == {"text"}
    check(one, "--data", "one name of examples", " ".join(names), "train on one at a time")
    fits = not target or kinds[0] == "table" and names[0] not in NAMES
    check(fits, f"--target {target}", "a .csv file in --data", names[0], "leave --target out")
    return kinds[0]


def kind_of(name, target):
    """The kind of data that one word of --data names"""
    path = Path(name)
    if name in NAMES:
        return NAMES[name]
    if path.suffix.lower() == ".tsv":
        return "task"
    if path.suffix.lower() == ".csv":
        if not (target and path.exists()):  # else load() reads it
            some = ", ".join(list(read_csv(name))[:5])
            check(False, name, "--target COLUMN", "none", f"add it with a column, say of {some}")
        return "table"
    if not path.exists() and nearest(name, NAMES):
        raise absent(name)
    if signals.mnist_files(path):
        return "image"
    files = signals.class_files(path)
    return signals.kind_of(signals.read_array(files[0])[0]) if files else "text"


def absent(name):
    remedy = nearest(str(name), NAMES, f"check the path or use {', '.join(NAMES)}")
    return FileNotFoundError(f"{name}: expected a file or folder, found nothing; {remedy}")


def load(name, target, seed, folder):
    """The Examples of a path or a name, whose file is in the folder; seed splits and generates."""
    path = Path(name)
    if name == "sounds":
        return arrays(*signals.sounds(seed))
    if name == "digits":
        return arrays(*signals.digits(Path(folder) / "digits.csv.gz"))
    if name in TARGETS:
        return table(Path(folder) / f"{name}.csv", seed, *TARGETS[name])
    if path.is_dir():
        mnist = signals.mnist_files(path)
        return arrays(*(signals.mnist(path) if mnist else signals.class_folder(path, seed)))
    return table(path, seed, target)


def arrays(kind, classes, parts, rate):
    """Examples of raw images or sounds."""
    encoder = ArrayEncoder.fit(kind, parts[0][0], rate)
    parts = [(encoder.scaled(x), y) for x, y in parts]
    return Examples(kind, classes, *parts, encoder, 1 if len(classes) == 2 else None)


def encoder_from(config):
    """The encoder whose config() this is."""
    if config["kind"] == "table":
        return TableEncoder(config["columns"])
    return ArrayEncoder(**config)


def read_csv(path):
    """{column: cells without outer spaces} of a table; its first line names the columns and has
    its delimiter, one of , ; and tab, more often than the others.

    Raises FileNotFoundError, or ValueError for what is no such table, and for nan, inf or the like
    among numbers.
    """
    (_, header), *rows = read_rows(path)
    where, most = f"{path}: line 1", max(header, key=header.count)
    named = any(number(name) is None for name in header)
    check(named, where, "names of columns", "numbers", "add a header")
    check("" not in header, where, "a name for each column", "one without", "name it")
    check(header.count(most) == 1, where, "different names", f"{most} twice", "rename one")
    for line, cells in rows:
        right = len(cells) == len(header)
        check(right, f"{path}: line {line}", f"{len(header)} cells", len(cells), "mend the line")
    columns = {name: [cells[i] for _, cells in rows] for i, name in enumerate(header)}
    for name, cells in columns.items():
        numbers = [0.0 if cell in MISSING else number(cell) for cell in cells]
        if None not in numbers and not (finite := np.isfinite(numbers)).all():
            i = finite.argmin()
            where = f"{path}: line {rows[i][0]}, column {name}"
            check(False, where, "a number", cells[i], "write NA where it is missing")
    return columns


def read_rows(path):
    """[(number of its line, its cells)] of each line that is not empty."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise absent(path) from None
    except UnicodeDecodeError as e:
        line, byte = e.object.count(b"\n", 0, e.start) + 1, f"byte 0x{e.object[e.start]:02x}"
        check(False, f"{path}: line {line}", "UTF-8 text", byte, "convert it, say with iconv")
    delimiter, rows, line = max(",;\t", key=text.partition("\n")[0].count), [], 1
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            rows += [(line, [cell.strip() for cell in cells])] if any(cells) else []
            line = reader.line_num + 1  # a cell in quotes may span lines
    except csv.Error as e:
        check(False, f"{path}: line {line}", "cells", e, "mend it")
    check(len(rows) > 1, path, "a header and rows", f"{len(rows)} lines", "add rows")
    return rows


def number(cell):
    """The float that a cell spells, or None; 1_0, Python's 10, is none."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


class TableEncoder:
    """Columns of cells -> numbers x (N, F), by what `columns` says of each:

    {"name", "mean", "scale", "missing"}: (number - mean) / scale, 0 if missing, and a feature that
    says so if cells were missing in training; {"name", "values"}: for each value seen in training,
    "" being a missing one, whether it is this one. shape: how many features each column has.
    """

    def __init__(self, columns):
        self.columns, self.unseen = columns, {}
        self.shape = [len(c["values"]) if "values" in c else 1 + c["missing"] for c in columns]

    @classmethod
    def fit(cls, columns, rows):
        """columns {name: cells}, rows: the places of the training part"""
        return cls([fit_column(name, [cells[i] for i in rows]) for name, cells in columns.items()])

    def encode_columns(self, columns):
        """{name: N cells} -> x (N, F) float32; `unseen` becomes {column: {new category: count}}."""
        parts, self.unseen = [], {}
        for column in self.columns:
            name, got = column["name"], ", ".join(columns)
            check(name in columns, f"column {name}", "one of this name", got, "add it")
            cells = ["" if cell in MISSING else cell for cell in columns[name]]
            parts.append((categories if "values" in column else numbers)(cells, column))
            if "values" in column and (new := set(cells) - set(column["values"])):
                self.unseen[name] = {value: cells.count(value) for value in sorted(new)}
        return np.concatenate(parts, 1, dtype=np.float32)

    def encode(self, path):
        """The rows of a CSV, whose further columns are left aside -> x (N, F)"""
        columns = read_csv(path)
        try:
            return self.encode_columns(columns)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None

    def config(self):
        return {"kind": "table", "columns": self.columns}


def fit_column(name, cells):
    """What TableEncoder needs to know of a column, from its cells in the training part."""
    known = [cell for cell in cells if cell not in MISSING]
    missing = len(known) < len(cells)
    x = [number(cell) for cell in known] or [0.0]
    if None in x or not np.isfinite(x).all():
        values = sorted({*known, ""} if missing else {*known})
        remedy = "leave it out if it names the rows"
        check(len(values) <= 100, f"column {name}", "100 categories at most", len(values), remedy)
        return {"name": name, "values": values}
    scale = float(np.std(x)) if min(x) < max(x) else 1.0  # of a constant the sum may round
    return {"name": name, "mean": float(np.mean(x)), "scale": scale, "missing": missing}


def categories(cells, column):
    """N cells -> (N, values): 1 where the cell is the value, all 0 for one that is new"""
    return np.array(cells)[:, None] == np.array(column["values"])


def numbers(cells, column):
    """N cells -> (N, 1), or (N, 2) with one that says missing"""
    x = np.array([number(cell) if cell else column["mean"] for cell in cells], float)  # None: NaN
    for i in np.flatnonzero(~np.isfinite(x))[:1]:
        where = f"row {i + 1}, column {column['name']}"
        check(False, where, "a number as in training", cells[i], "mend it or write NA")
    x = (x - column["mean"]) / column["scale"]
    return np.stack([x, [not cell for cell in cells]] if column["missing"] else [x], 1)


def table(path, seed, target, positive=None, audited=None):
    """Examples of a CSV; positive: the class to find, None for the second of two."""
    columns = read_csv(path)
    remedy = nearest(str(target), columns, f"name one of {', '.join(columns)}")
    check(target in columns, path, f"a column {target}", "none", remedy)
    cells, where = columns.pop(target), f"{path}: column {target}"
    check(columns, where, "further columns to learn from", "none", "add some")
    count, gaps = len(set(cells)), sum(cell in MISSING for cell in cells)
    check(not gaps, where, "a class in each row", f"{gaps} rows without", "leave these out")
    right = count <= 20 or None in map(number, cells)
    check(right, where, "20 numbers at most", count, "name a column of classes, not of amounts")
    classes, y = signals.labels(cells, where)
    parts = signals.split(y, seed)
    try:
        encoder = TableEncoder.fit(columns, parts[0])
        x = encoder.encode_columns(columns)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    index = classes.index(positive or classes[1]) if len(classes) == 2 else None
    groups = (audited, by_age([columns[audited][i] for i in parts[2]])) if audited else None
    return Examples("table", classes, *((x[i], y[i]) for i in parts), encoder, index, groups)


def by_age(years):
    """Ages, numbers or cells -> the names of their groups"""
    names = np.array(["under 30", "30 to 44", "45 and over"])
    return names[np.digitize(np.array(years, float), [30, 45])]
