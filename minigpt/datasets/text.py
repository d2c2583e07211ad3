"""Text corpora, the windows that a model reads of them, and what counting alone predicts."""

import ast
import bz2
import hashlib
import json
import os
import platform
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from minigpt.datasets.encodings import decoded
from minigpt.datasets.stream import Shuffled
from minigpt.files import files_in, in_order, write_whole
from minigpt.messages import check, nearest, silent

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages"}
KEYS = {"uniform", "unigram", "bzip2", "n_grams", "best", "order", "read"}  # of baselines()
MOST = 2_000_000  # tokens of each part that the n-grams read: a few seconds


def manual(cache):
    """Python's language reference and library docstrings, 1.7 M characters; 3 s, then cached."""
    return cached(Path(cache) / f"manual-{platform.python_version()}.txt", read_manual)


# What --data may name instead of a file: function(cache) -> the text. Its last tenth is held out,
# so the end of a text should be like the rest.
TEXTS = {"manual": manual}


def read_manual():
    """The manual itself, read from the Python that runs this.

    Documents of at most 80 characters are left out. The others are shuffled, so that the end, which
    is held out, is like the rest. Of equal paragraphs one is kept: a model could copy the others.
    """
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    root = Path(os.__file__).parent
    for path in in_order(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            documents += docstrings(path)
    documents = [text for text in documents if len(text) > 80]
    order = np.random.default_rng(70).permutation(len(documents))
    paragraphs = "\n\n".join(documents[i] for i in order).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))  # a dict keeps the first of equal keys


def docstrings(path):
    """The docstrings of a Python file, its classes and functions; none if it cannot be read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a link that leads nowhere, a template
        return []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    return [ast.get_docstring(node) or "" for node in nodes]


def cached(path, make, read=str):
    """What read() makes of a file. If it is absent or not what was written, make() gives its text.

    Its SHA-256 stands in a file beside it, so that a file that was cut short is not believed.
    """
    proof = path.with_name(f"{path.name}.sha256")
    with suppress(OSError, ValueError):
        data = path.read_bytes()
        if proof.read_text().startswith(hashlib.sha256(data).hexdigest()):
            return read(data.decode())
    data = make().encode()
    line = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n"  # as the command sha256sum has it
    with suppress(OSError):  # in a read-only folder the text is made again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        write_whole(proof, line.encode())
    return read(data.decode())


def read_file(path, tell=silent):
    """The text of a file, with "\n" for Windows' line ends.  tell: see messages.note"""
    check_file(path)
    text = decoded(path, Path(path).read_bytes(), tell).replace("\r\n", "\n")
    check(text.strip(), path, "text", "an empty file", "name another")
    return text


def check_file(path):
    """Raises FileNotFoundError or ValueError if there is no file of this name."""
    if not os.path.exists(path):
        remedy = nearest(path, TEXTS, f"check the path or use {', '.join(TEXTS)}")
        raise FileNotFoundError(f"{path}: expected a text file, found nothing; {remedy}")
    check(not os.path.isdir(path), path, "a text file", "a folder", "name files in it")
    check(os.path.isfile(path), path, "a text file", "a device or a pipe", "save it first")


def load(names, cache, tell=silent):
    """The texts that a command line names, each a name in TEXTS or a path, joined by line ends."""
    texts = [
        TEXTS[name](cache) if name in TEXTS else read_file(name, tell) for name in listed(names)
    ]
    return "\n".join(texts)


def listed(names):
    """The names, but for each folder the files in it that hold more than white space.

    Raises ValueError if there is no such file, or if a folder cannot be read.
    """
    found = []
    for name in names:
        if name in TEXTS or not os.path.isdir(name):
            found.append(name)
            continue
        inside = [str(path) for path in files_in(name) if not is_blank(path)]
        check(inside, name, "files of text", "a folder without any", "name another")
        found += inside
    return found


def is_blank(path):
    """Whether a file holds nothing but white space."""
    with open(path, "rb") as file:
        blocks = iter(partial(file.read, 1 << 16), b"")  # until nothing is left
        return not any(block.strip() for block in blocks)


def split(text, block_size):
    """A text or ids -> training, validation (the last 10 %).  Raises ValueError if it is short."""
    least = 10 * block_size
    need = f"more than {least} characters (one context to validate)"
    check(len(text) > least, "--data", need, len(text), "add text or lower --block-size")
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


class Windows(Shuffled):
    """Windows of T = block_size tokens in random order, each once per epoch; len(ids) > T.

    They lie side by side. Each epoch lays them from another offset, so that no token stands at a
    boundary in all epochs.
    """

    unit = "tokens"
    scale = 1.0  # tokens per character, set by writing.py: losses are shown in nats per character
    epochs = 6  # after more, validation gets worse on small texts (tests/benchmarks/scale.svg)

    def __init__(self, ids, block_size, seed):
        self.ids, self.block_size = ids, block_size
        # One window is left out, so that any offset below T leaves room for all the others.
        super().__init__(max(1, len(ids) // block_size - 1), seed)

    def shuffle(self, rng):
        """Set `order`: here, where the windows start."""
        offsets = min(self.block_size, len(self.ids) - len(self) * self.block_size)
        self.order = rng.integers(offsets) + self.block_size * rng.permutation(len(self))

    def batch(self, n):
        """-> x, y (n, T) int32: the targets y are the same text one token later"""
        starts = self.take(n)
        places = starts[:, None] + np.arange(self.block_size)  # (n, T)
        return self.ids[places], self.ids[places + 1]


def windows_in_order(ids, block_size):
    """All windows side by side, for validation: each token after the first is a target once.

    ids (N,) -> x, y (windows, T). The last window is filled up; the loss ignores targets of -100.
    """
    gap = -(len(ids) - 1) % block_size  # what N - 1 lacks to a multiple of T
    x = np.pad(ids[:-1], (0, gap))
    y = np.pad(ids[1:], (0, gap), constant_values=-100)
    return x.reshape(-1, block_size), y.reshape(-1, block_size)


def baselines(train, validation, vocab_size, text_of_validation, cache):
    """What a model must beat, in nats per character of the validation part -> dict, cached.

    uniform: guessing; unigram: the frequencies of tokens; bzip2: that compressor at -9, on this
    part alone; n_grams: orders 1 to 7; best, order: the best of them; read: training tokens read.
    """
    ids, text = np.concatenate((train, validation)).tobytes(), text_of_validation.encode()
    key = hashlib.sha256(f"{vocab_size} ".encode() + ids + text).hexdigest()[:16]

    def count():
        scale = len(validation) / len(text_of_validation)  # tokens per character
        losses = scale * witten_bell(train[-MOST:], validation[:MOST], vocab_size)
        bits = 8 * len(bz2.compress(text, 9))
        found = {
            "uniform": scale * np.log(vocab_size),
            "unigram": losses[0],
            "bzip2": bits * np.log(2) / len(text_of_validation),  # a bit is ln 2 nats
            "n_grams": list(losses),
            "best": min(losses),
            "order": int(np.argmin(losses)) + 1,
            "read": min(len(train), MOST),
        }
        return json.dumps(found)

    def read(text):
        found = json.loads(text)
        if {*found} != KEYS:
            raise ValueError("of another version")
        return found

    return cached(Path(cache) / f"baselines-{key}.json", count, read)


def witten_bell(train, validation, vocab_size):
    """How well counting predicts the next token -> nats per token for n-grams of orders 1 to 7.

    train, validation: ids (N,), (M,) -> (7,), fewer for a training part of fewer tokens.
    """
    return np.array([-np.log(p).mean() for p in n_grams(train, validation, vocab_size)])


def n_grams(train, validation, vocab_size):
    """What n-grams of orders 1 to 7 say of each validation token: its probability (M,), per order.

    The n-gram of order k looks at a context h, the k - 1 tokens before, and counts which tokens w
    followed h in the training part. One that never followed h must not get probability 0. Method C
    measures how often h brings something new: after its c(h) occurrences came T(h) different
    tokens, each of which was new once. So it counts T(h) more tokens after h, and shares them out
    as the next lower order predicts, whose context h' is h without its first token:

        P_k(w | h) = (c(h, w) + T(h) P_k-1(w | h')) / (c(h) + T(h)),  P_0 = 1 / vocab_size

    Where h did not occur in training, P_k = P_k-1. By hand, in a training text "abacab" of three
    letters: P_1(b) = (2 + 3/3) / (6 + 3) = 1/3. After h = "a" came b, c, b: c(h) = 3, T(h) = 2, so
    P_2(b | a) = (2 + 2/3) / (3 + 2) = 8/15, and P_2(a | a), unseen, is (0 + 2 * 4/9) / 5 = 8/45.

    train, validation: ids (N,), (M,). Source: Witten and Bell 1991, method C.
    """
    # Each token has its context beside it, and a context is one number: the rank of its string of
    # tokens among all different strings of this length. At order 1 it is the empty string, of rank
    # 0, everywhere. The string hw, a context and its token, becomes one number, too: rank of h
    # times vocab_size, plus w. np.unique ranks these numbers. Then the next order begins, where the
    # string that ends at token i is the context of token i + 1.
    tokens, M = np.concatenate((train, validation)), len(validation)
    context = np.zeros(len(tokens), np.int64)
    p = np.full(M, 1 / vocab_size)  # of each validation token, by the order before
    for _ in range(min(7, len(train))):
        different, string = np.unique(context * vocab_size + tokens, return_inverse=True)
        # Count in the training part, which is all but the last M places.
        contexts = context.max() + 1
        c_h = np.bincount(context[:-M], minlength=contexts)
        c_hw = np.bincount(string[:-M], minlength=len(different))
        context_of = different // vocab_size  # of each different string
        T_h = np.bincount(context_of[c_hw > 0], minlength=contexts)
        # Look up the counts of each validation token's context and string.
        h, hw = context[-M:], string[-M:]
        c_h, c_hw, T_h = c_h[h], c_hw[hw], T_h[h]
        seen = c_h > 0
        p[seen] = (c_hw + T_h * p)[seen] / (c_h + T_h)[seen]
        yield p.copy()
        context, tokens = string[:-1], tokens[1:]
