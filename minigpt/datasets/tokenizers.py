"""Text to token ids and back."""

import numpy as np


class CharTokenizer:
    """One token per character. Its id is its place in `characters`, which are all distinct."""

    def __init__(self, characters):
        self.characters, self.vocab_size = characters, len(characters)
        self._codes = code_points(characters)  # id -> code point
        self._ids = np.full(0x110000, -1, np.int32)  # code point -> id, for all of Unicode: 4 MB
        self._ids[self._codes] = np.arange(self.vocab_size)

    @classmethod
    def train(cls, text):
        return cls("".join(sorted(set(text))))

    @classmethod
    def from_config(cls, config):
        return cls(config["characters"])

    def encode(self, text):
        """text of N characters -> ids (N,) int32.  Raises ValueError naming unknown characters."""
        ids = self._ids[code_points(text)]
        if (ids < 0).any():
            raise ValueError(f"encode: {self.unknown(text)!r} not in the vocabulary; leave it out")
        return ids

    def decode(self, ids):
        """ids (N,) -> text of N characters"""
        return self._codes[np.asarray(ids, int)].tobytes().decode("utf-32-le", "surrogatepass")

    def decoder(self):
        """A function (ids, final=False) -> the text that is complete: here all of it."""
        return lambda ids, final=False: self.decode(ids)

    def unknown(self, text):
        """The distinct characters outside the vocabulary, in order of appearance."""
        return "".join(c for c in dict.fromkeys(text) if c not in self.characters)

    def extended(self, text):
        """The tokenizer that also knows this text: new characters come behind the others, whose
        ids stay, and with them what a model has learned of these."""
        new = sorted(self.unknown("".join(set(text))))
        return CharTokenizer(self.characters + "".join(new)) if new else self

    def config(self):
        return {"kind": "char", "characters": self.characters}


def code_points(text):
    """text of N characters -> (N,) uint32. Lone surrogates, as which Python reads stray bytes of a
    command line, have code points, too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
