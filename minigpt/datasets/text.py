"""Text corpora, their windows, and what counting alone predicts."""

import ast
import bz2
import hashlib
import json
import os
import platform
from contextlib import suppress
from pathlib import Path

import numpy as np

from minigpt.datasets.stream import Shuffled
from minigpt.messages import nearest

NAMES = ["manual"]  # texts that need no file
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages"}
MOST = 2_000_000  # tokens of each part that the n-grams read: a few seconds


def manual(cache):
    """Python's language reference and library docstrings, 1.7 M characters; 3 s, then cached."""
    return cached(Path(cache) / f"manual-{platform.python_version()}.txt", read_manual)


def read_manual():
    """Documents over 80 characters, shuffled; repeated paragraphs reward copying, so they go."""
    from pydoc_data.topics import topics

    documents, root = [topics[name] for name in sorted(topics)], Path(os.__file__).parent
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            with suppress(OSError, SyntaxError, ValueError):  # a dangling link, a template
                nodes = ast.walk(ast.parse(path.read_bytes()))
                documents += [ast.get_docstring(n) or "" for n in nodes if isinstance(n, kinds)]
    documents = [text for text in documents if len(text) > 80]
    order = np.random.default_rng(70).permutation(len(documents))
    paragraphs = "\n\n".join(documents[i] for i in order).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def cached(path, make, read=str):
    """What read() finds in the file; if that fails, in make(), written there for the next time."""
    with suppress(OSError, ValueError):  # none yet, or damaged
        return read(path.read_bytes().decode())
    text = make()
    with suppress(OSError):  # a read-only folder: made again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_bytes(text.encode())
        beside.replace(path)  # whole or not at all, whoever else reads or writes it now
    return read(text)


def read_file(path):
    """The text of a UTF-8 file, Windows' line ends and byte order mark removed.

    Raises FileNotFoundError, or ValueError for a folder, for no text and for no UTF-8.
    """
    if not os.path.exists(path):
        remedy = nearest(path, NAMES, f"check the path or use {NAMES[0]}")
        raise FileNotFoundError(f"{path}: expected a text file, found nothing; {remedy}")
    if os.path.isdir(path):
        raise ValueError(f"{path}: expected a text file, got a folder; name files in it")
    try:
        text = Path(path).read_bytes().decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        got = f"byte 0x{e.object[e.start]:02x} in line {line}; convert it, say with iconv"
        raise ValueError(f"{path}: expected UTF-8 text, got {got}") from None
    if not text.strip():
        raise ValueError(f"{path}: expected text, got an empty file; name another")
    return text


def load(names, cache):
    """The texts of a command line, "manual" or paths, joined by line ends."""
    return "\n".join(manual(cache) if name == "manual" else read_file(name) for name in names)


def split(text, block_size):
    """A text or ids -> training, validation (the last 10 %).  Raises ValueError if it is short."""
    if len(text) <= 10 * block_size:
        need = f"more than {10 * block_size} characters (one context to validate)"
        got = f"got {len(text)}; add text or lower --block-size"
        raise ValueError(f"--data: expected {need}, {got}")
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


class Windows(Shuffled):
    """Windows of T = block_size tokens in random order, each once per epoch; len(ids) > T.

    They lie side by side, from another offset each epoch, so that their boundaries differ.
    """

    unit, scale = "tokens", 1.0  # scale: of losses in nats per target, here tokens per character
    epochs = 6  # after more, validation gets worse on small texts (the picture in README)

    def __init__(self, ids, block_size, seed):
        self.ids, self.block_size = ids, block_size
        super().__init__(max(1, len(ids) // block_size - 1), seed)  # they fit from every offset

    def shuffle(self, rng):
        offsets = min(self.block_size, len(self.ids) - len(self) * self.block_size)
        self.order = rng.integers(offsets) + self.block_size * rng.permutation(len(self))

    def batch(self, n):
        """-> x, y (n, T) int32, y one token later"""
        at = self.take(n)[:, None] + np.arange(self.block_size)
        return self.ids[at], self.ids[at + 1]


def windows_in_order(ids, block_size):
    """ids (N,) -> x, y (windows, T): each token after the first a target once; fill 0 and -100."""
    gap = -(len(ids) - 1) % block_size
    x, y = np.pad(ids[:-1], (0, gap)), np.pad(ids[1:], (0, gap), constant_values=-100)
    return x.reshape(-1, block_size), y.reshape(-1, block_size)


def baselines(train, validation, vocab_size, text_of_validation, cache):
    """What a model must beat, nats per character of the validation part -> dict: uniform, unigram,
    bzip2 (-9, of this part alone), n_grams (orders 1 to 7), best and its order, tokens read."""
    ids, text = np.concatenate((train, validation)).tobytes(), text_of_validation.encode()
    key = hashlib.sha256(f"{vocab_size} ".encode() + ids + text).hexdigest()[:16]

    def count():
        scale = len(validation) / len(text_of_validation)  # tokens per character
        n_grams = scale * witten_bell(train[-MOST:], validation[:MOST], vocab_size)
        bzip2 = 8 * np.log(2) * len(bz2.compress(text, 9)) / len(text_of_validation)
        found = {"uniform": scale * np.log(vocab_size), "unigram": n_grams[0], "bzip2": bzip2}
        found |= {"n_grams": list(n_grams), "best": min(n_grams), "read": min(len(train), MOST)}
        return json.dumps(found | {"order": int(np.argmin(n_grams)) + 1})

    return cached(Path(cache) / f"baselines-{key}.json", count, json.loads)


def witten_bell(train, validation, vocab_size):
    """Nats per token for orders k = 1 ... 7: P_k = (c(h,w) + T(h) P_{k-1}) / (c(h) + T(h)).

    h: the k - 1 tokens before w; c: counts in train; T: kinds of tokens seen after h; P_0 = 1/V;
    after an unseen h P_k = P_{k-1}.  Source: Witten and Bell 1991, method C.
    """
    tokens = np.concatenate((train, validation))
    context = np.zeros_like(tokens)  # h as its rank among all: rank * V + w fits in 64 bits
    p, losses = np.full(len(validation), 1 / vocab_size), []
    for _ in range(min(7, len(train))):
        codes, code = np.unique(context * vocab_size + tokens, return_inverse=True)
        c_hw = np.bincount(code[: -len(p)], minlength=len(codes))
        c_h = np.bincount(context[: -len(p)], minlength=len(codes) + 1)
        kinds = np.bincount(codes[c_hw > 0] // vocab_size, minlength=len(codes) + 1)
        h, hw = context[-len(p) :], code[-len(p) :]
        np.divide(c_hw[hw] + kinds[h] * p, c_h[h] + kinds[h], out=p, where=c_h[h] > 0)
        losses.append(-np.log(p).mean())
        context, tokens = code[:-1], tokens[1:]  # the string up to i is the context of i + 1
    return np.array(losses)
