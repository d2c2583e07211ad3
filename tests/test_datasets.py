"""Text data: tokens, windows and what counting predicts."""

import bz2
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from math import log

import numpy as np
import pytest

from minigpt.datasets import text, tokenizer_from
from minigpt.datasets.text import Windows, baselines, windows_in_order, witten_bell
from minigpt.datasets.tokenizers import CharTokenizer

POEM = "床前明月光，疑是地上霜。\nBefore my bed the moon is bright 🌕\n"


def draw(n, vocab_size, seed=0):
    """n ids, the small ones frequent: repeats as in a text"""
    uniform = np.random.default_rng(seed).random(n)
    return (vocab_size * uniform**2).astype(np.int32)


# tokenizers


def test_an_id_is_the_place_of_its_character_in_sorted_order():
    ids = CharTokenizer.train(POEM).encode(POEM)
    characters = sorted(set(POEM))
    assert ids.dtype == np.int32
    assert ids.tolist() == [characters.index(c) for c in POEM]


def test_decode_inverts_encode():
    tokenizer = CharTokenizer.train(POEM)
    assert tokenizer.vocab_size == len(set(POEM))
    assert tokenizer.decode(tokenizer.encode(POEM)) == POEM
    assert tokenizer.decode([]) == "" == tokenizer.decode(tokenizer.encode(""))


def test_unknown_characters_are_named_once_in_order_of_appearance():
    tokenizer = CharTokenizer.train("abc")
    assert tokenizer.unknown("zebra yz") == "zer y"
    with pytest.raises(ValueError, match="'zer y'"):
        tokenizer.encode("zebra yz")


def test_bytes_that_are_not_text_are_unknown_characters():
    stray = os.fsdecode(b"a\xff")  # as they arrive from a command line
    tokenizer = CharTokenizer.train("abc")
    assert tokenizer.unknown(stray) == "\udcff"
    with pytest.raises(ValueError, match="udcff") as error:
        tokenizer.encode(stray)
    assert str(error.value).isascii()
    assert CharTokenizer.train(stray).decode([1, 0]) == "\udcffa"


def test_a_tokenizer_survives_json():
    tokenizer = CharTokenizer.train(POEM)
    again = tokenizer_from(json.loads(json.dumps(tokenizer.config())))
    assert again.encode(POEM).tolist() == tokenizer.encode(POEM).tolist()


def test_an_unknown_kind_of_tokenizer_is_refused():
    with pytest.raises(ValueError, match="'runes'"):
        tokenizer_from({"kind": "runes"})


# corpora


@pytest.fixture
def small_python(tmp_path, monkeypatch):
    """A Python of two topics and five source files."""
    library, repeated = tmp_path / "library", "A paragraph that stands in two documents. " * 2
    one, two, three, four = (f"Text {n} is longer than eighty characters, " * 2 for n in range(4))
    sources = {
        "one.py": f'"""{one}\n\n{repeated}"""\ndef f():\n    """Too short to keep."""',
        "package/two.py": f'class C:\n    def f():\n        """{two}\n\n{repeated}"""',
        "copy.py": f'"""{one}\n\n{repeated}"""',
        "test/test_one.py": '"""' + "Tests are not read. " * 9 + '"""',
        "template.py": "def $name$(): pass",
    }
    for name, source in sources.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(source)
    monkeypatch.setattr(os, "__file__", str(library / "os.py"))
    monkeypatch.setattr("pydoc_data.topics.topics", {"b": three, "a": four})
    return sorted(part.strip() for part in (one, two, three, four, repeated))


def test_manual_holds_every_paragraph_once(small_python, tmp_path):
    paragraphs = text.manual(tmp_path / "cache").split("\n\n")
    assert sorted(part.strip() for part in paragraphs) == small_python


def test_manual_is_read_once_per_python_version(small_python, tmp_path, monkeypatch):
    first = text.manual(tmp_path / "cache")
    kept, _ = sorted((tmp_path / "cache").iterdir())
    assert platform.python_version() in kept.name
    monkeypatch.setattr(text, "read_manual", lambda: "read again")
    assert text.manual(tmp_path / "cache") == first
    kept.unlink()
    assert text.manual(tmp_path / "cache") == "read again"


def test_manual_needs_no_cache(small_python, tmp_path):
    (tmp_path / "file").touch()  # no folder can be made below a file
    assert text.manual(tmp_path / "file" / "cache") == text.manual(tmp_path / "cache")


@pytest.mark.slow
def test_manual_is_the_same_in_every_process():
    code = "from minigpt.datasets.text import read_manual as r; import hashlib as h; "
    code += "print(h.sha256(r().encode()).hexdigest())"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    manual = text.read_manual()
    assert other.stdout.decode().strip() == hashlib.sha256(manual.encode()).hexdigest()
    assert 1_300_000 < len(manual) < 2_500_000  # by version and distribution
    paragraphs = manual.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))


def test_files_are_joined_with_plain_line_ends_and_no_byte_order_marks(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "b.txt").write_bytes(POEM.encode())
    joined = text.load([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tmp_path)
    assert joined == "one\ntwo\n" + POEM
    assert text.load([str(tmp_path / "b.txt")], tmp_path) == POEM


def test_manual_is_a_name_among_paths(small_python, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    joined = text.load(["manual", str(tmp_path / "a.txt")], tmp_path / "cache")
    assert joined == text.manual(tmp_path / "cache") + "\nmine"


@pytest.mark.parametrize(
    "name, content, error, words",
    [
        ("absent.txt", None, FileNotFoundError, "absent.txt.*check the path"),
        (".", None, ValueError, "folder"),
        ("empty.txt", b"\n", ValueError, "empty.txt.*empty"),
        ("latin.txt", b"one\ntwo\ncaf\xe9", ValueError, "latin.txt.*0xe9 in line 3.*convert"),
    ],
)
def test_a_bad_file_gives_one_line_that_names_it(tmp_path, name, content, error, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        text.load([str(tmp_path / name)], tmp_path)
    assert "\n" not in str(raised.value)


def test_a_misspelt_name_offers_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="did you mean manual"):
        text.load(["manaul"], tmp_path)


# windows


def test_split_holds_out_the_last_tenth():
    train, validation = text.split(np.arange(1003), 8)
    assert train.tolist() == list(range(902)) and validation.tolist() == list(range(902, 1003))


def test_split_refuses_a_text_whose_validation_part_holds_no_window():
    train, validation = text.split(np.arange(81), 8)
    assert min(len(train), len(validation)) == 9
    with pytest.raises(ValueError, match="more than 80 .*got 80; .*--block-size"):
        text.split(np.arange(80), 8)


def starts_of(windows, n):
    """Where the next n windows of np.arange(N) start."""
    x, y = windows.batch(n)
    assert x.dtype == y.dtype == np.int32 and x.shape == (n, windows.block_size)
    np.testing.assert_array_equal(x, x[:, :1] + np.arange(windows.block_size))
    np.testing.assert_array_equal(y, x + 1)
    return x[:, 0].tolist()


@pytest.mark.parametrize("n", [5, 8, 11, 12, 40, 43])
def test_an_epoch_reads_windows_side_by_side_each_once(n):
    windows = Windows(np.arange(n, dtype=np.int32), 4, seed=0)
    for _ in range(20):
        starts = sorted(starts_of(windows, len(windows)))
        assert starts == list(range(starts[0], starts[0] + 4 * len(windows), 4))
        assert starts[0] < 4 and 1 <= n - (starts[-1] + 4) < 2 * 4  # left: a target, one window


def test_epochs_differ_in_order_and_boundaries():
    windows = Windows(np.arange(403, dtype=np.int32), 4, seed=0)
    epochs = [np.array(starts_of(windows, len(windows))) for _ in range(30)]
    assert {int(starts.min()) for starts in epochs} == {0, 1, 2, 3}
    assert len({tuple(starts // 4) for starts in epochs}) == 30


def test_seeds_differ_in_order():
    ids = np.arange(403, dtype=np.int32)
    assert starts_of(Windows(ids, 4, seed=0), 50) != starts_of(Windows(ids, 4, seed=1), 50)


def test_a_batch_may_span_epochs_which_are_counted():
    ids = np.arange(43, dtype=np.int32)
    one, many = Windows(ids, 4, seed=0), Windows(ids, 4, seed=0)
    assert starts_of(many, 25) == [starts_of(one, 1)[0] for _ in range(25)]
    assert len(many) == 9
    assert (many.epoch, many.index) == (one.epoch, one.index) == (2, 7)


def test_a_resumed_stream_equals_the_undisturbed_one():
    ids = np.arange(43, dtype=np.int32)
    undisturbed = Windows(ids, 4, seed=0)
    for _ in range(8):
        saved = json.dumps(undisturbed.position)
        resumed = Windows(ids, 4, seed=0)
        resumed.position = json.loads(saved)
        assert [starts_of(resumed, 5) for _ in range(4)][0] == starts_of(undisturbed, 5)
        assert resumed.position != undisturbed.position


@pytest.mark.parametrize("n", [2, 5, 8, 9, 10, 12])
def test_windows_in_order_predict_every_token_after_the_first_once(n):
    ids = np.arange(1, n + 1, dtype=np.int32)
    x, y = windows_in_order(ids, 4)
    scored = y != -100
    assert x.dtype == y.dtype == np.int32 and x.shape == y.shape == ((n + 2) // 4, 4)
    assert x[scored].tolist() == ids[:-1].tolist() and y[scored].tolist() == ids[1:].tolist()
    assert scored[:-1].all() and not x[~scored].any()


# baselines


def witten_bell_by_hand(train, validation, vocab_size, order):
    """Nats per token from dictionaries, and how often the longest context was unseen."""
    tokens, nats, unseen = [*train.tolist(), *validation.tolist()], 0.0, 0
    after = defaultdict(Counter)
    for k in range(1, order + 1):
        for i in range(k - 1, len(train)):
            after[tuple(tokens[i - k + 1 : i])][tokens[i]] += 1
    for i in range(len(train), len(tokens)):
        p = 1 / vocab_size
        for k in range(1, order + 1):
            seen = after.get(tuple(tokens[i - k + 1 : i]))
            if seen:
                p = (seen[tokens[i]] + len(seen) * p) / (seen.total() + len(seen))
        nats -= log(p)
        unseen += not seen
    return nats / len(validation), unseen


@pytest.mark.parametrize("seed", range(4))
def test_witten_bell_equals_counting_with_dictionaries(seed):
    train, validation = draw(400, 5, seed), draw(60, 6, seed + 9)  # token 5 is new in validation
    losses = witten_bell(train, validation, 6)
    by_hand = [witten_bell_by_hand(train, validation, 6, order) for order in range(1, 8)]
    np.testing.assert_allclose(losses, [nats for nats, _ in by_hand], rtol=1e-12)
    assert (
        by_hand[6][1] > 10 > by_hand[0][1] == 0
    )  # contexts of six tokens were unseen, of none not


def test_witten_bell_gives_the_example_of_its_docstring():
    train, validation = np.array([0, 1, 0, 2, 0, 1]), np.array([0, 1])  # "abacab" goes on with "ab"
    one, two = witten_bell(train, validation, 3)[:2]
    assert one == pytest.approx(-(log(4 / 9) + log(1 / 3)) / 2)
    assert two == pytest.approx(-(log((1 + 4 / 9) / (1 + 1)) + log(8 / 15)) / 2)  # a | b, b | a


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_witten_bell_reads_texts_shorter_than_its_contexts(n):
    for seed in range(50):
        train, validation = draw(n, 3, seed), draw(3, 3, seed + 99)
        losses = witten_bell(train, validation, 3)
        by_hand = [witten_bell_by_hand(train, validation, 3, k + 1)[0] for k in range(len(losses))]
        assert len(losses) == min(7, n)
        np.testing.assert_allclose(losses, by_hand, rtol=1e-12)


def test_witten_bell_counts_vocabularies_whose_powers_overflow():
    vocab_size = 1 << 30
    train, validation = vocab_size - 1 - draw(400, 5), vocab_size - 1 - draw(60, 5, seed=1)
    by_hand = witten_bell_by_hand(train, validation, vocab_size, 7)[0]
    np.testing.assert_allclose(witten_bell(train, validation, vocab_size)[6], by_hand, rtol=1e-12)


def letters(ids):
    return "".join("abcdef"[i] for i in ids)


def test_baselines_are_nats_per_character_of_the_validation_part(tmp_path):
    train, validation = draw(4000, 6), draw(120_000, 6, seed=1)  # over a block of bzip2 -1
    found = baselines(train, validation, 6, letters(validation), tmp_path)
    bits = 8 * len(bz2.compress(letters(validation).encode(), 9))
    losses = witten_bell(train, validation, 6).tolist()
    assert found == {
        "uniform": pytest.approx(log(6)),
        "unigram": losses[0],
        "bzip2": pytest.approx(bits * log(2) / 120_000),
        "n_grams": losses,
        "best": min(losses),
        "order": losses.index(min(losses)) + 1,
        "read": 4000,
    }


def test_baselines_of_tokens_of_two_characters_are_halved(tmp_path):
    train, validation = draw(400, 6), draw(40, 6, seed=1)
    found = baselines(train, validation, 6, "".join(c + c for c in letters(validation)), tmp_path)
    assert found["uniform"] == pytest.approx(log(6) / 2)
    np.testing.assert_allclose(found["n_grams"], witten_bell(train, validation, 6) / 2)


def test_baselines_of_a_long_text_count_the_end_of_its_training_part_and_say_so(
    tmp_path, monkeypatch
):
    train, validation = draw(400, 6), draw(140, 6, seed=1)
    monkeypatch.setattr(text, "MOST", 100)
    found = baselines(train, validation, 6, letters(validation), tmp_path)
    assert found["read"] == 100
    assert found["n_grams"] == witten_bell(train[300:], validation[:100], 6).tolist()


def test_baselines_are_counted_once_per_text(tmp_path, monkeypatch):
    train, validation = draw(400, 6), draw(40, 6, seed=1)
    found = baselines(train, validation, 6, letters(validation), tmp_path)
    monkeypatch.setattr(text, "witten_bell", lambda *arguments: np.full(7, 9.0))
    assert baselines(train, validation, 6, letters(validation), tmp_path) == found
    assert baselines(train[::-1], validation, 6, letters(validation), tmp_path)["best"] == 9
    assert baselines(train, validation, 7, letters(validation), tmp_path)["best"] == 9


def test_baselines_need_no_cache(tmp_path):
    train, validation = draw(400, 6), draw(40, 6, seed=1)
    (tmp_path / "file").touch()
    found = [
        baselines(train, validation, 6, letters(validation), tmp_path / name)
        for name in ("file/cache", "cache")
    ]
    assert found[0] == found[1]


def test_a_damaged_cache_is_made_again(tmp_path):
    ids = np.arange(300, dtype=np.int32) % 7
    expected = baselines(ids[:200], ids[200:], 7, "abcdefg" * 20, tmp_path)
    file, proof = sorted(tmp_path.iterdir())
    for broken in (file.read_text()[:20], "{}", file.read_text().replace("1", "2"), ""):
        file.write_text(broken)
        assert baselines(ids[:200], ids[200:], 7, "abcdefg" * 20, tmp_path) == expected
    for broken in ("", "0" * 64):
        proof.write_text(broken)
        assert baselines(ids[:200], ids[200:], 7, "abcdefg" * 20, tmp_path) == expected
    whole = "{}"  # of another version: its checksum is right, its keys are not
    file.write_text(whole)
    proof.write_text(hashlib.sha256(whole.encode()).hexdigest())
    assert baselines(ids[:200], ids[200:], 7, "abcdefg" * 20, tmp_path) == expected
