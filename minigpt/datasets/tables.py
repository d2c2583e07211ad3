"""Tables: CSV files, and how their columns of words and numbers become numbers for a model."""

import csv
import io
from pathlib import Path

import numpy as np

from minigpt.messages import check

MISSING = {"", "?", "NA"}  # cells that say nothing


def read_csv(path):
    """{column: cells without outer spaces} of a table whose first line names the columns.

    Raises FileNotFoundError, or ValueError with the line if the file is no such table.
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
    columns = {}
    for i, name in enumerate(header):
        columns[name] = [cells[i] for _, cells in rows]
        x = [0.0 if cell in MISSING else number(cell) for cell in columns[name]]
        if None not in x:  # a column of numbers
            finite = np.isfinite(x)
            wrong = finite.argmin()  # the place of the first nan or inf, if there is one
            where, got = f"{path}: line {rows[wrong][0]}, column {name}", columns[name][wrong]
            check(finite.all(), where, "a number", got, "write NA where it is missing")
    return columns


def read_rows(path):
    """[(number of its line, its cells)] of each line that is not empty. Of comma, semicolon and tab
    the one that is most frequent in the first line separates cells."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        lost = f"{path}: expected a file, found nothing; check the path"
        raise FileNotFoundError(lost) from None
    except UnicodeDecodeError as e:
        line, byte = e.object.count(b"\n", 0, e.start) + 1, f"byte 0x{e.object[e.start]:02x}"
        check(False, f"{path}: line {line}", "UTF-8 text", byte, "convert it, say with iconv")
    first = text.partition("\n")[0]
    delimiter, rows, line = max(",;\t", key=first.count), [], 1
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cells):
                rows.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1  # a cell in quotes may span lines
    except csv.Error as e:
        check(False, f"{path}: line {line}", "cells", e, "mend it")
    check(len(rows) > 1, path, "a header and rows", f"{len(rows)} lines", "add rows")
    return rows


def number(cell):
    """The float that a cell spells, or None. 1_0 is None, although Python reads it as 10."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


class TableEncoder:
    """Columns of cells -> numbers x (N, F), as the training part showed them.

    A column of numbers becomes (number - mean) / scale, 0 where it is missing. If cells were
    missing in training, a second feature says so: 1 where the cell is missing, else 0.
    A column of categories becomes one feature per value that training has seen: 1 for the value of
    the cell, 0 for the others. "" is the value of missing cells; a new value gives zeros alone.

        age  job               age   job=cook  job=pilot
        20   cook       ->     -1       1         0            mean 30, scale 10
        40   pilot              1       0         1

    columns: [{"name", "mean", "scale", "missing"} or {"name", "values"}]; shape: how many features
    each column has.
    """

    def __init__(self, columns):
        self.columns = columns
        self.unseen = {}  # of the cells encoded last: {column: {new category: count}}
        self.shape = [len(c["values"]) if "values" in c else 1 + c["missing"] for c in columns]

    @classmethod
    def fit(cls, columns, rows):
        """The encoder of a training part.  columns {name: cells}, rows: the places of its rows"""
        fitted = []
        for name, cells in columns.items():
            fitted.append(fit_column(name, [cells[i] for i in rows]))
        return cls(fitted)

    def encode_columns(self, columns):
        """{name: N cells} -> x (N, F) float32"""
        parts, self.unseen = [], {}
        for column in self.columns:
            name, got = column["name"], ", ".join(columns)
            check(name in columns, f"column {name}", "one of this name", got, "add it")
            cells = ["" if cell in MISSING else cell for cell in columns[name]]
            if "values" in column:
                place = {value: i for i, value in enumerate(column["values"])}
                places = np.array([place.get(cell, -1) for cell in cells])
                parts.append(places[:, None] == np.arange(len(place)))
                new = set(cells) - set(place)
                if new:
                    self.unseen[name] = {value: cells.count(value) for value in sorted(new)}
            else:
                parts.append(numbers(cells, column))
        return np.concatenate(parts, 1, dtype=np.float32)

    def encode(self, path):
        """The rows of a CSV file -> x (N, F). Columns that training did not have are not read."""
        columns = read_csv(path)
        try:
            return self.encode_columns(columns)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None

    def config(self):
        return {"kind": "table", "columns": self.columns}


def fit_column(name, cells):
    """What TableEncoder must know of a column, from its cells in the training part."""
    known = [cell for cell in cells if cell not in MISSING]
    missing = len(known) < len(cells)
    x = [number(cell) for cell in known] or [0.0]
    if None in x or not np.isfinite(x).all():
        values = sorted({*known, ""} if missing else {*known})
        remedy = "leave the column out if it only identifies the rows"
        check(len(values) <= 100, f"column {name}", "100 categories at most", len(values), remedy)
        return {"name": name, "values": values}
    constant = min(x) == max(x)  # np.std of a constant may be a little above 0, by rounding
    with np.errstate(over="ignore"):
        scale = 1.0 if constant else float(np.std(x))
    usual = np.isfinite(scale) and abs(max(x, key=abs)) < 1e30
    check(usual, f"column {name}", "numbers below 1e30", max(x, key=abs), "correct them")
    return {"name": name, "mean": float(np.mean(x)), "scale": scale, "missing": missing}


def numbers(cells, column):
    """N cells -> (N, 1), or (N, 2) with a feature that says missing"""
    missing = [not cell for cell in cells]
    x = [number(cell) if cell else column["mean"] for cell in cells]
    x = np.array(x, float)  # None, of a cell that is no number, becomes NaN
    wrong = np.flatnonzero(~np.isfinite(x))
    if len(wrong):
        where = f"row {wrong[0] + 1}, column {column['name']}"
        check(False, where, "a number as in training", cells[wrong[0]], "mend it or write NA")
    x = (x - column["mean"]) / column["scale"]
    return np.stack([x, missing] if column["missing"] else [x], 1)
