"""Byte-level BPE: training, exact ids, text that comes back, files, errors."""

import itertools
import json
import random
import string
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minigpt.datasets import tokenizer_from
from minigpt.datasets.bpe import LETTERS, BPETokenizer, Pairs, words
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.generate import stream

README = (Path(__file__).resolve().parents[1] / "minigpt/README.md").read_text(encoding="utf-8")
WORLD = """It's said they'd've won; WE'RE sure I'll go, don't we?  x = [1, 22, 333]\t# 4096\r\n
床前明月光，疑是地上霜。 举头望明月，低头思故乡。 いろはにほへと ちりぬるを 한국어 문장입니다.
สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง Привет, мир! Γειά σου Κόσμε, שלום עולם مرحبا بالعالم नमस्ते दुनिया
👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 naïve cafe\u0301 e\u0301\u0302 Ⅷ ² ½ ٣٤٥ १२३ \u3000\xa0\u2003|\x1c\x85\u200b\ufeff
𝒜𝟘 𐐷 𒐀 \U000e0001
"""
MIXED = (README[:20_000] + WORLD * 20, 700)  # a text and a vocabulary that splits its characters


@pytest.fixture(scope="module")
def mixed():
    return BPETokenizer.train(*MIXED)


def spelled(tokenizer, ids):
    return [tokenizer.decode_bytes([i]) for i in ids]


# training


def test_merges_join_the_most_frequent_pair_first():
    """low 5 times, lower 2, newest 6, widest 3: Sennrich et al.'s example, without word ends"""
    text = " ".join(["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3)
    tokenizer = BPETokenizer.train(text, 256 + 6)
    # es and st 9 times, e < s; est 9; lo and ow 7, l < o; low 7; then several 6 times: " " is the
    # smallest left id, of "n" and "low", and the byte n is smaller than a merge.
    assert tokenizer.merges == ["e s", "es t", "l o", "lo w", "Ġ n", "Ġ low"]


def counted_anew(text, vocab_size):
    """The same merges slowly: all pairs of all words are counted again after each."""
    spelled = {w: [bytes([b]) for b in w.encode()] for w in words(text)}
    times, vocab = Counter(words(text)), [bytes([b]) for b in range(256)]
    while len(vocab) < vocab_size:
        counts = Counter()
        for w, tokens in spelled.items():
            for pair in itertools.pairwise(tokens):
                counts[pair] += times[w]
        if not counts:
            break
        a, b = min(counts, key=lambda p: (-counts[p], vocab.index(p[0]), vocab.index(p[1])))
        if counts[a, b] < 2:
            break
        vocab.append(a + b)
        for tokens in spelled.values():
            i = 0
            while i < len(tokens) - 1:
                if (tokens[i], tokens[i + 1]) == (a, b):
                    tokens[i : i + 2] = [a + b]
                i += 1
    return vocab


def drawn(letters, n, seed):
    """A text of n random characters. Of few letters it is full of ties, and of runs such as aaa."""
    return "".join(random.Random(seed).choices(letters, k=n))


RANDOM = [
    drawn(letters, n, seed)
    for letters, n in (("ab", 150), ("ab ", 300), ("abcd \n", 400), ("的一是不了，人我在有。", 200))
    for seed in range(3)
]


@pytest.mark.parametrize("text", [README[:6000], WORLD * 2, "aaaa aaaaa aaabaaab" * 3, *RANDOM])
def test_counting_only_what_changes_gives_the_merges_of_counting_all(text):
    tokenizer = BPETokenizer.train(text, 500)
    assert spelled(tokenizer, range(tokenizer.vocab_size)) == counted_anew(text, 500)


def test_after_each_merge_the_counts_are_those_of_all_words():
    for text in (*RANDOM, WORLD):
        counted = Counter(words(text))
        pairs, pick = Pairs(counted), random.Random(0)
        for new in range(256, 300):
            pair = pick.choice([pair for pair, n in pairs.counts.items() if n > 0] or [None])
            if pair is None:  # every word is one token
                break
            pairs.join(pair, chr(new))
            counts, where = Counter(), {}
            for i, (word, times) in enumerate(zip(pairs.spelled, counted.values(), strict=True)):
                for k in range(len(word) - 1):
                    counts[word[k : k + 2]] += times
                    where.setdefault(word[k : k + 2], set()).add(i)
            assert +pairs.counts == counts and min(pairs.counts.values(), default=0) >= 0
            assert all(places <= pairs.where[pair] for pair, places in where.items())


@pytest.mark.parametrize("text", [README[:20_000], WORLD * 2, *RANDOM])
def test_the_merges_are_those_that_hugging_faces_trainer_finds(text):
    """There, too, a pair of smaller ids goes first. It is given each word by itself, and a Chinese
    character for a byte, so that its ids, too, begin with the bytes in their order."""
    hf = pytest.importorskip("tokenizers")
    theirs = hf.Tokenizer(hf.models.BPE())
    apart = ["".join(chr(0x4E00 + byte) for byte in word.encode()) for word in words(text)]
    size = len(set("".join(apart))) + 200  # it begins with those bytes alone that occur
    trainer = hf.trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False)
    theirs.train_from_iterator(apart, trainer)
    merges = []
    for pair in json.loads(theirs.to_str())["model"]["merges"]:
        merges.append(" ".join("".join(LETTERS[ord(c) - 0x4E00] for c in token) for token in pair))
    assert BPETokenizer.train(text, 456).merges == merges


def test_a_word_of_any_length_is_counted_again_beside_merges_alone(monkeypatch):
    """A merge makes two tokens one, so there are fewer merges than letters; each has two sides."""
    recounted, recount = [], Pairs.recount
    monkeypatch.setattr(Pairs, "recount", lambda *how: recounted.append(1) or recount(*how))
    word = drawn("abcdefgh", 20_000, 0)
    tokenizer = BPETokenizer.train(word, 2000)
    merged = len(word) - len(tokenizer.encode(word))
    assert 10_000 < merged < len(recounted) <= 2 * merged


def test_training_stops_when_no_pair_occurs_twice():
    assert BPETokenizer.train("abcd efgh", 1000).vocab_size == 256
    assert BPETokenizer.train("", 1000).vocab_size == 256
    assert BPETokenizer.train("abab", 1000).merges == ["a b"]


def test_a_trained_token_is_the_encoding_of_its_own_bytes():
    tokenizer = BPETokenizer.train(README[:30_000], 1500)
    for i in range(128, tokenizer.vocab_size):
        token = tokenizer.decode_bytes([i])
        if token.isascii() and words(token.decode()) == [token.decode()]:
            assert tokenizer.encode(token.decode()).tolist() == [i]


# ids and text


def test_words_are_contractions_letters_digits_others_and_white_space():
    text = "I've  two dogs!\n\n x2\x1c\u3000'S"
    expected = [
        "I",
        "'ve",
        " ",
        " two",
        " dogs",
        "!",
        "\n\n",
        " x",
        "2",
        "\x1c",
        "\u3000",
        "'",
        "S",
    ]
    assert words(text) == expected
    assert words(text + "𝒜") == [*expected[:-1], "S𝒜"]  # the pattern for all code points


def test_the_earliest_merge_goes_first():
    tokenizer = BPETokenizer([*LETTERS, "ab", "bc", "abc"], ["b c", "a b", "a bc"])
    assert spelled(tokenizer, tokenizer.encode("abc ab")) == [b"abc", b" ", b"ab"]
    tokenizer = BPETokenizer([*LETTERS, "ab", "bc", "abc"], ["a b", "b c", "a bc"])
    assert spelled(tokenizer, tokenizer.encode("abc")) == [b"ab", b"c"]


def test_a_word_of_a_hundred_thousand_letters_is_read_within_seconds(mixed):
    letters = "".join(random.Random(0).choices("etaoin", k=100_000))
    assert mixed.decode(mixed.encode(letters)) == letters  # by rescanning: minutes


def test_ids_are_int32_and_empty_text_has_none(mixed):
    assert mixed.encode("words").dtype == mixed.encode("").dtype == np.int32
    assert mixed.encode("").tolist() == [] and mixed.decode([]) == ""


def test_any_text_comes_back(mixed):
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.settings(derandomize=True, database=None, deadline=None, max_examples=500)
    @hypothesis.given(hypothesis.strategies.text())
    def check(text):
        assert "".join(words(text)) == text
        assert mixed.unknown(text) == ""
        assert mixed.decode(mixed.encode(text)) == text

    check()


def test_any_ids_give_the_bytes_of_their_tokens(mixed):
    ids = np.random.default_rng(0).integers(mixed.vocab_size, size=5000)
    assert mixed.decode_bytes(ids) == b"".join(spelled(mixed, ids))
    assert mixed.decode(ids) == mixed.decode_bytes(ids).decode(errors="replace")


def test_lone_surrogates_are_encoded_and_decode_to_replacement_characters(mixed):
    ids = mixed.encode("a\udcffb")
    assert mixed.decode_bytes(ids) == b"a\xed\xb3\xbfb"
    assert mixed.decode(ids) == "a\ufffd\ufffd\ufffdb"


# Hugging Face's tokenizers


def reference(folder):
    """Hugging Face's tokenizer of the two files in a folder."""
    hf = pytest.importorskip("tokenizers")
    model = hf.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.fixture(scope="module")
def trained_there(tmp_path_factory):
    """A folder with the files of a vocabulary that Hugging Face's tokenizers trained."""
    hf, folder = pytest.importorskip("tokenizers"), tmp_path_factory.mktemp("files")
    trainer = hf.ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        [MIXED[0]], vocab_size=900, show_progress=False, special_tokens=["<|endoftext|>"]
    )
    trainer.save_model(str(folder))
    return folder


def texts(st):
    """Strings of assigned characters, and of pieces that patterns get wrong."""
    assigned = st.text(st.characters(exclude_categories=("Cn", "Cs")), max_size=20)
    pieces = "'s 'S 're 'RE 've 'll 'd 'm 't ' '' don't they'd ' s ’s 123 a1 <|endoftext|>".split(
        " "
    )
    spaces = st.text(
        "  \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u180e\u200b\u2003\u2028\u2029\u3000\ufeff"
    )
    digits = st.text(st.characters(categories=("Nd", "Nl", "No")), max_size=4)
    marks = st.text("e\u0301\u0302\u0e31\u0e49ก\u093f\u200d\ufe0f👩👧🏽🏳🌈", max_size=6)
    letters = st.text(st.characters(categories=("Lu", "Lm", "Lo")), max_size=4)
    known = st.sampled_from([*pieces, *WORLD.split(), *WORLD.split(" "), " ", "  "])
    parts = st.one_of(known, known, spaces, digits, marks, letters, assigned)
    return st.lists(parts, max_size=8).map("".join)


def test_the_ids_are_those_of_hugging_faces_tokenizers(trained_there):
    hypothesis = pytest.importorskip("hypothesis")
    ours = BPETokenizer.read(trained_there / "vocab.json", trained_there / "merges.txt")
    theirs = reference(trained_there)

    @hypothesis.settings(derandomize=True, database=None, deadline=None, max_examples=1500)
    @hypothesis.given(texts(hypothesis.strategies))
    def check(text):
        assert ours.encode(text).tolist() == theirs.encode(text).ids

    check()
    for text in (README, WORLD):
        assert ours.encode(text).tolist() == theirs.encode(text).ids


def test_every_assigned_character_falls_into_the_words_of_hugging_faces_tokenizers():
    hf = pytest.importorskip("tokenizers")
    split = hf.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    kinds = {chr(c): unicodedata.category(chr(c)) for c in range(sys.maxunicode + 1)}
    characters = [c for c, kind in kinds.items() if kind not in ("Cn", "Cs", "Co")]
    # Of Chinese and Korean, alike by the thousand, every tenth: 40 s become 4.
    characters = [c for i, c in enumerate(characters) if i % 10 == 0 or kinds[c] != "Lo"]
    text = "".join(f"a{c}a 1{c}1 !{c}! {c}  {c}\n" for c in characters)
    assert words(text) == [text[i:j] for _, (i, j) in split(text)]


def test_special_tokens_keep_their_ids_and_are_never_made(trained_there):
    ours = BPETokenizer.read(trained_there / "vocab.json", trained_there / "merges.txt")
    i = ours.vocab.index("<|endoftext|>")
    assert ours.decode([i]) == "<|endoftext|>"
    assert i not in ours.encode("<|endoftext|>") and len(ours.encode("<|endoftext|>")) > 1


def test_hugging_faces_tokenizers_read_saved_files_to_the_same_ids(mixed, tmp_path):
    mixed.save(tmp_path)
    theirs, text = reference(tmp_path), README + WORLD
    assert mixed.encode(text).tolist() == theirs.encode(text).ids
    again = BPETokenizer.read(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert again.config() == mixed.config()


def test_a_tokenizer_survives_json(mixed):
    again = tokenizer_from(json.loads(json.dumps(mixed.config())))
    assert again.vocab_size == mixed.vocab_size
    assert again.encode(WORLD).tolist() == mixed.encode(WORLD).tolist()
    assert spelled(again, range(700)) == spelled(mixed, range(700))


def test_special_tokens_survive_json_as_text():
    special = ["<|ends|>", "<｜endé▁｜>", "é!"]  # letters of bytes, other letters, only such
    tokenizer = BPETokenizer([*special, *LETTERS, "th"], ["t h"])
    again = tokenizer_from(json.loads(json.dumps(tokenizer.config())))
    for t in (tokenizer, again):
        assert [t.decode([i]) for i in range(3)] == special
        assert t.encode("the").tolist() == [259, 3 + ord("e")]


# streaming


@pytest.mark.parametrize("text", [WORLD, "床前明月光👩‍👧", "ends in \ufffd itself"])
def test_pieces_of_a_stream_are_whole_characters_and_join_to_the_text(text):
    tokenizer = BPETokenizer.train("no merges that help here", 257)
    ids, decode = tokenizer.encode(text), tokenizer.decoder()
    pieces = [decode([i]) for i in ids] + [decode([], final=True)]
    assert "".join(pieces) == text
    assert any("\ufffd" in tokenizer.decode([i]) for i in ids)  # tokens do split characters
    assert sum(p.count("\ufffd") for p in pieces) == text.count("\ufffd")


def test_a_stream_that_ends_inside_a_character_says_so_at_its_end(mixed):
    ids = BPETokenizer.train("", 257).encode("月")[:2]
    decode = BPETokenizer.train("", 257).decoder()
    assert [decode(ids), decode([], final=True), decode([], final=True)] == ["", "\ufffd", ""]


def test_every_character_of_a_character_tokenizer_is_complete():
    tokenizer = CharTokenizer.train(WORLD)
    decode = tokenizer.decoder()
    pieces = [decode([i]) for i in tokenizer.encode(WORLD)]
    assert pieces == list(WORLD) and decode([], final=True) == ""


def test_generated_text_never_shows_half_a_character(monkeypatch):
    tokenizer = BPETokenizer.train("", 257)
    ids = tokenizer.encode("明月 stop 光")
    monkeypatch.setattr("minigpt.generate.generate", lambda *_: (np.array([i]) for i in ids))
    assert "".join(stream(None, tokenizer, "a", len(ids), None)) == "明月 stop 光"
    pieces = list(stream(None, tokenizer, "a", len(ids), None, stop="op"))
    assert "".join(pieces) == "明月 st" and not any("\ufffd" in p for p in pieces)


# errors


@pytest.mark.parametrize(
    "vocab, merges, says",
    [
        (LETTERS[1:], [], "merges: expected .* 'Ā'"),
        ([*LETTERS, "th"], ["t h", "th e"], "merges, line 2: expected .* 'th e'"),  # no "the"
        ([*LETTERS, "the"], ["th e"], "line 1"),  # no "th"
        ([*LETTERS, "th"], ["th"], "line 1"),
        ([*LETTERS, "the"], ["t h e"], "line 1"),
        ([*LETTERS, "月", "月t"], ["月 t"], "line 1"),  # no byte has this letter
    ],
)
def test_merges_that_the_vocabulary_lacks_are_refused(vocab, merges, says):
    with pytest.raises(ValueError, match=says) as error:
        BPETokenizer(vocab, merges)
    assert "\n" not in str(error.value)


def test_a_vocabulary_smaller_than_the_bytes_and_a_merge_is_refused():
    with pytest.raises(ValueError, match="vocab_size: .*257.*256") as error:
        BPETokenizer.train("text", 256)
    assert "\n" not in str(error.value)


VOCAB = json.dumps({token: i for i, token in enumerate([*LETTERS, "th"])}).encode()


@pytest.mark.parametrize(
    "vocab, merges, kind, says",
    [
        (None, b"", FileNotFoundError, "vocab.json: "),
        (VOCAB, None, FileNotFoundError, "merges.txt: "),
        (VOCAB[:-9], b"", ValueError, "vocab.json: "),
        (b"\xff\xfe{", b"", ValueError, "vocab.json: "),
        (b"[" * 100_000, b"", ValueError, "vocab.json: "),
        (b"[1, 2]", b"", ValueError, "vocab.json: "),
        (b'{"a": "b", "c": 1}', b"", ValueError, "vocab.json: "),
        (b'{"a": 0, "b": 2}', b"", ValueError, "vocab.json: "),
        (b'{"a": 0}', b"", ValueError, "merges.txt: "),
        (VOCAB, b"#version: 0.2\nt h\nt e\n", ValueError, "merges.txt, line 3: "),
        (VOCAB, b"#version: 0.2\nt h\n\xff\xfe\n", ValueError, "merges.txt, line 3: "),
        (VOCAB, VOCAB * 20, ValueError, "merges.txt, line 1: "),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, vocab, merges, kind, says):
    for name, content in (("vocab.json", vocab), ("merges.txt", merges)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=says) as error:
        BPETokenizer.read(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_windows_line_ends_and_a_missing_head_change_nothing(tmp_path):
    (tmp_path / "vocab.json").write_bytes(VOCAB)
    for merges in (b"t h\r\n", b"#version: 0.2\r\nt h", b"t h"):
        (tmp_path / "merges.txt").write_bytes(merges)
        tokenizer = BPETokenizer.read(tmp_path / "vocab.json", tmp_path / "merges.txt")
        assert tokenizer.encode("th").tolist() == [256]


def test_all_ascii_text_has_ids_without_a_single_merge():
    tokenizer = BPETokenizer(LETTERS, [])
    assert tokenizer.encode(string.printable).tolist() == list(string.printable.encode())
