"""Checkpoints from strangers: whatever stands in them, one line says what is wrong, soon.

A forged file has the right checksum. In CI a seeded sample of mutants is tried; MUTANTS=100000 in
the environment tries as many.
"""

import copy
import gzip
import os
import random
import time
import tracemalloc
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sample
import train
from minigpt import __main__ as listing
from minigpt import hub
from minigpt.datasets import formats, signals, tables, tasks, text
from minigpt.datasets.bpe import LETTERS, SpecialTokenizer
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.messages import visible
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.training import checkpoint

MUTANTS = int(os.environ.get("MUTANTS", 300))
TINY = "--n-layer 1 --n-embd 16 --n-head 2 --workers 1 --steps 2 --eval-every 2".split()
RUNS = {
    "text": ["--data", "text.txt", "--block-size", "16"],
    "bpe": [
        "--data",
        "text.txt",
        "--block-size",
        "16",
        "--tokenizer",
        "bpe",
        "--vocab-size",
        "300",
    ],
    "lstm": ["--data", "text.txt", "--block-size", "16", "--model", "lstm"],
    "pairs": ["--data", "pairs.tsv"],
    "begun": ["--data", "text.txt", "--init", "text"],
    "special": ["--data", "pairs.tsv", "--init", "files"],
    "digits": ["--data", "digits", "--model", "conv"],
    "credit": ["--data", "credit"],
}
NASTY = [
    None, True, -1, 0, 1, 3, 10**9, 2**70, 1e300, -0.5, float("nan"), float("inf"), "", "x",
    "\x1b[2J", "a" * 10_000, [], [0], ["a"], [None], {}, {"a": 1}, [[]], "/dev/zero", ["/dev/zero"],
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{kind: (arrays, about)} of a tiny run of each kind"""
    folder, before = tmp_path_factory.mktemp("runs"), os.getcwd()
    os.chdir(folder)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    Path("pairs.tsv").write_text("".join(f"a{i}\tb{i}\n" for i in range(200)))
    try:
        shape = GPTConfig(258, 256, 1, 2, 16)
        tokenizer = SpecialTokenizer([*LETTERS, "th", "<end>"], ["t h"], special={"<end>": 257})
        hub.save(GPT2(shape, np.random.default_rng(0)), tokenizer, "files")
        for kind, words in RUNS.items():
            train.main([*words, *TINY, "--out", kind])
        return {kind: checkpoint.load(f"{kind}/last.safetensors") for kind in RUNS}
    finally:
        os.chdir(before)


def places(tree, path=()):
    """The path of every value in a tree of dictionaries and lists (of long lists, of a few)."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:3])
    for key, value in items if isinstance(tree, (dict, list)) else ():
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


def forge(arrays, about, rng):
    """A copy in which one thing is different."""
    arrays, about = dict(arrays), copy.deepcopy(about)
    if rng.random() < 0.3:
        name = rng.choice(sorted(arrays))
        a = arrays[name]
        how = rng.randrange(7)
        if how == 0:
            del arrays[name]
        elif how == 1:
            arrays[name + "x"] = a
        elif how == 2:
            arrays[name] = a.astype(rng.choice([np.float16, np.int32, np.uint8, np.float64]))
        elif how == 3:
            arrays[name] = a[..., None]
        elif how == 4:
            arrays[name] = np.full_like(a, rng.choice([np.nan, np.inf, 3e38, 0]))
        elif how == 5:
            arrays[name] = a.reshape(-1)[: a.size // 2]
        else:
            arrays[name] = np.zeros(0, a.dtype)
        return arrays, about
    path = rng.choice([p for p in places(about) if p])
    tree = about
    for key in path[:-1]:
        tree = tree[key]
    if rng.random() < 0.2 and isinstance(tree, dict):
        del tree[path[-1]]
    else:
        tree[path[-1]] = copy.deepcopy(rng.choice(NASTY))
    return arrays, about


def use(run):
    """What sample.py does with a checkpoint, to the first words."""
    listing.main([str(run.parent)])
    model, application = sample.load(run, np)
    if not application.writes:
        sample.locate_data(application, None)
    how = SimpleNamespace(tokens=3, temperature=None, top_k=None, top_p=None, stop="", count=1)
    if application.writes:
        application.listen(how, "a")
        with np.errstate(all="ignore"):
            application.reply(model, "a", np.random.default_rng(0))


@pytest.mark.parametrize("kind", RUNS)
def test_a_forged_checkpoint_works_or_is_refused_in_one_line(kind, saved, tmp_path, capsys):
    rng = random.Random(kind)
    for number in range(max(1, MUTANTS // len(RUNS))):
        arrays, about = forge(*saved[kind], rng)
        file = tmp_path / "last.safetensors"
        checkpoint.save(file, arrays, about)
        start = time.monotonic()
        try:
            use(tmp_path)
        except (ValueError, OSError, MemoryError) as error:
            assert len(str(error).splitlines()) <= 1, (number, error)
        assert time.monotonic() - start < 5, number
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err


@pytest.mark.parametrize("kind", ["text", "digits"])
def test_a_checkpoint_with_other_bytes_works_or_is_refused_in_one_line(kind, saved, tmp_path):
    rng, file = random.Random(kind), tmp_path / "last.safetensors"
    checkpoint.save(file, *saved[kind])
    whole = file.read_bytes()
    for number in range(MUTANTS):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4])):
            place = rng.choice([rng.randrange(8), rng.randrange(2000), rng.randrange(len(data))])
            data[place % len(data)] = rng.randrange(256)
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data))]
        file.write_bytes(data)
        try:
            use(tmp_path)
        except (ValueError, OSError) as error:
            assert len(str(error).splitlines()) <= 1, (number, error)


@pytest.mark.parametrize("kind", ["text", "begun", "digits"])
def test_a_forged_run_is_resumed_or_refused_in_one_line(kind, saved, tmp_path, monkeypatch, capsys):
    rng = random.Random(kind)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    Path("run").mkdir()
    for number in range(MUTANTS // 15):
        arrays, about = forge(*saved[kind], rng)
        checkpoint.save("run/last.safetensors", arrays, about)
        try:
            train.main("--resume --out run --steps 3".split())
        except SystemExit:
            assert capsys.readouterr().err.count("\n") == 1, number
        for file in ("best.safetensors", "log.csv", "samples.txt", "curve.svg"):
            Path("run", file).unlink(missing_ok=True)


def originals(folder):
    """{file: how it is read}: small files of every kind of data that a user may have"""
    numbers = np.random.default_rng(0)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(range(9)))
    (folder / "images-idx3").write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 2] * 3]) + bytes(range(8)))
    np.save(folder / "x.npy", numbers.standard_normal((4, 4)))
    with wave.open(str(folder / "x.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 50, "NONE", ""))
        file.writeframes(bytes(range(100)))
    rows = "".join(f"{i},{'ab'[i % 2]},{i / 7:.3f},{'yn'[i % 3 == 0]}\n" for i in range(40))
    (folder / "x.csv").write_text("id,word,number,class\n" + rows)
    (folder / "x.tsv").write_text("".join(f"q{i}\ta{i}\n" for i in range(40)))
    (folder / "x.txt").write_text("the quick brown fox, é ü 汉字\n" * 20, encoding="utf-8")
    return {
        "train-labels-idx1-ubyte.gz": lambda path: formats.read_idx(path, 1),
        "images-idx3": lambda path: formats.read_idx(path, 3),
        "x.npy": lambda path: fit(*formats.read_array(path)),
        "x.wav": lambda path: fit(*formats.read_array(path)),
        "x.csv": lambda path: fit_table(tables.read_csv(path)),
        "x.tsv": lambda path: encode_pairs(tasks.pairs(path, 0)),
        "x.txt": text.read_file,
    }


def fit(x, rate):
    encoder = signals.ArrayEncoder.fit(signals.kind_of(x), x[None], rate)
    assert np.isfinite(encoder.scaled(x)).all()


def fit_table(table):
    encoder = tables.TableEncoder.fit(table.columns, range(len(table.lines)), table.lines)
    assert np.isfinite(encoder.encode_columns(*table)).all()


def encode_pairs(task):
    tokenizer = CharTokenizer.train("".join(tasks.text_of(part) for part in task))
    tasks.encode(task.train, tokenizer)


@pytest.mark.parametrize("name", [
    "train-labels-idx1-ubyte.gz", "images-idx3", "x.npy", "x.wav", "x.csv", "x.tsv", "x.txt",
])  # fmt: skip
def test_a_file_with_other_bytes_is_read_or_refused_in_one_line(name, tmp_path):
    read, rng = originals(tmp_path)[name], random.Random(name)
    whole = (tmp_path / name).read_bytes()
    for number in range(MUTANTS * 3):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            data = data or bytearray(b"x")
            place = (
                rng.randrange(len(data))
                if rng.random() < 0.5
                else rng.randrange(min(128, len(data)))
            )
            how = rng.randrange(4)
            if how == 0:
                data[place] = rng.randrange(256)
            elif how == 1:
                data[place:place] = rng.choice(
                    [b"1e999", b'"', b"\x00", b"\xff", b"nan", b"9" * 50, b"(" * 30]
                )
            elif how == 2:
                del data[place : place + rng.randrange(1, 9)]
            else:
                data = data[: max(1, place)]
        (tmp_path / name).write_bytes(data)
        start = time.monotonic()
        try:
            read(tmp_path / name)
        except (ValueError, OSError) as error:
            assert len(str(error).splitlines()) <= 1, (number, error)
            where = (
                str(tmp_path),
                "column ",
                "image",
                "sound",
                "--data",
            )  # or a part of it
            assert any(word in str(error) for word in where), (number, error)
        assert time.monotonic() - start < 5, number


def test_bombs_are_refused_soon_and_take_little_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with gzip.open("labels.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(200_000_000))
    Path("cells.csv").write_text("word,class\n" + "a" * 100_000 + ",x\n" + "b,y\n" * 100_000)
    Path("lines.tsv").write_text(
        "q" * 100_000 + "\ta\n" + "".join(f"q{i}\ta\n" for i in range(20_000))
    )
    tracemalloc.start()
    with pytest.raises(ValueError, match="expected 17 bytes .*, got more than 17 bytes"):
        formats.read_idx(Path("labels.gz"), 1)
    fit_table(tables.read_csv("cells.csv"))
    task = tasks.pairs("lines.tsv", 0)
    with pytest.raises(ValueError, match="lines of .* tokens"):
        for part in task:
            tasks.encode(part, CharTokenizer.train("\t\n q0123456789a"))
    assert tracemalloc.get_traced_memory()[1] < 4e8
    tracemalloc.stop()


@pytest.mark.parametrize("cells", ["1e200", "1e39", "-1e300"])
def test_a_number_that_would_drown_all_others_is_refused(cells, tmp_path):
    (tmp_path / "x.csv").write_text(f"a,class\n{cells},x\n1,y\n2,x\n")
    with pytest.raises(ValueError, match="column a: expected numbers below 1e30"):
        fit_table(tables.read_csv(tmp_path / "x.csv"))
    np.save(tmp_path / "x.npy", np.array([[0.0, 1.0], [2.0, 1e30]]))
    with pytest.raises(ValueError, match="numbers of a usual size"):
        fit(*formats.read_array(tmp_path / "x.npy"))


def test_a_sound_that_was_cut_short_is_told(tmp_path):
    originals(tmp_path)
    file = tmp_path / "x.wav"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="expected 100 bytes of sound, got 90"):
        formats.read_array(file)


@pytest.mark.parametrize("options", [
    {"n_layer": 10**9}, {"n_embd": 10**9}, {"block_size": 2 * 10**9}, {"n_layer": True},
    {"data": ["/dev/zero\x1b"]}, {"model": "\x1b[2J"}, {"seed": -1}, {"device": "moon"},
])  # fmt: skip
def test_options_that_no_command_gives_are_named(options, saved, tmp_path):
    arrays, about = saved["text"]
    about = about | {"config": about["config"] | options}
    checkpoint.save(tmp_path / "last.safetensors", arrays, about)
    with pytest.raises(ValueError, match=next(iter(options))):
        sample.load(tmp_path, np)


def test_weights_that_are_no_numbers_are_refused(saved, tmp_path):
    arrays, about = saved["text"]
    for bad in (np.nan, np.inf):
        forged = arrays | {"norm.weight": np.full_like(arrays["norm.weight"], bad)}
        checkpoint.save(tmp_path / "last.safetensors", forged, about)
        with pytest.raises(checkpoint.CheckpointError, match=r"norm\.weight: expected finite"):
            sample.load(tmp_path, np)


def test_what_is_no_regular_file_is_not_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        train.main(["--data", "/dev/zero", *TINY])
    assert "/dev/zero: expected a text file" in capsys.readouterr().err


def test_control_characters_are_not_sent_to_a_terminal():
    assert visible("a\x1b[2Jb\x07\x9b\n\tc 。　é") == "a\ufffd[2Jb\ufffd\ufffd\n\tc 。　é"
