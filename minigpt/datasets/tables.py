"""Tables: CSV files, and how their columns of words and numbers become numbers for a model."""

import csv
import io
import re
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.datasets.encodings import decoded
from minigpt.messages import check, silent

# Cells that say nothing. The last three say nothing among numbers only: "none" may be an answer,
# and "-" the opposite of "+".
MISSING = {"", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null"}
AMONG_NUMBERS = MISSING | {"None", "none", "-"}
SIGN = "[+\u2212-]?"  # U+2212 is the minus of print
FIRST = SIGN + r"[1-9]\d{0,2}"  # the digits before the thousands; a 0 stands before no thousand
THOUSANDS = re.compile(FIRST + r"(,\d{3})+(\.\d+)?( ?%)?", re.ASCII)  # 1,000
POINTS = re.compile(FIRST + r"(\.\d{3})+", re.ASCII)  # 1.000, which may be a thousand
EITHER = re.compile(FIRST + r"[.,]\d{3}( ?%)?", re.ASCII)  # 1.000 or 1,000: a thousand, or one
DECIMAL = re.compile(SIGN + r"\d+,\d+( ?%)?", re.ASCII)  # 1,5
WHOLE = re.compile(SIGN + r"\d+( ?%)?", re.ASCII)
# What a person reads as a number, though nothing here does: $5, 1 000, 1.234,5, and (7) for -7
LIKE_NUMBERS = re.compile(
    r"[+\u2212–-]?[$€£¥]? ?(\d{1,3}([ .,'’\u00a0\u202f]\d{3})+|\d+)([.,]\d+)? ?[%$€£¥]?"
    r"|\([$€£¥]? ?\d[\d .'’]*(,\d{3})*(\.\d+)? ?[%$€£¥]?\)",
    re.ASCII,
)


class Table(NamedTuple):
    """columns: {name: cells without outer spaces}; lines: the number of each row's line."""

    columns: dict
    lines: list


def read_csv(path, tell=silent, learned=True):
    """The Table in a file whose first line names the columns.  tell: see messages.note

    learned: whether a model will learn from it what its numbers are.

    Raises FileNotFoundError, or ValueError with the line if the file is no such table.
    """
    delimiter, ((_, header), *rows) = read_rows(path, tell)
    for line, cells in rows:
        right = len(cells) == len(header)
        check(right, f"{path}: line {line}", f"{len(header)} cells", len(cells), "mend the line")
    lines, grid = zip(*rows, strict=True)
    columns = list(zip(*grid, strict=True))
    index = [*takewhile(is_index, zip(header, columns, strict=True))]
    if index:
        many = f"{len(index)} columns only count" if len(index) > 1 else "column only counts"
        tell(f"{path}: its first {many} the rows: left out")
        header, columns = header[len(index) :], columns[len(index) :]
    check_names(f"{path}: line 1", header)
    if delimiter != ",":
        refuse_thousands(path, header, columns, lines, learned)
    table = Table({}, list(lines))
    for name, cells in zip(header, columns, strict=True):
        read = table.columns[name] = without_commas(cells, delimiter)
        changed = [i for i, cell in enumerate(cells) if read[i] != cell]
        if changed:
            first = changed[0]
            where = f"{path}: line {lines[first]}, column {name}"
            tell(f"{where}: {cells[first]} is read as {read[first]}")
    return table


def read_rows(path, tell):
    """What separates the cells of a file, and [(number of its line, its cells)] of each line that
    is not empty. It is that of comma, semicolon and tab which is most frequent in the first line;
    what stands in quotes does not count."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: expected a file, found nothing; check the path")
    check(Path(path).is_file(), path, "a .csv file", "a folder, a device or a pipe", "name another")
    text = decoded(path, Path(path).read_bytes(), tell)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = re.match(r'(?:"[^"]*"|[^"\n])*', text.lstrip("\n"))[0]
    delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", first).count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    rows, line = [], 1
    try:
        for cells in reader:
            if any(cells):
                rows.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1  # a cell in quotes may span lines
    except csv.Error as e:
        check(False, f"{path}: line {line}", "cells", e, "mend it")
    check(len(rows) > 1, path, "a header and rows", f"{len(rows)} lines", "add rows")
    return delimiter, rows


def is_index(column):
    """Whether a column (name, cells) only counts the rows, as pandas and R write it beside a table.

    A table saved twice has two: pandas calls them Unnamed: 0 and Unnamed: 0.1 when it reads them.
    """
    name, cells = column
    unnamed = re.fullmatch(r"(Unnamed: 0[.\d]*)?", name)
    return unnamed and all(map(str.isdecimal, cells)) and len({*cells}) == len(cells)


def check_names(where, header):
    """Raise ValueError unless the cells of the first line can name columns."""
    check(header, where, "names of columns", "none", "add columns")
    most = max(header, key=header.count)
    named = any(number(name) is None for name in header)
    check(named, where, "names of columns", "numbers", "add a header")
    check("" not in header, where, "a name for each column", "one without", "name it")
    check(header.count(most) == 1, where, "different names", f"{most} twice", "rename one")


def without_commas(cells, delimiter):
    """The cells, those that are numbers with commas spelled as float() reads them.

    Where commas separate cells, a number with commas is in quotes, and they separate thousands:
    "1,000" becomes 1000. Elsewhere a comma is the decimal point: 1,5 becomes 1.5.
    """
    form, sign = (THOUSANDS, "") if delimiter == "," else (DECIMAL, ".")
    plain = []
    for cell in cells:
        number_with_comma = "," in cell and form.fullmatch(cell)
        plain.append(cell.replace(",", sign) if number_with_comma else cell)
    return plain


def refuse_thousands(path, header, columns, lines, learned):
    """Raise ValueError for a number that may be a thousand or a fraction: where commas do not
    separate cells, a file may spell its numbers as any country does.

    That is 1.000 in a file with decimal commas; and 1.000 or 1,000 in a column with whole numbers,
    if all its numbers with a point or comma are such: as 1 it would be less than a 2 beside it. The
    latter only in a table that is learned from: new rows are read as that was, and may be few.
    """
    commas = any("," in cell and DECIMAL.fullmatch(cell) for cells in columns for cell in cells)
    for name, cells in zip(header, columns, strict=True):
        marked = {cell for cell in cells if "." in cell or "," in cell}
        marked = {cell for cell in marked if DECIMAL.fullmatch(cell) or number(cell) is not None}
        whole = next(filter(WHOLE.fullmatch, cells), "")[:20]
        mixed = learned and whole and all(map(EITHER.fullmatch, marked))
        for line, cell in zip(lines, cells, strict=True):
            if commas and "." in cell and POINTS.fullmatch(cell):
                need, other = "a decimal comma or none", cell.replace(".", ",")
            elif mixed and cell in marked:
                need = f"a number that can be read in one way beside {whole}"
                other = "add a 0 if it is a fraction"
            else:
                continue
            remedy = f"write {re.sub('[.,]', '', cell)}, or {other}"
            check(False, f"{path}: line {line}, column {name}", need, cell, remedy)


def number(cell):
    """The float that a cell spells, or None: 5% is 0.05. 1_0 is None, although Python reads 10."""
    try:
        x = float(cell.removesuffix("%").replace("\u2212", "-"))
    except ValueError:
        return None
    if "_" in cell:
        return None
    return x / 100 if cell.endswith("%") else x


def floats(cells):
    """N cells of a column -> x (N,), NaN where one is no number; missing (N,) bool, where x is 0"""
    missing = [cell in AMONG_NUMBERS for cell in cells]
    x = [0.0 if gap else number(cell) for cell, gap in zip(cells, missing, strict=True)]
    return np.array(x, float), np.array(missing, bool)  # None becomes NaN


def holds_numbers(name, cells, x, missing, lines, tell):
    """Whether a column is one of numbers, by all its cells; otherwise it is one of categories.

    Where nearly all are numbers, or look like it, the first other cell is refused: as categories
    they would lose their order and size.  x, missing: floats(cells). Raises ValueError.
    """
    known, odd = np.flatnonzero(~missing), np.flatnonzero(~np.isfinite(x))
    if not len(known):
        return MISSING.issuperset(cells)
    if not len(odd):
        check_alike(name, cells, known, lines)
        return True
    words = [i for i in odd if np.isnan(x[i]) and not LIKE_NUMBERS.fullmatch(cells[i])]
    where, cell = f"{place(odd[0], lines)}, column {name}", shown(cells[odd[0]])
    remedy = "write plain digits, or NA where it is missing"
    if cell.startswith("("):
        remedy = f"{remedy}; brackets are no minus"
    check(len(words) > 0.1 * len(known), where, "a number", cell, remedy)
    if len(odd) < len(known):
        mixed = f"{len(odd)} of {len(known)} cells are no numbers"
        tell(f"{where}: {cell}; {mixed}, so it is read as categories")
    return False


def check_alike(name, cells, known, lines):
    """Raise ValueError if only some numbers have a %: 5 beside 5% may be 5 or 0.05."""
    percent = [cells[i].endswith("%") for i in known]
    if len({*percent}) == 1:
        return
    other = known[percent.index(not percent[0])]
    where, like = (
        f"{place(other, lines)}, column {name}",
        f"a number spelled like {cells[known[0]]}",
    )
    check(False, where, like, cells[other], "write % after all or after none")


def shown(cell):
    """A cell in a message: its beginning, on one line."""
    return " ".join(cell.split())[:40]


def place(i, lines):
    """Where row i stands: in its line, if it comes from a file."""
    return f"line {lines[i]}" if lines else f"row {i + 1}"


class TableEncoder:
    """Columns of cells -> numbers x (N, F), as the training part showed them.

    A column of numbers becomes (number - mean) / scale, 0 where it is missing. If cells were
    missing in training, a second feature says so: 1 where the cell is missing, else 0.
    A column of categories becomes one feature per value that training has seen: 1 for the value of
    the cell, 0 for the others. "" is the value of missing cells; a new value gives zeros alone.

        age  job               age   job=cook  job=pilot
        20   cook       ->     -1       1         0            mean 30, scale 10
        40   pilot              1       0         1

    columns: [{"name", "mean", "scale", "missing", "percent"} or {"name", "values"}]; shape: how
    many features each column has.
    """

    def __init__(self, columns):
        self.columns = columns
        self.unseen = {}  # of the cells encoded last: {column: {new category: count}}
        self.shape = [len(c["values"]) if "values" in c else 1 + c["missing"] for c in columns]

    @classmethod
    def fit(cls, columns, rows, lines=(), tell=silent):
        """The encoder of a training part.  columns {name: cells}, rows: the places of its rows

        What kind a column is does not depend on which rows are drawn for training. lines: see Table
        """
        fitted = []
        for name, cells in columns.items():
            x, missing = floats(cells)
            if holds_numbers(name, cells, x, missing, lines, tell):
                percent = any(cell.endswith("%") for cell in cells)
                fitted.append(fit_numbers(name, x, missing, rows) | {"percent": percent})
            else:
                fitted.append(fit_categories(name, cells, rows))
        return cls(fitted)

    def encode_columns(self, columns, lines=()):
        """{name: N cells} -> x (N, F) float32"""
        parts, self.unseen = [], {}
        for column in self.columns:
            name, got = column["name"], ", ".join(columns)
            check(name in columns, f"column {name}", "one of this name", got, "add it")
            if "values" in column:
                cells = ["" if cell in MISSING else cell for cell in columns[name]]
                values = {value: i for i, value in enumerate(column["values"])}
                places = np.array([values.get(cell, -1) for cell in cells])
                parts.append(places[:, None] == np.arange(len(values)))
                new = set(cells) - set(values)
                if new:
                    self.unseen[name] = {value: cells.count(value) for value in sorted(new)}
            else:
                parts.append(numbers(columns[name], column, lines))
        return np.concatenate(parts, 1, dtype=np.float32)

    def encode(self, path, tell=silent):
        """The rows of a CSV file -> x (N, F). Columns that training did not have are not read."""
        table = read_csv(path, tell, learned=False)
        try:
            return self.encode_columns(*table)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None

    def config(self):
        return {"kind": "table", "columns": self.columns}


def fit_numbers(name, x, missing, rows):
    """What TableEncoder must know of a column of numbers: mean and scale of the training part."""
    most = max(x, key=abs, default=0.0)
    check(abs(most) < 1e30, f"column {name}", "numbers below 1e30", most, "correct them")
    known = x[rows][~missing[rows]]
    if not len(known):
        known = np.zeros(1)
    # np.std of a constant may be a little above 0, by rounding; of numbers below 1e-160 it is 0.
    scale = 1.0 if known.min() == known.max() else float(np.std(known)) or 1.0
    gaps = bool(missing[rows].any())
    return {"name": name, "mean": float(np.mean(known)), "scale": scale, "missing": gaps}


def fit_categories(name, cells, rows):
    """What TableEncoder must know of a column of categories: those in the training part."""
    cells = ["" if cell in MISSING else cell for cell in cells]
    count, remedy = len({*cells}), "leave the column out if it only identifies the rows"
    check(count <= 100, f"column {name}", "100 categories at most", count, remedy)
    return {"name": name, "values": sorted({cells[i] for i in rows})}


def numbers(cells, column, lines):
    """N cells -> (N, 1), or (N, 2) with a feature that says missing"""
    x, missing = floats(cells)
    wrong = np.flatnonzero(~(np.abs(x) < 1e30))  # as in fit_numbers; NaN is not below
    if len(wrong):
        where, got = f"{place(wrong[0], lines)}, column {column['name']}", shown(cells[wrong[0]])
        check(False, where, "a number as in training", got, "mend it or write NA")
    percent = column["percent"]
    other = [i for i in np.flatnonzero(~missing) if cells[i].endswith("%") != percent]
    if other:  # 5 is a hundred times 5%
        where, got = f"{place(other[0], lines)}, column {column['name']}", shown(cells[other[0]])
        like = f"a number {'with' if percent else 'without'} %, as in training"
        check(False, where, like, got, "write it so")
    x = np.where(missing, 0, (x - column["mean"]) / column["scale"])
    return np.stack([x, missing] if column["missing"] else [x], 1)
