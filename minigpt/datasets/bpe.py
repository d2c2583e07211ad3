"""Byte-level byte-pair encoding: frequent strings become tokens, and any text can be spelled.

A text is cut into words, a word into the bytes of its UTF-8: these are the first 256 tokens.
Training finds merges: the most frequent pair of neighbours becomes a token of its own, then the
next, until the vocabulary is full. To encode a word, the same merges are made in the same order.
With the merges l o and lo w, "lower" is low, e, r.

Source: Sennrich et al. 2016, 3.2; of bytes: Radford et al. 2019 (GPT-2), 2.2.
"""

import codecs
import functools
import heapq
import json
import re
import threading
import unicodedata
from collections import Counter, defaultdict
from itertools import groupby, islice, pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

# Unicode's White_Space; Python's \s has \x1c to \x1f too, which GPT-2 takes for punctuation.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# GPT-2's files write a token as text in which white space separates. So each byte has a visible
# letter: itself if Latin-1 prints it, else the next one from U+0100 on. " th" is written \u0120th.
HIDDEN = [*range(33), *range(127, 161), 173]
LETTERS = [chr(256 + HIDDEN.index(b) if b in HIDDEN else b) for b in range(256)]


@functools.cache
def pattern(end):
    r"""GPT-2's pattern of a word, for text of code points below `end`.

    `re` lacks \p{L} and \p{N}, any letter and any digit: they become ranges of code points, in
    0.02 s for 65,536 of them, 0.3 s for all.
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
    # Most texts need only the first 65,536 code points, whose pattern reads 3 times as fast.
    beyond = re.search("[\U00010000-\U0010ffff]", text)
    return pattern(0x110000 if beyond else 0x10000).findall(text)


def utf8(word):
    """The bytes of a word. A lone surrogate, a command line's stray byte, has three."""
    return word.encode("utf-8", "surrogatepass")


class Pairs:
    """The pairs of neighbours in all words: how often each occurs, and in which words. A word is
    spelled with one character per token, chr(id), so a pair is a string of two characters."""

    def __init__(self, counted):
        self.spelled = [utf8(word).decode("latin-1") for word in counted]
        self.times = list(counted.values())
        self.counts = Counter()
        self.where = defaultdict(set)  # pair: words that hold it, or did so before a merge
        for i, word in enumerate(self.spelled):
            for left, right in pairwise(word):
                self.counts[left + right] += self.times[i]
                self.where[left + right].add(i)

    def join(self, pair, new):
        """Write `new` for the pair in all words, left first -> the pairs that hold `new`.

        Of the other pairs only a merge's neighbours change: where N is written for ab, xaby becomes
        xNy. So xa is counted as xN from now on, and by as Ny; ba, in abab, as NN.
        """
        a, b = pair
        made = set()
        for i in self.where.pop(pair):
            parts = self.spelled[i].split(pair)  # `new` stands between a part and the next
            self.spelled[i] = new.join(parts)
            for k, (before, behind) in enumerate(pairwise(parts)):
                x, y = before[-1:], behind[:1]  # "" at an end of the word, or beside another `new`
                if x:
                    made.add(self.recount(i, x + a, x + new))
                elif k > 0:
                    made.add(self.recount(i, b + a, new + new))
                if y:
                    made.add(self.recount(i, b + y, new + y))
        del self.counts[pair]
        return made

    def recount(self, i, pair, new):
        """Count a pair of word i as what it has become, the pair `new` -> new"""
        self.counts[pair] -= self.times[i]
        self.counts[new] += self.times[i]
        self.where[new].add(i)
        return new


def learn(counted):
    """{word: how often} -> yields merges (left id, right id); the k-th, from 0 on, makes 256 + k.

    The most frequent pair is merged next; of equally frequent pairs, the one with the smaller ids.
    A pair that occurs only once is never merged. Of 1 MB, 4,096 merges take 0.3 s in English and
    2.5 s in Chinese, whose words, without spaces, hardly ever come twice.
    """
    pairs, new = Pairs(counted), 256
    # A heap gives its smallest entry first: by -count the most frequent pair. A sorted list is one.
    queue = sorted((-n, pair) for pair, n in pairs.counts.items())
    while queue:
        minus_n, pair = heapq.heappop(queue)
        now = pairs.counts[pair]
        if -minus_n > now:
            # Later merges have used up some of its tokens. The count of a pair that is in the queue
            # only falls, so it is enough to correct an entry when it comes first.
            heapq.heappush(queue, (-now, pair))
        elif now > 1:
            yield ord(pair[0]), ord(pair[1])
            for made in pairs.join(pair, chr(new)):
                heapq.heappush(queue, (-pairs.counts[made], made))
            new += 1


def progress(items, total, unit):
    """The items one by one, with a bar on a terminal if they take more than a second."""
    tqdm.set_lock(threading.RLock())  # by default a semaphore, which a killed rank would leak
    return tqdm(items, total=total, unit=unit, delay=1, leave=False, disable=None)


class BPETokenizer:
    """vocab: the token of each id; merges: "left right" in their order; both in LETTERS.

    A token that is no byte and that no merge makes is special: encode never gives it.
    Raises ValueError naming `file` if vocab lacks a byte; also the line if it lacks its tokens.
    """

    def __init__(self, vocab, merges, file="merges"):
        self.vocab, self.vocab_size, self.merges = list(vocab), len(vocab), []
        ids = {token: i for i, token in enumerate(vocab)}
        byte = {letter: i for i, letter in enumerate(LETTERS)}
        used = set(LETTERS)  # tokens that are not special
        if lost := used - ids.keys():
            raise ValueError(f"{file}: expected all bytes in vocab, got no {min(lost)!r}; add it")
        self._ranks = {}  # (left id, right id): the place of the merge in the order
        self._made = []  # the id that each merge makes
        for number, line in enumerate(merges, 1):
            if line.startswith("#version"):  # the head of a file; no word mixes # and letters
                continue
            left, _, right = line.partition(" ")
            tokens = {left, right, left + right}
            if not tokens <= ids.keys() or not byte.keys() >= {*left, *right}:
                need = "expected two tokens that join into a third, all three in the vocabulary"
                raise ValueError(f"{file}, line {number}: {need}, got {line[:40]!r}; check both")
            self._ranks[ids[left], ids[right]] = len(self.merges)
            self._made.append(ids[left + right])
            self.merges.append(line)
            used |= tokens
        self._alphabet = [ids[letter] for letter in LETTERS]  # the id of each byte
        self._bytes = []  # of each id
        for token in vocab:
            self._bytes.append(bytes(map(byte.get, token)) if token in used else utf8(token))
        self._spelled = {}  # word: its ids, as the bytes of an int32 array; grows with the words

    @classmethod
    def train(cls, text, vocab_size):
        """Ids: the bytes, then the merges; fewer than asked for if no pair occurs twice by then."""
        if vocab_size < 257:
            raise ValueError(f"vocab_size: expected at least 257, got {vocab_size}; raise it")
        vocab, merges, most = list(LETTERS), [], vocab_size - 256
        for a, b in progress(islice(learn(Counter(words(text))), most), most, " merges"):
            vocab.append(vocab[a] + vocab[b])
            merges.append(f"{vocab[a]} {vocab[b]}")
        return cls(vocab, merges)

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

    @classmethod
    def from_config(cls, config):
        return cls(config["vocab"], config["merges"])

    def config(self):
        return {"kind": "bpe", "vocab": self.vocab, "merges": self.merges}

    def encode(self, text):
        """text -> ids (N,) int32.  1 MB of English takes 0.3 to 0.5 s, half of it for new words."""
        found = words(text)
        new = set(found).difference(self._spelled)
        for word in progress(new, len(new), " words"):
            self._spelled[word] = np.array(self._spell(word), np.int32).tobytes()
        return np.frombuffer(bytearray().join(map(self._spelled.get, found)), np.int32)

    def _spell(self, word):
        """The ids of one word: merges are made until none fits, the earliest first, leftmost first.

        Looking through the word again after each merge would take n^2 steps. Instead a heap holds
        the pairs that can be merged, and each token knows its neighbours: n log n.
        """
        ids = [self._alphabet[byte] for byte in utf8(word)]
        ids.append(None)  # no token: the neighbour of both ends, as the last place is also place -1
        before = list(range(-1, len(ids) - 1))  # the place of the left neighbour of each place
        after = list(range(1, len(ids) + 1))
        queue = []  # (rank of the merge, place of its left token)
        for i, pair in enumerate(pairwise(ids)):
            if pair in self._ranks:
                queue.append((self._ranks[pair], i))
        heapq.heapify(queue)
        while queue:
            rank, i = heapq.heappop(queue)
            j = after[i]
            if self._ranks.get((ids[i], ids[j])) != rank:
                continue  # one of the two has become part of another token meanwhile
            ids[i], ids[j] = self._made[rank], None  # the new token stands at i, nothing at j
            after[i] = after[j]
            before[after[i]] = i
            for left, right in (before[i], i), (i, after[i]):
                pair = ids[left], ids[right]
                if pair in self._ranks:
                    heapq.heappush(queue, (self._ranks[pair], left))
        return [i for i in ids if i is not None]

    def decode_bytes(self, ids):
        """ids (N,) -> bytes, even if they are no valid UTF-8"""
        return b"".join([self._bytes[i] for i in np.asarray(ids, int).tolist()])

    def decode(self, ids):
        """ids (N,) -> text; U+FFFD where bytes are no UTF-8, three for a lone surrogate."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decoder(self):
        """A function (ids, final=False) -> the text that these ids complete: the first bytes of a
        character wait until its last one comes, or until final."""
        read = codecs.getincrementaldecoder("utf-8")("replace").decode
        return lambda ids, final=False: read(self.decode_bytes(ids), final)

    def unknown(self, text):
        return ""  # every text can be spelled

    def extended(self, text):
        """The tokenizer that also spells this text: every tokenizer of bytes does."""
        return self


class SpecialTokenizer(BPETokenizer):
    """BPE in which a special token, such as <|endoftext|>, is encoded as itself.

    special: {token: id}. Of two that begin at the same place the longer one is meant. The ids from
    vocab_size on, with which some models fill up their tables, stand for nothing.
    """

    def __init__(self, vocab, merges, file="merges", special=None):
        super().__init__(vocab, merges, file)
        self.special = special or {}
        for token, i in self.special.items():
            if not token or not 0 <= i < self.vocab_size:
                need = f"special tokens with ids below {self.vocab_size}"
                raise ValueError(f"{file}: expected {need}, got {token!r}: {i}; mend it")

    @classmethod
    def from_config(cls, config):
        return cls(config["vocab"], config["merges"], special=config["special"])

    def config(self):
        return super().config() | {"kind": "special", "special": self.special}

    def encode(self, text):
        if not any(token in text for token in self.special):
            return super().encode(text)
        longest_first = sorted(map(re.escape, self.special), key=len, reverse=True)
        ids = []
        for part in re.split(f"({'|'.join(longest_first)})", text):
            token = self.special.get(part)
            ids.append(super().encode(part) if token is None else [token])
        return np.concatenate(ids).astype(np.int32)

    def decode_bytes(self, ids):
        ids = np.asarray(ids, int)
        return super().decode_bytes(ids[ids < self.vocab_size])
