"""Writing: continuing a text. The model predicts the next token of a text, so it can write one."""

import json
import math
import os
import sys
import zlib
from dataclasses import replace
from itertools import tee
from operator import itemgetter

import numpy as np

from minigpt.applications.application import Application, model_shape
from minigpt.datasets import large, text, tokenizer_class, tokenizer_from
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.generate import stream, streams
from minigpt.messages import note, quoted, say, visible
from minigpt.nn import model_class

TOGETHER = 16  # texts are drawn in one batch at most: each needs memory for all that it has read
TEMPERATURE = 0.8  # the default of sample.py; below 1, so likely tokens become even likelier


class TextApplication(Application):
    """What all models of text share: a tokenizer, and what follows a prompt."""

    writes = True
    tokenizer = None  # before preprocess(): that of --init
    answers = False  # whether a prompt is a question, behind which an answer comes

    def find_tokenizer(self, whole, training):
        """Set the tokenizer: all characters of the text, or tokens learned from the training part
        alone. One from --init is kept, and gets the characters that are new to it."""
        config = self.config
        if self.origin:
            self.tokenizer = self.tokenizer.extended(whole)
        elif config.tokenizer == "char":
            distinct = len(set(whole))
            if distinct > 5000:
                say("", f"{distinct:,} characters, each learned by itself: try --tokenizer bpe")
            self.tokenizer = CharTokenizer.train(whole)
        else:
            kind, part = tokenizer_class(config.tokenizer), large.part_of(training)
            self.learned_from(len(part), len(training))
            self.tokenizer = kind.train(part, config.vocab_size)

    def learned_from(self, read, characters):
        """Say it if bpe has found its tokens in a part of the text only."""
        if read < characters:
            say("", f"tokens learned from {read:,} characters, spread over the text")

    def describe_new(self, before):
        """Say which characters --init brings no vectors for.  before: its tokenizer, or None"""
        if self.origin and (new := self.tokenizer.vocab_size - before.vocab_size):
            some = self.tokenizer.decode(range(before.vocab_size, before.vocab_size + new))
            are = "characters are" if new > 1 else "character is"
            rest = " ..." if new > 20 else ""
            note(f"{new:,} {are} new to {self.origin['from']}: {some[:20]!r}{rest}")
            note(f"with those that it knows, there are {self.tokenizer.vocab_size:,}")

    def build(self, rng):
        shape = model_shape(self.config, self.tokenizer.vocab_size)
        if self.origin:
            shape = replace(shape, **self.origin["shape"])
        return model_class(self.config.model)(shape, rng)

    def about(self):
        origin = {"origin": self.origin} if self.origin else {}
        return {"tokenizer": self.tokenizer.config(), "data": self.crc} | origin

    @classmethod
    def restore(cls, config, about, folder):
        self = cls(config, folder)
        self.tokenizer, self.crc = tokenizer_from(about["tokenizer"]), about["data"]
        self.origin = about.get("origin")
        return self

    def listen(self, how, prompt):
        self.how = how

    def known(self, words):
        """The words without the characters that the model does not know, which are named."""
        unknown = self.tokenizer.unknown(words)
        if unknown:
            run = self.config.out
            print(f"sample.py: left out, unknown to {run}: {unknown!r}", file=sys.stderr)
        return "".join(c for c in words if c not in unknown)

    def texts(self, model, start, rng, stop, temperature):
        """Yield the --count texts that the model writes after `start`, each as its pieces.

        They are drawn together. While the first is read, as it comes, tee() keeps the pieces of the
        others, which are read after it. temperature: the default of --temperature.
        """
        how, n, most = self.how, len(self.tokenizer.encode(start)), model.block_size
        if n > most:
            reads = f"{self.config.out} reads the last {most}"
            print(f"sample.py: the prompt has {n} tokens, {reads}", file=sys.stderr)
        if how.temperature is not None:
            temperature = how.temperature
        choice = {"temperature": temperature, "top_k": how.top_k, "top_p": how.top_p}
        for before in range(0, how.count, TOGETHER):
            starts = [start] * min(TOGETHER, how.count - before)
            steps = streams(model, self.tokenizer, starts, how.tokens, rng, stop, **choice)
            for i, copy in enumerate(tee(steps, len(starts))):
                yield map(itemgetter(i), copy)


class Writing(TextApplication):
    """Texts of any kind. Losses are in nats per character, whatever the tokenizer."""

    held_out = "whole split"  # what is validated

    def preprocess(self):
        config = self.config
        say("1 preprocess", f"{' '.join(config.data)}: reading ...")
        before = self.tokenizer
        rest, size = self.read_large() or self.read_whole()
        least = min(len(self.train), len(self.validation))
        if least <= config.block_size:
            need = f"more than {config.block_size} tokens of bpe in each part (--block-size)"
            raise ValueError(f"--data: expected {need}, got {least}; add text or lower that option")
        self.scale = len(self.validation) / len(rest)  # tokens per character
        self.uniform = self.scale * math.log(self.tokenizer.vocab_size)
        self.describe(*size)
        self.describe_new(before)
        self.count_baselines(rest)

    def read_whole(self):
        """Turn the text into ids -> what is held out of it, (its characters, how many distinct)."""
        config = self.config
        characters = text.load(config.data, self.folder, note)
        self.crc = zlib.crc32(characters.encode())
        training, rest = text.split(characters, config.block_size)
        self.find_tokenizer(characters, training)
        self.train, self.validation = map(self.tokenizer.encode, (training, rest))
        return rest, (len(characters), len(set(characters)))

    def read_large(self):
        """As read_whole() does, for a text that large.py reads; None if it is not so large."""
        config = self.config

        def learn(characters, part):
            say("", "a large text: it is turned into ids once, until it changes ...")
            self.find_tokenizer(characters, part)
            return self.tokenizer

        kind = [config.tokenizer, config.vocab_size]
        if self.origin:
            kind.append(self.origin["sha256"])
        found = large.prepare(config.data, self.folder, kind, learn)
        if not found:
            return None
        self.crc, self.tokenizer = found.crc, found.tokenizer
        self.train, self.validation = found.train, found.validation
        self.shared = os.path.getsize(found.train.path)
        rest = self.tokenizer.decode(found.validation)
        self.held_out = f"first {len(rest):,} characters held out"
        say("", f"ids in {found.train.path}, {self.shared / 1e6:,.0f} MB")
        say("", f"only the {self.held_out} are validated")
        if config.tokenizer == "bpe" and not self.origin:
            self.learned_from(found.learned, found.characters)
        return rest, (found.characters, found.distinct)

    def describe(self, characters, distinct):
        """Say how much text it is."""
        sizes = f"train {len(self.train):,} / validation {len(self.validation):,}"
        size = f"{characters:,} characters, {distinct} distinct"
        V, bpe = self.tokenizer.vocab_size, self.config.tokenizer == "bpe"
        many = f"{V:,} tokens of bpe; " if bpe else ""
        say("", f"{size}; {many}{sizes}")

    def count_baselines(self, rest):
        """Say what must be beaten: {name: loss} of guessing, counting and compressing `rest`."""
        V = self.tokenizer.vocab_size
        recent = self.train[-text.MOST :]
        counted = text.baselines(recent, self.validation, V, rest, self.folder)
        self.to_beat = {name: counted[name] for name in ("uniform", "unigram", "bzip2")}
        self.to_beat["best n-gram"] = counted["best"]
        if self.to_beat["bzip2"] > self.uniform:  # its header alone outweighs a small text
            del self.to_beat["bzip2"]
        figures = ", ".join(f"{name} {loss:.3f}" for name, loss in self.to_beat.items())
        part = f", counted on {counted['read']:,}" if counted["read"] < len(self.train) else ""
        say("", "to beat, in nats per character (1 nat = 1.44 bits):")
        say("", f"{figures} (order {counted['order']}{part})")

    def windows(self):
        return text.windows_in_order(self.validation, self.config.block_size)

    def stream(self):
        windows = text.Windows(self.train, self.config.block_size, self.config.seed)
        windows.scale = self.scale
        return windows

    def remark(self, trainer, loss, best):
        """The baselines that this loss is the first to fall below, for the end of the line."""
        if self.origin:  # whose weights may be below some before the first step
            best = min(best, self.first)
        passed = ", ".join(name for name, bar in self.to_beat.items() if loss < bar <= best)
        return f": past {passed}" if passed else ""

    def sample(self, trainer):
        rng = np.random.default_rng((self.config.seed, trainer.step))
        return self.line(trainer.model, rng)

    def validate(self, loss):
        loss *= self.scale
        bits = f"{loss:.4f} nats per character = {loss / math.log(2):.3f} bits"
        n_gram = self.to_beat["best n-gram"]
        say("5 validate", f"{self.held_out}: {bits},")
        say("", f"{'below' if loss < n_gram else 'not below'} the best n-gram, {n_gram:.3f}")

    def apply(self, model):
        say("6 apply", self.line(model, np.random.default_rng(self.config.seed)))
        say("", f"next: python sample.py {quoted(self.config.out)} --interactive")
        say("", "and read minigpt/engine/autograd.py")

    def line(self, model, rng, tokens=56):
        """What the model writes after "The ", if that is usual in its text, on one line."""
        if isinstance(self.tokenizer, CharTokenizer):
            prompt, usual = "The ", not self.tokenizer.unknown("The ")
        else:  # in bpe a space begins the next word
            prompt, usual = "The", len(self.tokenizer.encode("The")) == 1
        prompt = prompt if usual else self.beginning()
        training = model.training
        pieces = stream(model.eval(), self.tokenizer, prompt, tokens, rng, temperature=TEMPERATURE)
        written = "".join(pieces)
        model.train(training)
        return json.dumps(prompt + written, ensure_ascii=False)

    def beginning(self):
        """What stands before a text that has no prompt: a line end, or else the first letter."""
        return "\n" if not self.tokenizer.unknown("\n") else self.tokenizer.decode([0])

    def reply(self, model, words, rng):
        """Print the words and what follows them, as it comes; then the other texts of --count."""
        known = self.known(words)
        start = known
        if not known:
            start = self.beginning()
        for number, pieces in enumerate(self.texts(model, start, rng, self.how.stop, TEMPERATURE)):
            if number:  # a text may hold line ends, so these alone would not part two of them
                print("-" * 15)
            print(known, end="", flush=True)
            for piece in pieces:
                print(visible(piece), end="", flush=True)
            print()

    def without_prompt(self, model, how, read):
        """Go on from what is piped in, or begin."""
        self.listen(how, None)
        return read()
