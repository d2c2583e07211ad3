"""Images, sounds and tables for classifiers, and the words that bad data gets."""

import gzip
import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from minigpt.datasets import catalogue, formats, signals, splits, tables, tasks, text
from minigpt.datasets.examples import EXAMPLES, VARY, Rows, encoder_from, load, shifted
from minigpt.datasets.tables import TableEncoder

DATA = Path(__file__).resolve().parents[1] / "data"


def csv_of(path, n=20, header="age,job,class"):
    """A table of n rows, half of each class, with a number and a category."""
    rows = [f"{20 + i},{'abc'[i % 3]},{('no', 'yes')[i % 2]}" for i in range(n)]
    path.write_text("\n".join([header, *rows]))
    return str(path)


def parts_of(examples):
    return examples.train, examples.validation, examples.test


# the committed tables


@pytest.mark.parametrize(
    "name, counts",
    [
        ("digits", [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
        ("tumours", [357, 212]),
        ("credit", [300, 700]),
    ],
)
def test_a_committed_table_has_the_rows_that_its_publisher_counts(name, counts):
    parts = parts_of(load(name, None, 0, DATA))
    assert np.bincount(np.concatenate([y for _, y in parts])).tolist() == counts
    assert all(x.dtype == np.float32 and y.dtype == np.int32 for x, y in parts)


def test_malignant_and_bad_are_positive():
    tumours, credit = (load(name, None, 0, DATA) for name in ("tumours", "credit"))
    assert tumours.classes[tumours.positive] == "malignant" and tumours.groups is None
    assert credit.classes[credit.positive] == "bad"


def test_neither_sex_nor_origin_is_an_input_of_credit():
    encoder = load("credit", None, 0, DATA).encoder
    names = [column["name"] for column in encoder.columns]
    assert len(names) == len(encoder.shape) == 18 and sum(encoder.shape) == 55
    assert not [name for name in names if "sex" in name or "foreign_worker" in name]


def test_the_test_rows_of_credit_are_grouped_by_age():
    examples = load("credit", None, 0, DATA)
    names = [column["name"] for column in examples.encoder.columns]
    i = names.index("age_in_years")
    age, x = examples.encoder.columns[i], examples.test[0][:, sum(examples.encoder.shape[:i])]
    title, names = examples.groups
    assert title == "age_in_years" and len(names) == len(x)
    for years, name in zip(np.round(x * age["scale"] + age["mean"]), names, strict=True):
        assert name == ("under 30" if years < 30 else "30 to 44" if years < 45 else "45 and over")


def test_the_last_digits_are_for_testing_and_those_before_for_validation():
    rows = np.loadtxt(gzip.open(DATA / "digits.csv.gz"), delimiter=",", dtype=np.float32)
    examples, start = load("digits", None, 0, DATA), 0
    mean, scale = rows[:1257, :64].mean(), rows[:1257, :64].std()
    for (x, y), n in zip(parts_of(examples), (1257, 180, 360), strict=True):
        images = rows[start : start + n, :64].reshape(n, 8, 8, 1)
        np.testing.assert_allclose(x, (images - mean) / scale, atol=1e-5)  # float32
        assert y.tolist() == rows[start : start + n, 64].tolist()
        start += n


def test_prepare_makes_the_committed_tables(tmp_path):
    raw = {"digits.csv.gz": (DATA / "digits.csv.gz").read_bytes()}
    raw["breast_cancer.csv"] = b"2,30,malignant,benign\n" + b",".join([b"1.5"] * 30) + b",1\n"
    names = [*(f"c{i}" for i in range(8)), "personal_status_and_sex", "foreign_worker", "class"]
    cells = [*("a / b", " c  d ", '"e, f"', "g/h", "1", "2", "3", "4"), "x", "y", "good"]
    raw["german_credit.csv"] = "\n".join([",".join(names), ",".join(cells)]).encode()
    for name, content in raw.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data").mkdir()
    script = tmp_path / "data" / "prepare.py"
    script.write_bytes((DATA / "prepare.py").read_bytes())
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert made["digits.csv.gz"] == raw["digits.csv.gz"]
    first, row = made["tumours.csv"].decode().splitlines()
    header = (DATA / "tumours.csv").read_text().splitlines()[0]
    assert first == header and row == "1.5," * 30 + "benign"
    first, row = made["credit.csv"].decode().splitlines()
    assert first == "c0,c1,c2,c3,c4,c5,c6,c7,class" and row == 'a/b,c d,"e, f",g/h,1,2,3,4,good'


# rows


def test_an_epoch_of_rows_is_every_example_once():
    x = np.arange(10, dtype=np.float32)[:, None]
    got, y = Rows(x, np.arange(10, dtype=np.int32), seed=0).batch(10)
    assert sorted(y) == list(range(10)) and got[:, 0].tolist() == y.tolist()


@pytest.mark.parametrize(
    "kind, shape", [("table", (7, 5)), ("image", (7, 4, 4, 1)), ("sound", (7, 60))]
)
def test_rows_resumed_at_any_position_give_the_same_batches(kind, shape):
    x, vary = np.random.default_rng(0).random(shape, np.float32), VARY[kind]
    undisturbed = Rows(x, np.arange(7), 3, vary)
    for _ in range(9):
        resumed = Rows(x, np.arange(7), 3, vary)
        resumed.position = json.loads(json.dumps(undisturbed.position))
        for a, b in zip(resumed.batch(3), undisturbed.batch(3), strict=True):
            np.testing.assert_array_equal(a, b)


def test_shifted_images_equal_a_slow_loop():
    x = np.random.default_rng(0).random((20, 5, 6, 2))
    down, right = np.random.default_rng(1).integers(-1, 2, (2, 20))
    expected = np.empty_like(x)
    for n, i, j in np.ndindex(20, 5, 6):
        source = min(max(i - down[n], 0), 4), min(max(j - right[n], 0), 5)
        expected[n, i, j] = x[n][source]
    np.testing.assert_array_equal(shifted(x, np.random.default_rng(1)), expected)


def test_images_are_shifted_by_one_pixel_at_most_in_every_direction():
    x = np.zeros((1, 9, 9, 1))
    x[0, 4, 4] = 1
    rows = Rows(x, np.zeros(1), seed=0, vary=shifted)
    places = {tuple(np.argwhere(rows.batch(1)[0][0, :, :, 0])[0].tolist()) for _ in range(400)}
    assert places == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


def test_each_batch_of_an_epoch_is_shifted_otherwise():
    x = np.broadcast_to(np.random.default_rng(0).random((9, 9, 1)), (60, 9, 9, 1))
    rows = Rows(x, np.zeros(60), seed=0, vary=shifted)
    batches = [rows.batch(12)[0].tobytes() for _ in range(10)]  # two epochs
    assert len(set(batches)) == 10


# tables


@pytest.mark.parametrize("seed", range(3))
def test_splits_are_disjoint_and_stratified(seed):
    y = np.repeat([0, 1, 2], [50, 20, 5])
    parts = splits.stratified(np.random.default_rng(9).permutation(y), seed)
    y = np.random.default_rng(9).permutation(y)
    assert sorted(np.concatenate(parts).tolist()) == list(range(75))
    counts = [np.bincount(y[places]).tolist() for places in parts]
    assert counts == [[30, 12, 3], [10, 4, 1], [10, 4, 1]]


def test_another_seed_splits_otherwise():
    y = np.zeros(50, int)
    assert splits.stratified(y, 0)[0].tolist() != splits.stratified(y, 1)[0].tolist()
    assert splits.stratified(y, 1)[0].tolist() == splits.stratified(y, 1)[0].tolist()


def test_numbers_are_standardised_by_the_training_part_alone():
    cells = ["1", "2", "6", "1000"]
    encoder = TableEncoder.fit({"a": cells}, [0, 1, 2])
    expected = (np.array([1, 2, 6, 1000]) - 3) / np.sqrt(14 / 3)
    np.testing.assert_allclose(encoder.encode_columns({"a": cells})[:, 0], expected, rtol=1e-6)


def test_the_training_part_of_a_table_has_mean_zero_and_variance_one_the_others_about():
    train, *others = (x for x, _ in parts_of(load("tumours", None, 0, DATA)))
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)  # float32
    np.testing.assert_allclose(train.std(0), 1, atol=1e-5)
    assert all(0.01 < np.abs(x.mean(0)).max() < 1 for x in others)


def test_numbers_are_standardised_as_scikit_learn_does():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    columns = tables.read_csv(DATA / "tumours.csv").columns
    del columns["diagnosis"]
    raw = np.array(list(columns.values()), float).T
    expected = preprocessing.StandardScaler().fit(raw[::2]).transform(raw)
    x = TableEncoder.fit(columns, range(0, 569, 2)).encode_columns(columns)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)  # x is float32


def test_a_constant_number_becomes_zero():
    encoder = TableEncoder.fit({"a": ["0.1"] * 3}, range(3))
    assert encoder.encode_columns({"a": ["0.1", "1.1"]}).ravel() == pytest.approx([0, 1])


def test_missing_numbers_are_zero_and_flagged_if_training_has_some():
    columns = {"a": ["1", "3", "NA"], "b": ["1", "3", "2"]}
    encoder = TableEncoder.fit(columns, range(3))
    assert encoder.shape == [2, 1]
    x = encoder.encode_columns({"a": ["?", "2"], "b": ["2", ""]})
    assert x.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_categories_become_one_feature_each_missing_being_one():
    encoder = TableEncoder.fit({"a": ["red", "blue", "NA", "red"]}, range(4))
    assert encoder.columns == [{"name": "a", "values": ["", "blue", "red"]}]
    assert encoder.shape == [3]
    x = encoder.encode_columns({"a": ["red", "?", "blue"]})
    assert x.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_a_category_unseen_in_training_is_all_zeros_and_counted():
    encoder = TableEncoder.fit({"a": ["x", "y"], "b": ["1", "2"]}, range(2))
    x = encoder.encode_columns({"a": ["z", "x", "z"], "b": ["7", "8", "9"]})
    assert x[:, :2].tolist() == [[0, 0], [1, 0], [0, 0]]
    assert encoder.unseen == {"a": {"z": 2}}
    encoder.encode_columns({"a": ["x"], "b": ["1"]})
    assert encoder.unseen == {}


def test_cells_that_python_alone_takes_for_numbers_are_categories():
    encoder = TableEncoder.fit({"a": ["1_0", "2_0"]}, range(2))
    assert encoder.columns == [{"name": "a", "values": ["1_0", "2_0"]}]


def test_an_encoder_survives_json_and_reads_files(tmp_path):
    path = csv_of(tmp_path / "a.csv", 40)
    examples = load(path, "class", 0, DATA)
    again = encoder_from(json.loads(json.dumps(examples.encoder.config(), sort_keys=True)))
    x = again.encode(path)  # the target and its column are left aside
    y = np.arange(40) % 2
    places = splits.stratified(y, 0)
    for part, (expected, classes) in zip(places, parts_of(examples), strict=True):
        np.testing.assert_array_equal(x[part], expected)
        assert classes.tolist() == y[part].tolist()


@pytest.mark.parametrize(
    "text",
    ["a;b\nu,v;x\n2;y", "a\tb\nu,v\tx\n2\ty", '\ufeffa,b\r\n" u,v ", x\r\n\r\n2,y\r\n'],
)
def test_the_delimiter_and_line_ends_are_found(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert tables.read_csv(tmp_path / "a.csv").columns == {"a": ["u,v", "2"], "b": ["x", "y"]}


GOOD = "a,b,class\n" + "1,x,no\n2,y,yes\n" * 6


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "header and rows, got 0 lines"),
        ("a,b,class\n", "header and rows, got 1 lines"),
        ("1,2\n3,4", "line 1: expected names of columns, got numbers; add a header"),
        ("a,,class\n1,2,3", "line 1: .*a name for each column"),
        ("a,b,a,class\n1,2,3,4", "line 1: .*got a twice"),
        (GOOD + "\n3,z", "line 15: expected 3 cells, got 2"),
        ('a,b,class\n1,"x\ny",no\n2,z', "line 4: expected 3 cells, got 2"),
        (GOOD + "-inf,x,no", "line 14, column a: expected a number, got -inf"),
        (GOOD + '3,"' + "z" * 140_000, "line 14: expected cells, got field larger"),
        (GOOD.encode() + b"3,\xe9,no", "UTF-8 text, got byte 0xe9 in line 14; convert"),
        (GOOD.replace("class", "klass"), "column class, got none; did you mean klass"),
        (GOOD.replace("yes", "no"), "column class: expected two classes or more, got only no"),
        ("class\n" + "no\nyes\n" * 6, "further columns to learn from"),
        (GOOD + "3,z,?", "a class in each row, got 1 rows without"),
        (GOOD + "3,z,odd", "5 examples or more of a class, got 1 of odd"),
        ("a,class\n" + "".join(f"1,{i}\n" for i in range(21)), "20 numbers at most, got 21"),
        (
            "a,class\n" + "".join(f"n{i},{i % 2}\n" for i in range(300)),
            "column a: expected 100 categories at most, got 300; leave the column out",
        ),
    ],
)
def test_a_bad_table_gives_one_line_that_names_it(tmp_path, content, words):
    path = tmp_path / "bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"bad.csv: .*{words}|bad.csv: {words}") as raised:
        load(str(path), "class", 0, DATA)
    assert "\n" not in str(raised.value)


def test_new_rows_need_the_columns_of_training(tmp_path):
    encoder = TableEncoder.fit({"a": ["1", "2"], "b": ["x", "y"]}, range(2))
    (tmp_path / "new.csv").write_text("a,c\n1,2")
    with pytest.raises(ValueError, match="new.csv: column b: .*got a, c; add it"):
        encoder.encode(tmp_path / "new.csv")
    (tmp_path / "new.csv").write_text("a,b\n1,x\nold,y")
    with pytest.raises(ValueError, match="new.csv: line 3, column a: expected a number.*got old"):
        encoder.encode(tmp_path / "new.csv")


# what --data names


def test_names_and_paths_have_kinds(tmp_path):
    kinds = [catalogue.kind([name], None) for name in ("digits", "sounds", "tumours", "credit")]
    assert kinds == ["image", "sound", "table", "table"]
    path = csv_of(tmp_path / "a.csv")
    assert catalogue.kind([path], "class") == "table"
    assert catalogue.kind(["manual"], None) == catalogue.kind(["a.txt", "b.txt"], None) == "text"


def test_a_word_alone_tells_its_kind_without_any_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["manual", "qa", "a.tsv", "sounds", "credit", "a.CSV", "a.txt", "folder"]
    kinds = ["text", "task", "task", "sound", "table", "table", None, None]
    assert [catalogue.kind_of_word(word) for word in words] == kinds


def test_a_name_stands_in_one_table_only():
    names = [*text.TEXTS, *tasks.TASKS, *EXAMPLES]
    assert len(set(names)) == len(names)


def test_a_line_in_its_table_names_a_text_or_a_task(monkeypatch):
    monkeypatch.setitem(text.TEXTS, "mine", lambda cache: f"my text in {cache}")
    monkeypatch.setitem(tasks.TASKS, "sums", lambda seed: tasks.Task([], [], [seed]))
    assert (catalogue.kind(["mine"], None), catalogue.kind(["sums"], None)) == ("text", "task")
    assert text.load(["mine"], "here") == "my text in here"
    assert tasks.load("sums", 5).test == [5]


def test_the_name_of_a_text_loads_no_other_kind_of_data():
    code = "import sys; from minigpt.datasets.catalogue import is_name, kind; "
    code += "assert is_name('manual'); print(kind(['manual'], None), "
    code += "*(m.rpartition('.')[2] for m in sys.modules if m.startswith('minigpt.datasets.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"text", "catalogue", "stream", "encodings"}


@pytest.mark.parametrize(
    "names, target, words",
    [
        (["digits", "sounds"], None, "one name of examples, got digits sounds; .*one at a time"),
        (["manual", "digits"], None, "one at a time"),
        (["manual"], "class", "--target class: expected a .csv file.*got manual"),
        (["credit"], "class", "--target class: expected a .csv file.*got credit"),
        (["a.csv"], None, "a.csv: expected --target COLUMN, got none; .*age, job, class"),
    ],
)
def test_words_that_do_not_fit_give_one_line(tmp_path, monkeypatch, names, target, words):
    monkeypatch.chdir(tmp_path)
    csv_of(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=words):
        catalogue.kind(names, target)


def test_five_columns_at_most_are_offered_as_targets(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,c,d,e,f\n1,2,3,4,5,6")
    with pytest.raises(ValueError, match="say of a, b, c, d, e$"):
        catalogue.kind([str(tmp_path / "a.csv")], None)


@pytest.mark.parametrize("name, words", [("digit", "digits"), ("tumors", "tumours")])
def test_a_misspelt_name_offers_the_nearest(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    for find in (lambda: catalogue.kind([name], None), lambda: load(name, None, 0, DATA)):
        with pytest.raises(FileNotFoundError, match=f"did you mean {words}"):
            find()


def test_a_missing_table_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv: .*check the path or use digits"):
        catalogue.kind([str(tmp_path / "none.csv")], "class")


# sounds


def test_pitches_that_are_tested_are_not_heard_in_training():
    train, validation, test = (set(semitones) for _, semitones in splits.SOUNDS)
    assert not (train & validation or train & test or validation & test)
    assert train | validation | test == set(range(36))


@pytest.mark.parametrize("part", range(3))
def test_a_sine_sounds_at_a_pitch_of_its_part(part):
    overtones = signals.timbres()["sine"]
    heard = splits.SOUNDS[part][1]
    x = signals.tones(np.random.default_rng(0), 60, heard, *overtones)
    peak = np.abs(np.fft.rfft(x * np.hanning(4000), 32_000)).argmax(1) / 4  # Hz
    semitones = 12 * np.log2(peak / 110)
    assert np.abs(semitones - np.round(semitones)).max() < 0.2
    assert set(np.round(semitones).astype(int).tolist()) <= set(heard)


@pytest.mark.parametrize("name", ["sawtooth", "square", "triangle"])
def test_a_timbre_is_the_fourier_series_of_its_wave(name):
    ratios, amplitudes, _ = signals.timbres()[name]
    t = np.linspace(0.01, 0.99, 50)
    wanted = {
        "sawtooth": np.pi * (0.5 - t),
        "square": np.where(t < 0.5, 1.0, -1.0) * np.pi / 4,
        "triangle": np.pi**2 / 8 * np.interp(t, [0, 0.25, 0.75, 1], [0, 1, -1, 0]),
    }[name]
    series = np.sin(2 * np.pi * np.outer(t, ratios)) @ amplitudes
    assert np.abs(series - wanted).mean() < 0.1  # 36 terms of infinitely many


def octaves(x):
    """x (N, T) -> (N, 6): the loudest partial of each octave over 50 Hz, in logarithms, centred."""
    spectrum = np.abs(np.fft.rfft(x * np.hanning(4000).astype(np.float32)))
    edges = [25, 50, 100, 200, 400, 800, 2000]  # bins of 2 Hz
    pairs = zip(edges[:-1], edges[1:], strict=True)
    loudest = np.stack([spectrum[:, a:b].max(1) for a, b in pairs], 1)
    z = np.log(np.maximum(loudest, 0.01 * loudest.max(1, keepdims=True)))
    return z - z.mean(1, keepdims=True)


def test_sounds_are_the_same_for_a_seed_and_told_apart_by_their_spectra():
    kind, classes, parts, rate = signals.sounds(0)
    assert (kind, rate, len(classes)) == ("sound", 8000, 5)
    assert [np.bincount(y).tolist() for _, y in parts] == [[300] * 5, [50] * 5, [100] * 5]
    (x, y), _, (x_test, y_test) = parts
    overtones = signals.timbres()["bell"]
    first = signals.tones(np.random.default_rng(0), *splits.SOUNDS[0], *overtones)
    np.testing.assert_array_equal(x[:300], first)
    a, b = octaves(x), octaves(x_test)
    nearest = ((b[:, None] - a) ** 2).sum(2).argmin(1)
    assert 0.6 < (y[nearest] == y_test).mean() < 1  # by chance 0.2


# MNIST's files


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_mnist(folder, changes=(), n=20):
    """MNIST's four files with random images; changes {name: bytes, or None for no file}."""
    rng = np.random.default_rng(0)
    arrays = [(n, 6, 5), (n,), (7, 6, 5), (7,)]
    arrays = [rng.integers(256 if len(shape) == 3 else 10, size=shape) for shape in arrays]
    contents = dict(zip(signals.MNIST, map(idx, arrays), strict=True)) | dict(changes)
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize("packed", [False, True])
def test_mnists_files_give_their_images_the_last_tenth_for_validation(tmp_path, packed):
    x, y, x_test, y_test = write_mnist(tmp_path)
    if packed:
        for name in signals.MNIST:
            path = tmp_path / name
            path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    assert catalogue.kind([str(tmp_path)], None) == "image"
    examples = load(str(tmp_path), None, 0, DATA)
    mean, scale = x[:18].mean(), x[:18].std()
    expected = (x[:18], y[:18]), (x[18:], y[18:]), (x_test, y_test)
    for (got, labels), (images, digits) in zip(parts_of(examples), expected, strict=True):
        np.testing.assert_allclose(got[..., 0], (images - mean) / scale, atol=1e-5)  # float32
        assert labels.tolist() == digits.tolist() and labels.dtype == np.int32


IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = signals.MNIST


@pytest.mark.parametrize(
    "changes, words",
    [
        ({LABELS: None, TEST_IMAGES: None}, f"four files, got no {LABELS}, {TEST_IMAGES}"),
        ({IMAGES: b""}, "an idx file .00 00 08 03., got no byte"),
        ({IMAGES: b"\x00\x00\x08\x01" + b"x" * 20}, "an idx file .*got 00 00 08 01"),
        ({IMAGES: idx(np.zeros((20, 6, 5)))[:-1]}, "616 bytes for .*got 615"),
        ({IMAGES: b"\0\0\x08\x03" + b"\xff" * 12}, "less than 1073741824 bytes"),  # 2^96 of them
        ({IMAGES: b"\0\0\x08\x03" + b"\0" * 12}, "16 bytes for .*got 16 bytes"),
        ({LABELS: idx(np.full(20, 10))}, "labels from 0 to 9, got 10"),
        ({LABELS: idx(np.zeros(19))}, "20 labels, got 19"),
        ({TEST_LABELS: idx(np.zeros(8))}, "7 labels, got 8"),
        ({TEST_IMAGES: idx(np.zeros((7, 6, 6)))}, "images of 6 x 5, got 6 x 6"),
        ({IMAGES: None, f"{IMAGES}.gz": b"no gzip"}, "a readable file, got Not a gzip"),
        (
            {IMAGES: None, f"{IMAGES}.gz": gzip.compress(idx(np.zeros((20, 6, 5))))[:-12]},
            "a readable file, got Compressed file ended",
        ),
    ],
)
def test_bad_idx_files_give_one_line(tmp_path, changes, words):
    write_mnist(tmp_path, changes)
    with pytest.raises(ValueError, match=words) as raised:
        load(str(tmp_path), None, 0, DATA)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


# folders of classes


def write_wav(path, x, rate=8000, width=2):
    """x (T,) or (T, channels) of whole numbers"""
    x = np.asarray(x)
    with wave.open(str(path), "wb") as f:
        f.setparams((1 if x.ndim == 1 else x.shape[1], width, rate, 0, "NONE", ""))
        f.writeframes(x.astype("<i2" if width == 2 else np.uint8).tobytes())


def class_folders(folder, shape, classes=("cat", "dog"), n=5):
    """Subfolders of n arrays each; the values of the second class are 10 larger."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir()
        for i in range(n):
            np.save(folder / name / f"{i}.npy", rng.random(shape) + 10 * k)
    return folder


@pytest.mark.parametrize(
    "shape, kind, example",
    [((4, 3), "image", (4, 3, 1)), ((4, 3, 3), "image", (4, 3, 3)), ((9,), "sound", (9,))],
)
def test_a_folder_of_classes_gives_images_or_sounds(tmp_path, shape, kind, example):
    class_folders(tmp_path, shape)
    assert catalogue.kind([str(tmp_path)], None) == kind
    examples = load(str(tmp_path), None, 0, DATA)
    assert (examples.kind, examples.classes, examples.positive) == (kind, ["cat", "dog"], 1)
    assert [len(y) for _, y in parts_of(examples)] == [6, 2, 2]
    for x, y in parts_of(examples):
        assert x.shape[1:] == example and x.dtype == np.float32
        assert ((x.mean(tuple(range(1, x.ndim))) > 0) == y).all()


def test_a_wav_is_read_as_its_samples_stereo_averaged(tmp_path):
    samples = np.array([[-32768, 0], [100, 300], [32767, 32767]])
    write_wav(tmp_path / "a.wav", samples, 11_025)
    x, rate = formats.read_array(tmp_path / "a.wav")
    assert rate == 11_025
    np.testing.assert_allclose(x, samples.mean(1) / 32768, atol=1e-7)
    write_wav(tmp_path / "b.wav", [0, 128, 192], width=1)
    assert formats.read_array(tmp_path / "b.wav")[0].tolist() == [-1, 0, 0.5]


def test_sounds_of_a_folder_get_their_median_length(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for i in range(5):
            write_wav(tmp_path / name / f"{i}.wav", np.full(8 + i, 1000 * (1 + k)))
    kind, _, parts, rate = signals.class_folder(tmp_path, 0)
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert (kind, rate, x.shape) == ("sound", 8000, (10, 10))
    lengths = np.minimum([8, 9, 10, 11, 12], 10)  # of a and of b; shorter ones end in silence
    assert sorted((x > 0).sum(1).tolist()) == sorted([*lengths.tolist()] * 2)
    assert (x.max(1) * 32.768).round().tolist() == (y + 1).tolist()


@pytest.mark.parametrize(
    "name, write, words",
    [
        ("cat/9.npy", lambda p: np.save(p, np.zeros((4, 4))), "shape .4, 3. as in .*got .4, 4."),
        ("cat/9.npy", lambda p: np.save(p, np.full((4, 3), np.nan)), "finite numbers, got NaN"),
        ("cat/9.npy", lambda p: np.save(p, np.float64(1)), "an array of finite numbers"),
        ("cat/9.npy", lambda p: np.save(p, np.array([["a"]])), "numbers in .npy.*convert"),
        ("cat/9.npy", lambda p: np.save(p, np.array([{}])), "numbers in .npy"),
        ("cat/9.npy", lambda p: p.write_bytes(b"no array"), "numbers in .npy"),
        ("cat/9.npy", lambda p: p.write_bytes(b""), "numbers in .npy"),
        (
            "cat/9.wav",
            lambda p: p.write_bytes(b"RIFF no sound"),
            "a .wav file .*convert",
        ),
        ("cat/9.wav", lambda p: write_wav(p, [1, 2]), "shape .4, 3."),
        ("rat/0.npy", lambda p: np.save(p, np.zeros((4, 3))), "5 examples or more of a class, got"),
    ],
)
def test_a_bad_file_in_a_folder_gives_one_line(tmp_path, name, write, words):
    class_folders(tmp_path, (4, 3))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write(path)
    with pytest.raises(ValueError, match=words) as raised:
        load(str(tmp_path), None, 0, DATA)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    assert name in str(raised.value) or "rat" in str(raised.value)


def test_an_array_that_claims_more_than_its_file_holds_takes_no_memory(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 3)))
    forged = path.read_bytes().replace(b"(4, 3), }        ", b"(400000000, 3), }")
    assert forged != path.read_bytes()
    path.write_bytes(forged)
    with pytest.raises(ValueError, match="numbers in .npy"):
        formats.read_array(path)


def test_a_folder_without_classes_gives_one_line(tmp_path):
    with pytest.raises(ValueError, match="a subfolder for each class, of .npy, .* got nothing"):
        catalogue.kind([str(tmp_path)], None)
    class_folders(tmp_path, (4, 3), ["cat"])
    with pytest.raises(ValueError, match="two classes or more, got only cat"):
        load(str(tmp_path), None, 0, DATA)


def test_sounds_of_two_rates_are_refused(tmp_path):
    for name, rate in (("a", 8000), ("b", 16_000)):
        (tmp_path / name).mkdir()
        for i in range(5):
            write_wav(tmp_path / name / f"{i}.wav", [1, 2, 3], rate)
    with pytest.raises(ValueError, match="b/0.wav: expected 8000 samples per second, got 16000"):
        load(str(tmp_path), None, 0, DATA)


# new images and sounds


def restored(examples):
    return encoder_from(json.loads(json.dumps(examples.encoder.config(), sort_keys=True)))


def test_new_images_are_scaled_as_those_of_training(tmp_path):
    rows = np.loadtxt(gzip.open(DATA / "digits.csv.gz"), delimiter=",")[1437:1441, :64]
    examples, images = load("digits", None, 0, DATA), rows.reshape(4, 8, 8)
    for raw, n in ((images, 4), (images[..., None], 4), (images[0], 1), (images[0, ..., None], 1)):
        np.save(tmp_path / "new.npy", raw)
        x = restored(examples).encode(tmp_path / "new.npy")
        np.testing.assert_array_equal(x, examples.test[0][:n])


def test_new_sounds_are_cut_or_continued_by_silence(tmp_path):
    class_folders(tmp_path, (9,))
    encoder = restored(load(str(tmp_path), None, 0, DATA))
    for n in (5, 9, 12):
        np.save(tmp_path / "new.npy", np.ones((2, n)))
        expected = (np.pad(np.ones(n), (0, 9))[:9] - encoder.mean) / encoder.scale
        np.testing.assert_allclose(encoder.encode(tmp_path / "new.npy"), [expected] * 2, rtol=1e-5)


def test_new_images_of_another_size_and_sounds_of_another_rate_are_refused(tmp_path):
    images = signals.ArrayEncoder("image", (8, 8, 1), 0.0, 1.0, None)
    np.save(tmp_path / "new.npy", np.zeros((10, 10)))
    with pytest.raises(ValueError, match="new.npy: expected images of 8 x 8, got 10 x 10"):
        images.encode(tmp_path / "new.npy")
    write_wav(tmp_path / "new.wav", [1, 2, 3], 16_000)
    sounds = signals.ArrayEncoder("sound", (3,), 0.0, 1.0, 8000)
    with pytest.raises(ValueError, match="new.wav: expected 8000 samples per second, got 16000"):
        sounds.encode(tmp_path / "new.wav")
    with pytest.raises(FileNotFoundError):
        sounds.encode(tmp_path / "absent.wav")
