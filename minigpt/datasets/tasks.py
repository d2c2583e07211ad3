"""Tasks that are text: a question, a tab, its answer, a line end; stories, numerals, .tsv files."""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.datasets.stream import Shuffled
from minigpt.datasets.text import read_file
from minigpt.engine.functional import IGNORED
from minigpt.messages import check

PEOPLE = ("Mary", "John", "Sandra", "Daniel", "Emma", "Peter")
PLACES = ("kitchen", "garden", "office", "bedroom", "hallway", "cellar")
THINGS = ("apple", "football", "milk", "book", "lamp", "key")
MOVES = ("went to", "moved to", "walked to", "ran to")
TAKES = ("took", "picked up", "grabbed", "got")
DROPS = ("dropped", "put down", "left")
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS = "零一二三四五六七八九"


class Task(NamedTuple):
    """Three parts, each a list of examples; an example is a list of (question, answer, kind), each
    asked after those before it: a story goes on, a pair stands alone."""

    train: list
    validation: list
    test: list

    def crc(self):
        """CRC-32 of all parts: a resumed run and a report must see the same."""
        return zlib.crc32("".join(map(text_of, self)).encode("utf-8", "surrogatepass"))


def load(name, seed):
    """The Task of a name or of the path of a .tsv file."""
    make = {"qa": stories, "translation": numerals}.get(name)
    return make(seed) if make else pairs(name, seed)


def asked(question):
    """The text before an answer. Spaces in front, so that a word is the same token everywhere."""
    return f" {' '.join(question.split())}\t"


def text_of(examples):
    """All examples one after the other: what a tokenizer is trained on"""
    return "".join(f"{asked(q)} {answer}\n" for example in examples for q, answer, _ in example)


def encode(examples, tokenizer):
    """-> x, y (N, T) int32, y one token later: the answers and their line ends are the targets.

    Tab and line end are tokens of their own in every tokenizer here, as nothing else holds them.
    """
    ids = tokenizer.encode(text_of(examples))
    tab, end = (ids == tokenizer.encode(c)[0] for c in "\t\n")
    answers = (np.cumsum(tab) - tab) - (np.cumsum(end) - end) == 1  # behind a tab, no end yet
    stops = np.flatnonzero(end)[np.cumsum([len(example) for example in examples]) - 1] + 1
    lengths = np.diff(stops, prepend=0)
    inside = np.arange(lengths.max()) < lengths[:, None]
    x, y = np.zeros(inside.shape, np.int32), np.full(inside.shape, IGNORED, np.int32)
    x[inside], y[inside] = ids, np.where(answers, ids, IGNORED)
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
        longest = np.flatnonzero((y != IGNORED).any(0))[-1] + 1
        return x[:, :longest], y[:, :longest]


def pairs(path, seed):
    """The Task of a file whose lines are a source, a tab and its target; a tenth of the sources
    each for validation and test.  Raises ValueError with the line that is none."""
    targets = {}  # of each source: it must not be asked in two parts
    for number, line in enumerate(read_file(path).split("\n"), 1):
        cells = [" ".join(cell.split()) for cell in line.split("\t")]
        if any(cells):
            right = len(cells) == 2 and all(cells)
            need = "a source, one tab, a target"
            check(right, f"{path}: line {number}", need, f"{line[:40]!r}", "mend it")
            targets.setdefault(cells[0], {})[cells[1]] = [(*cells, Path(path).stem)]
    check(len(targets) >= 10, path, "10 different sources or more", len(targets), "add some")
    groups, tenth = [[*of.values()] for of in targets.values()], len(targets) // 10
    parts = np.split(np.random.default_rng(seed).permutation(len(groups)), [tenth, 2 * tenth])
    test, validation, train = ([pair for i in part for pair in groups[i]] for part in parts)
    return Task(train, validation, test)


def english(n):
    """3012 -> three thousand and twelve; British, without commas.  0 <= n < 1,000,000"""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    unit, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    many, rest = divmod(n, unit)
    joint = " and " if rest < 100 else " "
    return f"{english(many)} {name}" + (joint + english(rest) if rest else "")


def chinese(n):
    """3012 -> 三千零一十二, one spelling for each number: 二, never 两; a gap is one 零; a first
    一十 loses its 一.  0 <= n < 1,000,000"""
    high, low = divmod(n, 10_000)
    text = f"{chinese_digits(high)}万" if high else ""
    if low:
        text += ("零" if high and low < 1000 else "") + chinese_digits(low)
    return text.removeprefix("一") if text.startswith("一十") else text or "零"


def chinese_digits(n):
    """1 to 9,999 -> digits, each with its unit"""
    text = ""
    for unit, name in (1000, "千"), (100, "百"), (10, "十"), (1, ""):
        digit, n = divmod(n, unit)
        if digit:
            text += DIGITS[digit] + name
        elif text and n and text[-1] != "零":
            text += "零"
    return text


def numerals(seed, each=8000):
    """Numbers 0 to 999,999, English to Chinese numerals and back, about as many of two digits at
    most as of 3, 4, 5, 6. Held out are numbers from 100 on: smaller ones are the dictionary."""
    rng, validation, test = np.random.default_rng(seed), [], []
    train = [*range(100)] * (each // 100)
    for first in (100, 1000, 10_000, 100_000):
        numbers = first + rng.permutation(9 * first)
        test.extend(numbers[:250])
        validation.extend(numbers[250:300])
        # Round numbers, which people ask for, are rare: half get 0 or more zeros at their end.
        unit = 10 ** (rng.integers(len(str(first)), size=each) * rng.integers(2, size=each))
        drawn = rng.choice(numbers[300:], each) // unit * unit
        train.extend(drawn[~np.isin(drawn, numbers[:300])])
    parts = []
    for part in (train, validation, test):
        spelled = [(english(n), chinese(n)) for n in part]
        both = [[(words, numeral, "English to Chinese")] for words, numeral in spelled]
        both += [[(numeral, words, "Chinese to English")] for words, numeral in spelled]
        parts.append([both[i] for i in rng.permutation(len(both))])
    return Task(*parts)


def stories(seed, sizes=(40_000, 200, 1200)):
    """Stories in the manner of bAbI (Weston et al. 2015, arXiv 1502.05698), none in two parts."""
    rng, seen, parts = np.random.default_rng(seed), set(), []
    for size in sizes[::-1]:
        part = []
        while len(part) < size:
            told = story(rng)
            if (text := "".join(question for question, _, _ in told)) not in seen:
                part.append(told)
                seen.add(text)
        parts.append(part)
    return Task(*parts[::-1])


def story(rng, questions=4):
    """Three people move, take, drop; questions after 1, 2 and 3 sentences, in any order."""
    world, told = World(rng), []
    for n in rng.permutation(3):
        sentences, different = [world.event() for _ in range(n + 1)], {}
        for _ in range(questions):
            question, *rest = world.ask()
            different[question.partition(" in the ")[0]] = question, *rest  # of its kind the last
        for question, *rest in different.values():
            told.append((" ".join([*sentences, question]), *rest))
            sentences = []  # the next one asks about the same
    return told


class World:
    """Who is where, and who has what."""

    def __init__(self, rng):
        draw = iter(rng.random(100).tolist()).__next__  # 84 at most; one by one takes twice as long
        self.pick = lambda items: items[int(draw() * len(items))]
        self.people, self.things = (rng.permutation(x)[:3].tolist() for x in (PEOPLE, THINGS))
        self.place, self.holder = {}, {}
        self.past = {}  # thing: the places where it has been, the latest last

    def event(self):
        """Something happens -> its sentence"""
        who = self.pick(self.people)
        mine = [thing for thing in self.things if self.holder.get(thing) == who]
        here = [thing for thing in self.things if self.free(thing, self.place.get(who))]
        take = who in self.place and bool(here)
        deed = self.pick(["move"] + ["take"] * take + ["drop"] * (4 * bool(mine)))
        if deed == "move":
            return self.move(who, mine)
        thing = self.pick(here if deed == "take" else mine)
        self.holder[thing] = who if deed == "take" else None
        if deed == "take":
            self.past.setdefault(thing, [self.place[who]])
        return f"{who} {self.pick(TAKES if deed == 'take' else DROPS)} the {thing}."

    def free(self, thing, place):
        """Whether it lies in the place; one not seen so far may lie anywhere."""
        return not self.holder.get(thing) and self.past.get(thing, [place])[-1] == place

    def move(self, who, mine):
        place = self.pick([place for place in PLACES if place != self.place.get(who)])
        self.place[who] = place
        for thing in mine:
            self.past[thing].append(place)
        return f"{who} {self.pick(MOVES)} the {place}."

    def ask(self):
        """-> question, answer, kind, with the number of facts that the answer needs"""
        who = self.pick(list(self.place))
        asks = [(f"Where is {who}?", self.place[who], "where is a person (1 fact)")]
        if not self.past:
            asks.append((*self.yes_or_no(who, self.place[who]), "is a person there (1 fact)"))
        else:
            lying = [thing for thing in self.past if not self.holder[thing]]  # asked for twice as
            thing = self.pick([*self.past, *lying])  # often: fewer are, and it is harder to learn
            *before, place = self.past[thing]
            n = list(self.holder.values()).count(who)
            count = f"how many ({max(1, n)} fact{'s' * (n > 1)})"
            asks += [
                (f"Where is the {thing}?", place, "where is a thing (2 facts)"),
                (*self.yes_or_no(f"the {thing}", place), "is a thing there (2 facts)"),
                (f"Who has the {thing}?", self.holder[thing] or "nobody", "who has it (1 fact)"),
                (f"How many things does {who} have?", ("none", *ONES[1:4])[n], count),
            ]
            if before and place not in before:  # seldom, so three times as likely
                question = f"Where was the {thing} before the {place}?"
                asks += 3 * [(question, before[-1], "where was a thing (3 facts)")]
        return self.pick(asks)

    def yes_or_no(self, what, place):
        there = self.pick([place, self.pick([other for other in PLACES if other != place])])
        return f"Is {what} in the {there}?", "yes" if there == place else "no"
