"""Classifying: to which class does an image, a sound or a row of a table belong?"""

import csv
import math
import os
import sys

import numpy as np

from minigpt.applications.application import Application, model_shape
from minigpt.datasets import examples
from minigpt.messages import check, note, quoted, say, silent, visible
from minigpt.nn import model_class
from minigpt.nn.classifier import classifier
from minigpt.training.scores import held_out, probabilities


class Classifying(Application):
    """Losses are in nats per example."""

    unit = "example"

    def preprocess(self):
        say("1 preprocess", f"{self.config.data[0]}: reading ...")
        self.crc = self.read(note)
        e = self.examples
        self.kind, self.classes, self.encoder = e.kind, e.classes, e.encoder
        self.uniform = math.log(len(e.classes))
        (x, y), (_, truth) = e.train, e.test
        sizes = " / ".join(f"{len(part):,}" for _, part in (e.train, e.validation, e.test))
        size = " x ".join(map(str, x.shape[1:]))
        classes = f"{len(e.classes)} classes"
        say("", f"{e.kind}s of {size}, {classes}; train / validation / test {sizes}")
        most = np.bincount(y).argmax()
        often = f"always {e.classes[most]}: {(truth == most).mean():.2%} right"
        say("", f"to beat: {often}; {self.uniform:.3f} nats")

    def read(self, tell=silent):
        c = self.config
        self.examples = examples.load(c.data[0], c.target, c.seed, self.folder, tell)
        return self.examples.crc()

    def build(self, rng):
        shape = model_shape(self.config, len(self.classes))
        family = model_class(self.config.model)
        return classifier(self.kind, family, self.encoder.shape, shape, rng)

    def form(self):
        return f"{self.config.n_embd} wide"

    def windows(self):
        return self.examples.validation

    def stream(self):
        return examples.Rows(*self.examples.train, self.config.seed, examples.VARY[self.kind])

    def validate(self, loss):
        say("5 validate", f"validation part: {loss:.4f} nats per example")

    def apply(self, model):
        super().apply(model)
        say("", f"next: python sample.py {quoted(self.config.out)} --input FILE")

    def scores(self, model):
        return held_out(model, self.examples)

    def about(self):
        encoder = self.encoder.config()
        return {"kind": self.kind, "classes": self.classes, "encoder": encoder, "data": self.crc}

    @classmethod
    def restore(cls, config, about, folder):
        self = cls(config, folder)
        self.kind, self.classes, self.crc = about["kind"], about["classes"], about["data"]
        self.encoder = examples.encoder_from(about["encoder"])
        return self

    def predict(self, model, path):
        """Print, as CSV, the likeliest class of each example and the probability of every class."""
        got, remedy = "nothing", "check the path"
        if os.path.exists(path):
            got, remedy = "a folder, a device or a pipe", "name a file"
        check(os.path.isfile(path), f"--input {path}", "a file", got, remedy)

        def tell(message):
            print(f"sample.py: {visible(message)}", file=sys.stderr)

        p = probabilities(model, self.encoder.encode(path, tell))
        for column, values in getattr(self.encoder, "unseen", {}).items():
            new = ", ".join(f"{value} ({n} rows)" for value, n in values.items())
            tell(f"{path}: column {column}: not seen in training: {new}")
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(["likeliest", *self.classes])
        for row in p:
            out.writerow([self.classes[row.argmax()], *(f"{value:.4f}" for value in row)])
