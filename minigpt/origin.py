"""What a run begins with in place of random weights: a trained model, by train.py --init.

A model that has read much knows spelling, words and grammar, and a small text need not teach it
these again. So a run can take over another one's shape, weights and tokenizer; its data, its steps
and its optimizer are its own. This is called fine-tuning, and what came before it, pretraining.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from minigpt import hub
from minigpt.applications import runs
from minigpt.applications.options import SHAPE
from minigpt.messages import check

# The parts of a model's shape for which train.py has no option; a checkpoint keeps them.
BEYOND_OPTIONS = "n_inner", "layer_norm_epsilon"


class Origin:
    """The model that --init names: a run's folder, a checkpoint in it, or a GPT-2 in files.

    folder: where the data lies that the project ships or caches. Raises ValueError or OSError if
    the model cannot be read, or if it writes no text.

    arrays: {name: weights}, until fill() has moved them; tokenizer; options: {name: value} of those
    that the model decides; about: what a checkpoint keeps of it, its path, the SHA-256 of weights
    and tokenizer, and BEYOND_OPTIONS. train.py adds the first loss to that.
    """

    def __init__(self, path, folder):
        read = hub.writer if (Path(path) / "config.json").is_file() else runs.load
        model, application = read(path, np, folder)
        need, remedy = "a model that writes", "classes of other data mean something else"
        check(application.writes, "--init", need, f"{path}, which classifies", remedy)
        check(str(path).isprintable(), "--init", "a name that can be printed", path, "rename it")
        self.path, self.tokenizer = path, application.tokenizer
        self.arrays = model.state_dict()
        table = self.arrays["embedding.weight"]  # in some files it has rows that are no token's
        self.arrays["embedding.weight"] = table[: self.tokenizer.vocab_size]
        options = ("model", "tokenizer", *SHAPE)
        self.options = {name: getattr(application.config, name) for name in options}
        shape = {name: getattr(model.config, name) for name in BEYOND_OPTIONS}
        self.about = {"from": str(path), "sha256": self.hash(), "shape": shape}

    def hash(self):
        """SHA-256 of the tokenizer, and of the names, shapes and numbers of all weights."""
        found = hashlib.sha256(json.dumps(self.tokenizer.config(), sort_keys=True).encode())
        for name, a in sorted(self.arrays.items()):
            found.update(f"{name} {a.dtype} {a.shape}".encode())
            found.update(np.ascontiguousarray(a))
        return found.hexdigest()

    def options_with(self, given):
        """The options that were given, and those that this model decides.

        Raises ValueError for an option that says something else. A context may be shorter: its
        positions are the first ones. It may be longer if the model has no vectors of positions.
        """
        for name, has in self.options.items():
            option, got = f"--{name.replace('_', '-')}", given.get(name, has)
            if name == "block_size" and "position.weight" in self.arrays:
                most = f"at most {has}, as --init {self.path} has positions"
                check(got <= has, option, most, got, "lower it, or leave it out")
            elif name != "block_size":
                expected = f"{has}, as --init {self.path} has"
                check(got == has, option, expected, got, "leave it out")
        new, need = "vocab_size" in given, "none beside --init"
        check(not new, "--vocab-size", need, given.get("vocab_size"), "leave it out")
        return self.options | given

    def fill(self, model):
        """Move the weights into the model. A token that is new gets the mean of all vectors: the
        table (V, C) becomes (V + new, C).

        With the mean its first logit is the mean of the others' logits, so it does not look likely
        before anything has been learned of it. Source: Hewitt 2021, Initializing new word
        embeddings for pretrained language models.
        """
        arrays, table = dict(self.arrays), self.arrays["embedding.weight"]
        new = model.config.vocab_size - len(table)
        mean = np.broadcast_to(table.mean(0), (new, table.shape[1]))
        arrays["embedding.weight"] = np.concatenate([table, mean])
        if "position.weight" in arrays:
            arrays["position.weight"] = arrays["position.weight"][: model.block_size]
        model.load_state_dict(arrays)
        self.arrays = {}  # they would lie in memory as long as the run lasts
