"""Tasks that are text: a question, a tab, its answer, a line end.

A language model learns to answer by going on behind the tab. The questions come from generated
stories and numbers, or from the lines of a .tsv file.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.datasets.numerals import chinese, english
from minigpt.datasets.stories import story
from minigpt.datasets.stream import Shuffled
from minigpt.datasets.text import read_file
from minigpt.engine.functional import IGNORED
from minigpt.messages import check, silent

MOST = 100_000_000  # tokens of a part, filled up: 0.8 GB


class Task(NamedTuple):
    """Three parts, each a list of examples. An example is a list of (question, answer, kind), each
    asked after those before it: a story goes on, a pair stands alone."""

    train: list
    validation: list
    test: list

    def crc(self):
        """CRC-32 of all parts: a resumed run and a report must see the same."""
        return zlib.crc32("".join(map(text_of, self)).encode("utf-8", "surrogatepass"))


def asked(question):
    """The text before an answer. The space lets bpe use the same token as elsewhere in a text."""
    return f" {' '.join(question.split())}\t"


def text_of(examples):
    """All examples one after the other: what a tokenizer is trained on"""
    pairs = (pair for example in examples for pair in example)
    return "".join(f"{asked(question)} {answer}\n" for question, answer, _ in pairs)


def encode(examples, tokenizer):
    """N examples -> x, y (N, T) int32: an example per row, filled up with 0 at its end.

    y is one token later than x, as always. Its targets are the answers with their line ends; the
    tokens of questions and of the filling are IGNORED there.
    """
    # The whole text is encoded at once, which is much faster than a call for each question.
    # Tab and line end are tokens of their own in every tokenizer here. (Other people's may have a
    # token of two line ends; but behind each of ours stands a space, or the end.)
    ids = tokenizer.encode(text_of(examples))
    tab = ids == tokenizer.encode("\t")[0]
    end = ids == tokenizer.encode("\n")[0]
    # In a question as many line ends as tabs have come before; in an answer, one tab more.
    tabs_before = np.cumsum(tab) - tab
    ends_before = np.cumsum(end) - end
    targets = np.where(tabs_before > ends_before, ids, IGNORED)
    # An example of k questions stops where its k-th line ends.
    line_stops = np.flatnonzero(end) + 1
    last_lines = np.cumsum([len(example) for example in examples]) - 1
    lengths = np.diff(line_stops[last_lines], prepend=0)
    most = MOST // len(examples)  # each row is as long as the longest
    check(lengths.max() <= most, "--data", f"lines of {most} tokens", lengths.max(), "cut them")
    # inside[i, t]: whether example i has a token t. Assigning to x[inside] fills these places row
    # by row, in the order of the text.
    inside = np.arange(lengths.max()) < lengths[:, None]
    x = np.zeros(inside.shape, np.int32)
    y = np.full(inside.shape, IGNORED, np.int32)
    x[inside], y[inside] = ids, targets
    return x[:, :-1], y[:, 1:]


def kinds(examples):
    """The kind of each answer, in order"""
    return [kind for example in examples for _, _, kind in example]


class Lines(Shuffled):
    """Rows of x, y (N, T) in random order, each once per epoch, cut where the longest ends."""

    unit, scale = "tokens", 1.0
    epochs = 20  # at most, within --minutes

    def __init__(self, x, y, seed):
        self.x, self.y, self.block_size = x, y, x.shape[1]
        super().__init__(len(x), seed)

    def batch(self, n):
        """-> x, y (n, at most T)"""
        places = self.take(n)
        x, y = self.x[places], self.y[places]
        scored = (y != IGNORED).any(0)  # (T,): whether any row has a target there
        longest = np.flatnonzero(scored)[-1] + 1
        return x[:, :longest], y[:, :longest]


def stories(seed, sizes=(40_000, 200, 1200)):
    """Questions about stories; no story is in two parts, nor twice in one.

    sizes: of training, validation and test. The test part is told first, so that it stays the same
    whatever the size of the training part.
    """
    rng, seen, parts = np.random.default_rng(seed), set(), []
    for size in reversed(sizes):
        part = []
        while len(part) < size:
            told = story(rng)
            text = "".join(question for question, _, _ in told)
            if text not in seen:
                part.append(told)
                seen.add(text)
        parts.append(part)
    test, validation, train = parts
    return Task(train, validation, test)


def numerals(seed, each=8000):
    """Numbers 0 to 999,999, from English to Chinese numerals and back.

    each: how many numbers of at most 2 digits are for training, and about how many of 3, 4, 5 and
    6 each. Held out are numbers from 100 on; those below are the dictionary, without which no
    other number can be learned.
    """
    rng, validation, test = np.random.default_rng(seed), [], []
    train = [*range(100)] * (each // 100)
    for digits in (3, 4, 5, 6):
        first = 10 ** (digits - 1)
        numbers = first + rng.permutation(9 * first)  # all of so many digits
        held_out, others = numbers[:300], numbers[300:]
        test.extend(held_out[:250])
        validation.extend(held_out[250:])
        # Round numbers, which people ask for, are rare: half get 0 or more zeros at their end.
        zeros = rng.integers(digits, size=each)
        half = rng.integers(2, size=each)  # 0 or 1
        unit = 10 ** (zeros * half)
        drawn = rng.choice(others, each) // unit * unit
        train.extend(drawn[~np.isin(drawn, held_out)])
    return Task(*[both_ways(part, rng) for part in (train, validation, test)])


def both_ways(numbers, rng):
    """Each number from English to Chinese and from Chinese to English, in random order."""
    spelled = [(english(n), chinese(n)) for n in numbers]
    examples = [[(words, numeral, "English to Chinese")] for words, numeral in spelled]
    examples += [[(numeral, words, "Chinese to English")] for words, numeral in spelled]
    return [examples[i] for i in rng.permutation(len(examples))]


def pairs(path, seed, tell=silent):
    """The lines of a file, each a source, a tab and its target; a tenth of the sources each for
    validation and test.  Raises ValueError with the first line that is no such pair."""
    # A source with several targets must not be asked in two parts, so its pairs stay together. A
    # dict of each source's pairs by target keeps one of pairs that are there twice.
    of_source = {}
    for number, line in enumerate(read_file(path, tell).split("\n"), 1):
        cells = [" ".join(cell.split()) for cell in line.split("\t")]
        if any(cells):
            right, got = len(cells) == 2 and all(cells), f"{line[:40]!r}"
            check(right, f"{path}: line {number}", "a source, one tab, a target", got, "mend it")
            source, target = cells
            pair = source, target, Path(path).stem
            of_source.setdefault(source, {})[target] = [pair]  # an example of one question
    n = len(of_source)
    check(n >= 10, path, "10 different sources or more", n, "add some")
    order, tenth = np.random.default_rng(seed).permutation(n), n // 10
    groups = [list(examples.values()) for examples in of_source.values()]
    parts = []
    for places in order[2 * tenth :], order[tenth : 2 * tenth], order[:tenth]:
        parts.append([example for i in places for example in groups[i]])
    return Task(*parts)


TASKS = {"qa": stories, "translation": numerals}  # what --data may name: function(seed) -> Task


def load(name, seed, tell=silent):
    """The Task of a name in TASKS, or of the path of a .tsv file."""
    return TASKS[name](seed) if name in TASKS else pairs(name, seed, tell)
