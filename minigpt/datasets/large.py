"""Texts too large to lie in memory: read in pieces, their token ids in a file that processes share.

Where memory goes: as a string a text takes 1 to 4 bytes a character. CharTokenizer.encode takes 8
more, and 4 of them, the ids, stay in every process that trains; so 200 MB of text need 5.5 GB with
one process. Here only a piece of the text is in memory, and two processes need 1 GB, ids included.
The ids lie in a file, in 2 bytes each, or in 4 if there are more than 65,536 tokens. All processes
map it: the system reads from the disk what they touch, has it in memory once for all of them, and
takes that memory back when something else needs it.

The text must be UTF-8; one that is not, but is not large either, is left to text.py. The split, the
ids and the checksum are those that text.py and the tokenizers give. Three things read a part of a
larger text, because all of it would take too long: validation, the learning of bpe's tokens, and
the baselines. A first reader can skip this file.
"""

import codecs
import hashlib
import json
import os
import re
import time
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.datasets import text, tokenizer_from
from minigpt.datasets.encodings import NotUTF8, no_utf8
from minigpt.datasets.tokenizers import code_points
from minigpt.files import whole
from minigpt.messages import check

LARGE = 20_000_000  # characters; a text of more is large
VALIDATED = LARGE // 10  # characters, the first of those held out, that are validated
LEARNED = 5_000_000  # characters, spread over the training part, that bpe learns from at most
HEAD = 32  # bytes before the ids
PIECE = 1 << 18  # bytes that are read at once, and characters of a piece
CUT = re.compile(r"(?s).*\S(?=[ \n])")  # up to the last place where words end
KEYS = {"text", "characters"}  # what the cache says of any text
MORE = {"crc", "distinct", "learned", "tokenizer", "dtype", "tokens", "ids"}  # and of a large one


class Mapped:
    """Token ids in a file, which every process maps; reading some gives an array int32.

    Another process gets the path, not the ids. tokens: how many belong to it; head: how the file
    begins, which says what it holds. Raises ValueError if it begins otherwise.
    """

    def __init__(self, path, dtype, tokens, head):
        self.path, self.dtype, self.tokens, self.head = path, dtype, tokens, head
        with open(path, "rb") as file:
            same = file.read(HEAD) == head
            self.ids = np.memmap(file, dtype, "r", HEAD, tokens).view(np.ndarray)
        check(same, path, "the ids of this run", "others", "let each text have its own file")

    def __len__(self):
        return self.tokens

    def __getitem__(self, places):
        return self.ids[places].astype(np.int32)

    def __reduce__(self):
        return Mapped, (self.path, self.dtype, self.tokens, self.head)


class Large(NamedTuple):
    """A large text as a model reads it."""

    characters: int
    distinct: int  # of them
    crc: int  # of its UTF-8
    tokenizer: object
    learned: int  # characters that the tokens of bpe were learned from
    train: Mapped
    validation: np.ndarray  # ids int32 of the first VALIDATED characters of what is held out


def prepare(names, cache, kind, learn):
    """A text that is large -> Large; None if it is not. It is read only if it has changed.

    kind: of the tokenizer, as JSON; learn(distinct characters, part of the training part) -> it

    In the cache are the ids, and beside them, as JSON, all else that there is to know of the text.
    They are believed if they have the checksums that were written, and if each file of the text has
    the path, size and time that it had. Raises OSError if the ids cannot be written.
    """
    files = text.listed(names)
    if size_of(files) <= LARGE:
        return None  # each character has a byte at least
    now, where = state_of(files, cache), [os.path.abspath(name) for name in names]
    path = Path(cache) / f"ids-{hash_of([where, kind])[:16]}.ids"

    def make():
        return json.dumps({"text": now} | encode(files, cache, path, learn))

    found = text.cached(path.with_suffix(".json"), make, partial(believed, now, path))
    return opened(path, found) if "ids" in found else None


def believed(now, path, found):
    """The JSON of the cache, read. Raises ValueError if it is not of the text as it is `now`, or if
    the ids at path are not those that were written."""
    found = json.loads(found)
    if {*found} not in (KEYS, KEYS | MORE) or found["text"] != now:
        raise ValueError("of another text or version")
    if "ids" in found:
        with open(path, "rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == found["ids"]
        check(same, path, "the ids that were written", "others", "free space and start again")
    return found


def opened(path, found):
    """What the cache says of a text -> Large"""
    training, validation = found["tokens"]
    head = head_of(found)
    train = Mapped(path, found["dtype"], training, head)
    rest = Mapped(path, found["dtype"], training + validation, head)[training:]
    numbers = found["characters"], found["distinct"], found["crc"]
    return Large(*numbers, tokenizer_from(found["tokenizer"]), found["learned"], train, rest)


def size_of(files):
    """The size of all files together, in bytes."""
    return sum(os.path.getsize(name) for name in files if os.path.isfile(name))


def hash_of(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def head_of(found):
    """What the file of ids begins with: a hash of the text and the tokenizer."""
    return bytes.fromhex(hash_of([found["crc"], found["characters"], found["tokenizer"]]))


def state_of(files, cache):
    """A hash by which a text is known without being read: path, size and time of each file."""
    state = []
    for name in files:
        if name in text.TEXTS:
            state.append([name, zlib.crc32(text.TEXTS[name](cache).encode())])
        else:
            text.check_file(name)
            now = os.stat(name)
            state.append([os.path.abspath(name), now.st_size, now.st_mtime_ns])
    return hash_of(state)


def encode(files, cache, path, learn):
    """Write the ids of a text to path if it is large -> what the cache says of it, as JSON."""
    try:
        distinct, n, crc = scan(pieces(files, cache))
    except NotUTF8 as error:
        n = count_otherwise(files, cache, error)
    found = {"characters": n}
    if n <= LARGE:
        return found
    training = len(text.split(range(n), 1)[0])
    part = sample(pieces(files, cache), training)
    tokenizer = learn(distinct, part)
    found |= {"crc": crc, "distinct": len(distinct), "learned": len(part)}
    found["tokenizer"] = tokenizer.config()
    found["dtype"] = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    ids = encoded(pieces(files, cache), training, tokenizer, crc)
    try:
        return found | write(path, head_of(found), ids, found["dtype"])
    except OSError as error:
        if not str(error.filename or path).startswith(str(path)):
            raise  # the text cannot be read
        room = f"no room for the ids of a text of {n:,} characters ({error.strerror})"
        remedy = "free space there"
        if isinstance(error, PermissionError):  # on Windows also while a run has the file mapped
            remedy = "make the folder writable, or end the run that reads the ids of the old text"
        raise OSError(f"{path}: {room}; {remedy}") from None


def count_otherwise(files, cache, error):
    """How many characters a text has that is not UTF-8.  Raises ValueError if it is large."""
    if size_of(files) <= 4 * LARGE:  # a character has four bytes at most
        n = len(text.load(files, cache))
        if n <= LARGE:
            return n
    must = f"a text of more than {LARGE:,} characters must be UTF-8"
    raise ValueError(f"{error}; {must} (iconv -f GB18030 -t UTF-8 OLD > NEW, if it is Chinese)")


def write(path, head, encoded, dtype):
    """Write ids of the two parts of a text -> {"tokens" of each, the SHA-256 of all "ids"}"""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear(path.parent)
    tokens, written = [0, 0], hashlib.sha256(head)
    with whole(path) as file:
        file.write(head)
        for part, ids in encoded:
            ids = ids.astype(dtype)
            written.update(ids)
            tokens[part] += len(ids)
            file.write(ids)
    return {"tokens": tokens, "ids": written.hexdigest()}


def scan(parts):
    """One pass over a text -> its distinct characters in order, their number, and its CRC-32."""
    seen, n, crc = np.zeros(0x110000, bool), 0, 0  # one place for every character of Unicode
    for piece in parts:
        seen[code_points(piece)] = True
        n += len(piece)
        crc = zlib.crc32(piece.encode(), crc)
    return "".join(map(chr, np.flatnonzero(seen))), n, crc


def sample(parts, training):
    """LEARNED at most of the first `training` characters, in pieces spread evenly over them."""
    every, at, found = -(-training // LEARNED), 0, []
    for i, piece in enumerate(parts):
        if i % every == 0:
            found.append(piece[: max(0, training - at)])
        at += len(piece)
    return "".join(found)[:LEARNED]


def part_of(training):
    """What bpe learns from, of a text in memory: LEARNED characters at most, spread evenly over it.

    Its memory and time go with the bytes of different words: all of 10 million characters of
    Chinese, whose words are whole sentences, would take 4 GB and minutes.
    """
    size = PIECE * LEARNED // max(LEARNED, len(training))  # of each PIECE
    parts = (training[i : i + size] for i in range(0, len(training), PIECE))
    return "".join(parts)[:LEARNED]


def encoded(parts, training, tokenizer, crc):
    """Yield (0, ids) of the training part, piece by piece, then (1, ids) of what is validated.

    Raises ValueError at the end if the text is not the one that has had this CRC-32.
    """
    at = again = 0
    rest = ""
    for piece in parts:
        mine = piece[: max(0, training - at)]
        again = zlib.crc32(piece.encode(), again)
        rest += piece[len(mine) :][: VALIDATED - len(rest)]
        at += len(piece)
        try:
            ids = tokenizer.encode(mine)
        except ValueError:  # a character that was not there before
            again = None
            break
        yield 0, ids
    check(again == crc, "--data", "one text", "another in the middle of reading", "start again")
    yield 1, tokenizer.encode(rest)


def pieces(files, cache):
    """Yield a text piece by piece, cut where words end for every tokenizer.

    No word holds a space or line end behind another character than white space. So the pieces have
    the ids of the whole. A piece without such a place is cut at its end, which may cost a token.
    """
    held = ""
    for part in parts_of(files, cache):
        held += part
        if len(held) >= PIECE:
            found = CUT.match(held)
            cut = found.end() if found else len(held)
            yield held[:cut]
            held = held[cut:]
    yield held


def parts_of(files, cache):
    """Yield the text that text.load gives, as it comes from the disk."""
    for number, name in enumerate(files):
        if number:
            yield "\n"
        yield from [text.TEXTS[name](cache)] if name in text.TEXTS else parts_of_file(name)


def parts_of_file(path):
    """Yield the text that text.read_file gives of a file in UTF-8, as it comes from the disk."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # sig: without a byte order mark
    kept, lines, blank, data = "", 0, True, b"\n"
    with open(path, "rb") as file:
        while data:
            data = file.read(PIECE)
            try:
                part = kept + decoder.decode(data, final=not data)
            except UnicodeDecodeError as e:
                raise no_utf8(path, e, lines) from None
            lines += data.count(b"\n")
            kept = "\r" if data and part.endswith("\r") else ""  # perhaps half a line end
            blank = blank and not part.strip()
            yield part.removesuffix(kept).replace("\r\n", "\n")
    check(not blank, path, "text", "an empty file", "name another")


def clear(folder):
    """Remove ids that a killed run has left half written: untouched for an hour."""
    for part in folder.glob("ids-*.part"):
        with suppress(OSError):  # another process has done so
            if part.stat().st_mtime < time.time() - 3600:
                part.unlink()
