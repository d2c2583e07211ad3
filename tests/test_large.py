"""Texts that are read in pieces: the same as the whole, once, and from a file that ranks share."""

import errno
import io
import os
import pickle
import random
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_cli import SMALL, folder, mistake
from test_resume import left, stopped_after

import train
from minigpt.datasets import catalogue, large, text
from minigpt.datasets.bpe import BPETokenizer
from minigpt.datasets.text import Windows
from minigpt.datasets.tokenizers import CharTokenizer

place = folder  # the fixture, by a name that hides no import
WORDS = ["ab", "é", "'ll", "'", "1", "!", "\x1c", "🌕"]
LETTERS = [*WORDS, " ", " ", " ", "\n", "\r\n", "\t", "\u3000"]


def draw(n, seed=0):
    """A text of n parts that words, line ends and characters of several bytes meet in."""
    return "".join(random.Random(seed).choices(LETTERS, k=n))


def write(path, characters):
    path.write_bytes(characters.encode())
    return str(path)


@pytest.fixture
def small(monkeypatch):
    """Texts of more than 300 characters are large."""
    for name, value in {"LARGE": 300, "VALIDATED": 10**6, "LEARNED": 10**6, "PIECE": 64}.items():
        monkeypatch.setattr(large, name, value)


# reading in pieces


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_the_pieces_are_the_text(tmp_path, monkeypatch, size):
    monkeypatch.setattr(large, "PIECE", size)
    names = [write(tmp_path / f"{i}.txt", draw(200, seed=i)) for i in range(3)]
    names.append(write(tmp_path / "windows.txt", "\ufeff" + draw(50) + "a\r\r\n\r"))
    assert "".join(large.pieces(names, tmp_path)) == text.load(names, tmp_path)


def test_a_text_that_a_name_stands_for_is_a_part_as_well(tmp_path, monkeypatch):
    monkeypatch.setitem(text.TEXTS, "mine", lambda cache: "my text " * 50)
    names = ["mine", write(tmp_path / "a.txt", draw(90))]
    assert "".join(large.pieces(names, tmp_path)) == text.load(names, tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_words_end_where_a_text_is_cut(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(large, "PIECE", 60)
    names = [write(tmp_path / "a.txt", draw(2000, seed))]
    characters, pieces = text.load(names, tmp_path), [*large.pieces(names, tmp_path)]
    tokenizer = BPETokenizer.train(characters, 300)
    assert len(pieces) > 20
    ids = np.concatenate([tokenizer.encode(piece) for piece in pieces])
    assert ids.tolist() == tokenizer.encode(characters).tolist()


def test_a_text_without_spaces_is_cut_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "PIECE", 60)
    pieces = [*large.pieces([write(tmp_path / "a.txt", "床前明月光" * 100)], tmp_path)]
    assert "".join(pieces) == "床前明月光" * 100 and max(map(len, pieces)) <= 120


def test_one_pass_finds_the_characters_their_number_and_the_checksum():
    characters = draw(3000).replace("\r", "")
    parts = [characters[i : i + 7] for i in range(0, len(characters), 7)]
    found = "".join(sorted(set(characters))), len(characters), zlib.crc32(characters.encode())
    assert large.scan(parts) == found


@pytest.mark.parametrize("bad", [b"\xe9", b"\xf0\x9f", b"\xff\xfe"])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_file_that_is_no_utf8_is_told_as_if_it_had_been_read_whole(
    tmp_path, monkeypatch, bad, size
):
    monkeypatch.setattr(large, "PIECE", size)
    (tmp_path / "a.txt").write_bytes(draw(100).encode() + b"\n\n" + bad + b"\nafter\n")
    said = []
    for read in (text.read_file, lambda path: [*large.parts_of_file(path)]):
        with pytest.raises(ValueError) as raised:
            read(str(tmp_path / "a.txt"))
        said.append(str(raised.value))
    assert said[0] == said[1] and "in line" in said[0]


def test_a_file_of_white_space_is_refused(tmp_path):
    name = write(tmp_path / "a.txt", "\ufeff" + " \n" * 9)
    with pytest.raises(ValueError, match="a.txt: expected text, got an empty file"):
        list(large.pieces([name], tmp_path))


def test_the_characters_that_bpe_learns_from_are_spread_over_the_training_part(monkeypatch):
    monkeypatch.setattr(large, "LEARNED", 250)
    pieces = [c * 10 for c in "abcdefghijklmnopqrstuvwxyz" * 4]  # 1,040 characters
    found = large.sample(pieces, 900)
    assert 200 <= len(found) <= 260 and found == "".join(pieces[:90:4])
    monkeypatch.setattr(large, "LEARNED", 225)
    assert large.sample(pieces, 900) == "".join(pieces[:90:4])[:225]
    monkeypatch.setattr(large, "LEARNED", 900)
    assert large.sample(pieces, 895) == "".join(pieces)[:895]


@pytest.mark.parametrize("n", [0, 1, 49, 999, 1000])
def test_bpe_learns_from_all_of_a_text_that_has_no_more_than_it_learns_from(monkeypatch, n):
    monkeypatch.setattr(large, "LEARNED", 1000)
    monkeypatch.setattr(large, "PIECE", 50)
    assert large.part_of(draw(1000)[:n]) == draw(1000)[:n]


@pytest.mark.parametrize("n", [1001, 1040, 2001, 5000])
def test_bpe_learns_from_a_beginning_of_each_piece_of_a_longer_text(monkeypatch, n):
    monkeypatch.setattr(large, "LEARNED", 1000)
    monkeypatch.setattr(large, "PIECE", 50)
    whole = "".join(chr(0x4E00 + i % 20_000) for i in range(n))
    found = large.part_of(whole)
    assert 900 < len(found) <= 1000 and large.part_of(found) == found
    places = [(ord(c) - 0x4E00) % 50 for c in found]
    assert max(places) <= 50 * 1000 // n and {found[0], whole[n // 50 * 50 - 50]} <= {*found}


# the file of ids


class Counted:
    """Learns a tokenizer of characters, and counts how often it is asked to."""

    def __init__(self, do=lambda: None):
        self.times, self.do = 0, do

    def __call__(self, characters, part):
        self.times += 1
        self.do()
        return CharTokenizer.train(characters)


def prepared(name, cache, learn):
    return large.prepare([name], cache, ["char", 0], learn)


def test_the_ids_are_those_of_the_two_parts_of_the_text(tmp_path, small):
    name = write(tmp_path / "a.txt", draw(2000))
    characters = text.load([name], tmp_path)
    tokenizer = CharTokenizer.train(characters)
    train, rest = map(tokenizer.encode, text.split(characters, 8))
    found = prepared(name, tmp_path / "cache", Counted())
    assert found.train[:].tolist() == train.tolist() and len(found.train) == len(train)
    assert found.validation.tolist() == rest.tolist() and found.validation.dtype == np.int32
    assert found.crc == zlib.crc32(characters.encode())
    assert (found.characters, found.distinct) == (len(characters), len(set(characters)))
    assert found.tokenizer.characters == tokenizer.characters
    assert os.path.getsize(found.train.path) == large.HEAD + 2 * len(characters)


def test_only_the_first_characters_held_out_are_kept(tmp_path, small, monkeypatch):
    monkeypatch.setattr(large, "VALIDATED", 30)
    name = write(tmp_path / "a.txt", draw(2000))
    _, rest = text.split(text.load([name], tmp_path), 8)
    found = prepared(name, tmp_path, Counted())
    assert found.tokenizer.decode(found.validation) == rest[:30]


def test_batches_of_mapped_ids_are_those_of_an_array(tmp_path, small):
    found = prepared(write(tmp_path / "a.txt", draw(2000)), tmp_path, Counted())
    one, two = Windows(found.train, 16, seed=3), Windows(found.train[:], 16, seed=3)
    for _ in range(30):
        for mapped, array in zip(one.batch(5), two.batch(5), strict=True):
            assert mapped.dtype == array.dtype == np.int32
            np.testing.assert_array_equal(mapped, array)


def test_more_tokens_than_two_bytes_count_take_four(tmp_path, small):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 66_000)))
    found = prepared(write(tmp_path / "a.txt", characters * 2), tmp_path, Counted())
    assert found.train.dtype == "<u4"
    assert found.train[-3:].tolist() == [(118_800 - i) % 66_000 for i in (3, 2, 1)]


def test_ids_are_sent_to_another_process_as_a_path(tmp_path, small):
    ids = prepared(write(tmp_path / "a.txt", draw(20_000)), tmp_path, Counted()).train
    sent = pickle.dumps(ids)
    assert len(sent) < 500 < len(ids)
    assert pickle.loads(sent)[:].tolist() == ids[:].tolist()
    content = bytearray(Path(ids.path).read_bytes())
    content[3] ^= 1  # the file of another text
    Path(ids.path).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.ids: expected the ids of this run, got others"):
        pickle.loads(sent)


def test_a_text_that_is_not_large_is_left_to_others(tmp_path, small):
    learn = Counted()
    assert prepared(write(tmp_path / "a.txt", "a" * 300), tmp_path, learn) is None
    many_bytes = write(tmp_path / "b.txt", "月" * 300)
    assert prepared(many_bytes, tmp_path, learn) is None
    assert prepared(many_bytes, tmp_path, learn) is None  # as the cache says
    assert prepared(str(tmp_path / "absent"), tmp_path, learn) is None and not learn.times


CHINESE = "今天天气很好，我们去市场买了很多东西。\n"  # 20 characters


def test_a_text_of_other_bytes_that_is_not_large_is_left_to_others(tmp_path, small):
    (tmp_path / "a.txt").write_bytes((CHINESE * 15).encode("gb18030"))  # 300 characters, 585 bytes
    for _ in range(2):  # the second time as the cache says
        assert prepared(str(tmp_path / "a.txt"), tmp_path, Counted()) is None
    assert text.load([str(tmp_path / "a.txt")], tmp_path) == CHINESE * 15


@pytest.mark.parametrize("more", [1, 100])  # characters too many; more bytes than 300 can have
def test_a_large_text_of_other_bytes_is_told_how_to_become_utf_8(tmp_path, small, more):
    (tmp_path / "a.txt").write_bytes((CHINESE * 15 + CHINESE * more).encode("gb18030"))
    need = (
        "a.txt: expected UTF-8 text, got byte 0xbd in line 1; convert it: .*; a text of more than"
    )
    way = "300 characters must be UTF-8 .iconv -f GB18030 -t UTF-8 OLD > NEW, if it is Chinese.$"
    with pytest.raises(ValueError, match=f"{need} {way}"):
        prepared(str(tmp_path / "a.txt"), tmp_path, Counted())


def test_a_file_that_is_no_text_is_refused_in_its_own_words_at_any_size(tmp_path, small):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 " * 200)
    with pytest.raises(ValueError, match="a.txt: expected UTF-8 .* line 1; convert it: .* UTF-8$"):
        prepared(str(tmp_path / "a.txt"), tmp_path, Counted())


def test_a_text_is_read_once_until_its_size_or_time_changes(tmp_path, small, monkeypatch):
    name, learn = write(tmp_path / "a.txt", draw(2000)), Counted()
    first = prepared(name, tmp_path, learn)
    with monkeypatch.context() as patch:
        patch.setattr(large, "parts_of_file", None)  # it cannot be read now
        again = prepared(name, tmp_path, learn)
    assert again.train[:].tolist() == first.train[:].tolist() and again.crc == first.crc
    os.utime(name, ns=(0, 0))
    assert prepared(name, tmp_path, learn).crc == first.crc and learn.times == 2
    write(Path(name), draw(2001, seed=1))
    os.utime(name, ns=(0, 0))
    assert prepared(name, tmp_path, learn).crc != first.crc and learn.times == 3
    assert len([*tmp_path.glob("*.ids")]) == 1


def test_another_tokenizer_has_its_own_ids(tmp_path, small):
    name, learn = write(tmp_path / "a.txt", draw(2000)), Counted()
    for kind in ["char", 0], ["bpe", 300], ["bpe", 400], ["char", 0]:
        large.prepare([name], tmp_path, kind, learn)
    assert learn.times == 3


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorter(path):
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("damage", [flipped, shorter, Path.unlink])
@pytest.mark.parametrize("kind", ["ids", "json", "json.sha256"])
def test_a_damaged_cache_is_made_again(tmp_path, small, damage, kind):
    name, learn = write(tmp_path / "a.txt", draw(2000)), Counted()
    ids = prepared(name, tmp_path, learn).train[:].tolist()
    [file] = tmp_path.glob(f"*.{kind}")
    damage(file)
    assert prepared(name, tmp_path, learn).train[:].tolist() == ids
    if (kind, damage) != ("json.sha256", shorter):  # it still begins with the checksum
        assert learn.times == 2


@pytest.mark.parametrize("new", ["c", "a"])
def test_a_file_that_changes_while_it_is_read_is_told_in_one_line(tmp_path, small, new):
    name = write(tmp_path / "a.txt", "ab " * 200)

    def change():
        write(tmp_path / "a.txt", "ab " * 100 + f"{new}b " + "ab " * 98 + "bb ")

    with pytest.raises(ValueError, match="^--data: expected one text, got another in the middle"):
        prepared(name, tmp_path, Counted(change))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_vanishes_while_it_is_read_is_named(tmp_path, small):
    name = write(tmp_path / "a.txt", "ab " * 200)
    with pytest.raises(FileNotFoundError, match="a.txt"):
        prepared(name, tmp_path / "cache", Counted(lambda: os.remove(name)))


def test_a_full_disk_is_told_with_what_there_is_no_room_for(tmp_path, small, monkeypatch):
    class Full(io.BufferedWriter):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.open", lambda *given, **named: Full(io.BytesIO()))
    monkeypatch.setattr(large, "pieces", lambda *_: iter(["ab " * 200]))
    with pytest.raises(OSError, match=r"\.ids: no room for the ids of a text of 600 char.*; free"):
        large.encode(["a.txt"], tmp_path, tmp_path / "a.ids", Counted())


def test_what_a_killed_run_has_left_is_removed_and_nothing_else(tmp_path, small):
    now = time.time()
    for name, age in (("ids-1.ids.0.part", 4000), ("ids-2.ids.0.part", 10), ("mine.part", 4000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age, now - age))
    prepared(write(tmp_path / "a.txt", draw(2000)), tmp_path, Counted())
    assert sorted(p.name for p in tmp_path.glob("*.part")) == ["ids-2.ids.0.part", "mine.part"]


# folders of text


@pytest.fixture
def shelf(tmp_path):
    """A folder of texts, with what is no text in it."""
    for name, content in {
        "b.txt": "two", "a.txt": "one", "c/a.md": "three", "c/.hidden/x": "no", ".x": "\xff",
        "empty": "", "z/blank": " \n\n", "z/y": "four",
    }.items():  # fmt: skip
        (tmp_path / "shelf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shelf" / name).write_text(content, encoding="latin-1")
    return str(tmp_path / "shelf")


def test_a_folder_is_the_text_of_its_files_in_order(shelf, tmp_path):
    assert text.load([shelf], tmp_path) == "one\ntwo\nthree\nfour"
    assert text.load([f"{shelf}/b.txt", shelf], tmp_path) == "two\none\ntwo\nthree\nfour"
    assert catalogue.kind([shelf], None) == "text"


def test_a_folder_whose_own_name_is_hidden_is_a_text_as_well(tmp_path):
    (tmp_path / ".shelf").mkdir()
    write(tmp_path / ".shelf/a.txt", "one")
    assert text.load([str(tmp_path / ".shelf")], tmp_path) == "one"


def test_a_file_of_a_folder_that_is_no_text_is_named_with_its_line(shelf, tmp_path):
    Path(shelf, "c/e.png").write_bytes(b"\n\x89PNG")
    with pytest.raises(ValueError, match="shelf/c/e.png: expected UTF-8 text, got .* line 2"):
        text.load([shelf], tmp_path)


def test_a_picture_among_texts_is_to_be_moved_out(shelf, tmp_path, small):
    Path(shelf, "c/e.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(400))
    error = "e.png: expected UTF-8 text, got byte 0x89 in line 1; it is no text: name another file"
    for read in (lambda: text.load([shelf], tmp_path), lambda: prepared(shelf, tmp_path, None)):
        with pytest.raises(ValueError, match=error):
            read()


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_folder_without_text_is_refused(tmp_path, content):
    (tmp_path / "shelf").mkdir()
    if content is not None:
        (tmp_path / "shelf/a.txt").write_text(content)
    with pytest.raises(ValueError, match="shelf: expected files of text, got a folder without any"):
        text.load([str(tmp_path / "shelf")], tmp_path)


# whole runs


def run_on(data, out, *words):
    train.main(["--data", data, "--out", out, *SMALL, *words])
    return left(out)


@pytest.mark.parametrize("words", [
    ["--tokenizer", "char"], ["--tokenizer", "bpe", "--vocab-size", "270"],
    pytest.param(["--workers", "2"], marks=pytest.mark.slow),
])  # fmt: skip
def test_a_text_in_pieces_trains_as_the_whole_does(place, small, monkeypatch, capsys, words):
    Path("text.txt").write_text(draw(3000).replace("\r", ""))
    pieces = run_on("text.txt", "out/pieces", *words)
    assert "a large text" in capsys.readouterr().out
    monkeypatch.setattr(large, "LARGE", 10**9)
    assert run_on("text.txt", "out/whole", *words) == pieces
    assert "a large text" not in capsys.readouterr().out


def test_a_folder_trains_as_its_files_do(place, shelf):
    Path(shelf, "long").write_text(draw(300))
    files = text.listed([shelf])
    folder = run_on(shelf, "out/folder")
    train.main(["--data", *files, "--out", "out/files", *SMALL])
    assert folder["log.csv"] == left("out/files")["log.csv"]


def test_a_large_text_says_what_reads_a_part_of_it(place, small, monkeypatch, capsys):
    monkeypatch.setattr(large, "VALIDATED", 100)
    monkeypatch.setattr(large, "LEARNED", 900)
    monkeypatch.setattr(text, "MOST", 500)
    Path("text.txt").write_text(draw(3000).replace("\r", ""))
    run_on("text.txt", "out/run", "--tokenizer", "bpe", "--vocab-size", "258")
    out = capsys.readouterr().out
    assert "only the first 100 characters held out are validated" in out
    assert "first 100 characters held out: " in out and "counted on 500)" in out
    assert "characters, spread over the text" in out and "for ids, while nothing else" in out


@pytest.mark.parametrize("most", [900, 10**6])
def test_a_text_that_is_not_large_says_if_bpe_learns_from_a_part(place, monkeypatch, capsys, most):
    monkeypatch.setattr(large, "LEARNED", most)
    monkeypatch.setattr(large, "PIECE", 64)
    read, learn = [], BPETokenizer.train
    spy = classmethod(lambda cls, text, size: read.append(text) or learn(text, size))
    monkeypatch.setattr(BPETokenizer, "train", spy)
    Path("text.txt").write_text(draw(3000).replace("\r", ""))
    training, _ = text.split(text.load(["text.txt"], place), 16)
    run_on("text.txt", "out/run", "--tokenizer", "bpe", "--vocab-size", "258")
    said = f"tokens learned from {len(read[0]):,} characters, spread over the text"
    if most == 900:
        assert len(read[0]) <= 900 and said in capsys.readouterr().out
    else:
        assert read == [training] and said not in capsys.readouterr().out


def test_the_baselines_of_a_large_text_count_the_end_of_its_training_part(
    place, small, monkeypatch
):
    counted = []
    monkeypatch.setattr(text, "MOST", 500)
    monkeypatch.setattr(text, "witten_bell", lambda *parts: counted.extend(parts) or np.ones(7))
    Path("text.txt").write_text(draw(3000))
    run_on("text.txt", "out/run")
    characters = text.load(["text.txt"], place)
    train, rest = map(CharTokenizer.train(characters).encode, text.split(characters, 16))
    assert counted[0].tolist() == train[-500:].tolist() and counted[1].tolist() == rest.tolist()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals")
def test_a_large_text_resumes_as_if_it_had_never_stopped_and_another_is_refused(
    place, small, monkeypatch, capsys
):
    Path("text.txt").write_text(draw(3000))
    whole = run_on("text.txt", "out/whole")
    stopped_after(4, monkeypatch, ["--data", "text.txt", "--out", "out/run", *SMALL])
    Path("text.txt").write_text(draw(3000, seed=1))
    error = mistake(train.main, ["--resume", "--out", "out/run"], capsys, place)
    assert error == "train.py: --data: not what this run has read; restore it, or start anew\n"
    Path("text.txt").write_text(draw(3000))
    train.main(["--resume", "--out", "out/run"])
    assert left("out/run") == whole
