"""Byte-level byte-pair encoding: frequent strings become tokens, and any text can be spelled.

Text falls into words, words into the bytes of UTF-8; merges, in the order that training found, join
neighbours in a word to one token.  Source: Sennrich et al. 2016, 3.2; Radford et al. 2019, 2.2.
"""

import codecs
import functools
import heapq
import json
import re
import unicodedata
from collections import Counter, defaultdict
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

# Unicode's White_Space; Python's \s has \x1c to \x1f too, which GPT-2 takes for punctuation.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# GPT-2's letter for each byte: itself if Latin-1 prints it, else the next from U+0100 on, so that
# a file of tokens is text, in which white space separates: " th" is written \u0120th.
HIDDEN = [*range(33), *range(127, 161), 173]
LETTERS = [chr(256 + HIDDEN.index(b) if b in HIDDEN else b) for b in range(256)]


@functools.cache
def pattern(end):
    r"""GPT-2's pattern of a word, for text of code points below `end`.

    `re` lacks \p{L} and \p{N}: they become ranges, in 0.02 s for 65,536 code points, 0.3 s for
    all. Letters that this Python's Unicode does not have yet count as punctuation.
    """
    ranges = {"L": "", "N": ""}
    for kind, run in groupby(range(end), lambda c: unicodedata.category(chr(c))[0]):
        if kind in ranges:
            run = list(run)
            ranges[kind] += f"\\U{run[0]:08x}-\\U{run[-1]:08x}"
    s, letter, digit = SPACE, ranges["L"], ranges["N"]
    return re.compile(
        rf"'(?:[sdmt]|ll|re|ve)| ?[{letter}]+| ?[{digit}]+| ?[^{s}{letter}{digit}]+"
        rf"|[{s}]+(?![^{s}])|[{s}]+"  # white space leaves its last character to what follows
    )


def words(text):
    """text -> its words, which together are the text: I've  two! -> I, 've, a space, " two", !"""
    beyond = re.search("[\U00010000-\U0010ffff]", text)  # their ranges are tried one by one: 4 MB/s
    return pattern(0x110000 if beyond else 0x10000).findall(text)  # instead of 14


def utf8(word):
    """The bytes of a word; of a lone surrogate, a command line's stray byte, three."""
    return word.encode("utf-8", "surrogatepass")


def learn(counted, most):
    """{word: how often} -> at most `most` merges (left id, right id); merge k makes 256 + k.

    The most frequent pair is next, of equals the one of smaller ids, left first; none that occurs
    once. Only words that hold it are counted anew: 1 MB and 4,096 merges take 1 to 2 s.
    """
    spelled = [utf8(word).decode("latin-1") for word in counted]  # a character for each id
    times, counts, where = list(counted.values()), Counter(), defaultdict(set)

    def count(i, sign):
        for pair in pairwise(spelled[i]):
            counts[pair] += sign * times[i]
            where[pair].add(i)  # stays when the pair goes: costs a look, changes no count

    for i in range(len(spelled)):
        count(i, 1)
    queue, merges = sorted((-n, pair) for pair, n in counts.items()), []  # sorted: a heap
    while queue and len(merges) < most:
        n, pair = heapq.heappop(queue)
        if -n > counts[pair]:  # pairs without the newest token only lose: correct it now
            heapq.heappush(queue, (-counts[pair], pair))
        elif -n > 1:
            new, touched = chr(256 + len(merges)), where.pop(pair)
            merges.append((ord(pair[0]), ord(pair[1])))
            for i in touched:
                count(i, -1)
                spelled[i] = spelled[i].replace("".join(pair), new)
                count(i, 1)
            for p in {p for i in touched for p in pairwise(spelled[i]) if new in p}:
                heapq.heappush(queue, (-counts[p], p))
    return merges


class BPETokenizer:
    """vocab: the token of each id; merges: "left right" in their order; both in LETTERS.

    A token of no merge is special: encode never makes it, and it decodes to itself.
    Raises ValueError, naming `file` and line, if vocab lacks a byte or a merge's tokens.
    """

    def __init__(self, vocab, merges, file="merges"):
        self.vocab, self.vocab_size, self.merges = list(vocab), len(vocab), []
        ids, byte = ({key: i for i, key in enumerate(keys)} for keys in (vocab, LETTERS))
        self._ranks, self._made, used = {}, [], set(LETTERS)
        if lost := used - ids.keys():
            raise ValueError(f"{file}: expected all bytes in vocab, got no {min(lost)!r}; add it")
        for number, line in enumerate(merges, 1):
            if line.startswith("#version"):  # the head of a file; no word mixes # and letters
                continue
            left, _, right = line.partition(" ")
            tokens = {left, right, left + right}
            if not tokens <= ids.keys() or not byte.keys() >= {*left, *right}:
                need = "expected two tokens that are one together, all three in the vocabulary"
                raise ValueError(f"{file}, line {number}: {need}, got {line[:40]!r}; check both")
            self._ranks[ids[left], ids[right]] = len(self.merges)
            self._made.append(ids[left + right])
            self.merges.append(line)
            used |= tokens
        self._alphabet = [ids[letter] for letter in LETTERS]
        self._bytes = [bytes(map(byte.get, t)) if t in used else utf8(t) for t in vocab]
        self._spelled = {}  # word -> its ids, as the bytes of an int32 array: grows with the words

    @classmethod
    def train(cls, text, vocab_size):
        """Ids: the bytes in order, then the merges; fewer than asked if no pair is left twice."""
        if vocab_size < 257:
            raise ValueError(f"vocab_size: expected at least 257, got {vocab_size}; raise it")
        vocab, merges = list(LETTERS), learn(Counter(words(text)), vocab_size - 256)
        for a, b in merges:
            vocab.append(vocab[a] + vocab[b])
        return cls(vocab, [f"{vocab[a]} {vocab[b]}" for a, b in merges])

    @classmethod
    def read(cls, vocab_json, merges_txt):
        """The tokenizer of two files such as GPT-2's, with the ids of Hugging Face's tokenizers."""
        try:
            ids = json.loads(Path(vocab_json).read_bytes())
            merges = Path(merges_txt).read_bytes().decode("utf-8", "replace").splitlines()
            if sorted(ids.values()) != list(range(len(ids))):
                raise ValueError
        except FileNotFoundError as e:
            raise FileNotFoundError(f"{e.filename}: expected a file, got none; check it") from None
        except (AttributeError, RecursionError, TypeError, ValueError):
            need = "expected JSON, a token for each id from 0 on"
            raise ValueError(f"{vocab_json}: {need}, got something else; copy it again") from None
        return cls(sorted(ids, key=ids.get), merges, merges_txt)

    def save(self, folder):
        """Write vocab.json and merges.txt, which Hugging Face's tokenizers read to the same ids."""
        Path(folder, "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(self.vocab)}))
        Path(folder, "merges.txt").write_bytes("\n".join(["#version", *self.merges, ""]).encode())

    def config(self):
        return {"kind": "bpe", "vocab": self.vocab, "merges": self.merges}

    def encode(self, text):
        """text -> ids (N,) int32.  1 MB of English takes 0.3 to 0.5 s, half of it for new words."""
        found = words(text)
        for word in set(found).difference(self._spelled):
            self._spelled[word] = np.array(self._spell(word), np.int32).tobytes()
        return np.frombuffer(bytearray().join(map(self._spelled.get, found)), np.int32)

    def _spell(self, word):
        """The ids of one word: the earliest merge that fits, leftmost first, again, in n log n."""
        ids, ranks = [*(self._alphabet[b] for b in utf8(word)), None], self._ranks
        n = len(ids)  # None, at n - 1 and so at -1, is the neighbour of both ends
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        queue = sorted(ranks[pair] * n + i for i, pair in enumerate(pairwise(ids)) if pair in ranks)
        while queue:
            rank, i = divmod(heapq.heappop(queue), n)  # as they were packed: rank * n + i
            j = after[i]
            if ranks.get((ids[i], ids[j])) == rank:  # else one has been joined to another
                ids[i], ids[j], after[i] = self._made[rank], None, after[j]
                before[after[i]] = i
                for left, right in (before[i], i), (i, after[i]):
                    if (pair := (ids[left], ids[right])) in ranks:
                        heapq.heappush(queue, ranks[pair] * n + left)
        return [i for i in ids if i is not None]

    def decode_bytes(self, ids):
        """ids (N,) -> bytes, whatever the ids"""
        return b"".join([self._bytes[i] for i in np.asarray(ids, int).tolist()])

    def decode(self, ids):
        """ids (N,) -> text; U+FFFD where bytes are no UTF-8, so thrice for a lone surrogate."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decoder(self):
        """A function (ids, final=False) -> the text that is complete; the rest waits for more."""
        read = codecs.getincrementaldecoder("utf-8")("replace").decode
        return lambda ids, final=False: read(self.decode_bytes(ids), final)

    def unknown(self, text):
        return ""  # every text can be spelled
