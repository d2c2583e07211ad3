"""Answering: questions, translation, pairs. A task is a text too: a question, a tab, its answer."""

import math
import sys

from minigpt.applications.writing import TextApplication
from minigpt.datasets import tasks
from minigpt.messages import note, quoted, say, silent, visible
from minigpt.training.scores import exact, exact_by_kind
from minigpt.training.trainer import mean_loss


class Answering(TextApplication):
    """Only the tokens of answers are predicted and scored; losses are in nats per such token."""

    answers = True
    longest = 0  # tokens of an example; known once the examples have been read

    def preprocess(self):
        say("1 preprocess", f"{self.config.data[0]}: reading ...")
        self.crc = self.read(note)
        training = tasks.text_of(self.parts.train)
        whole = training + tasks.text_of(self.parts.validation + self.parts.test)
        before = self.tokenizer
        self.find_tokenizer(whole, training)
        self.describe_new(before)
        encoded = [tasks.encode(part, self.tokenizer) for part in self.parts]
        self.train, self.validation, _ = encoded
        self.uniform = math.log(self.tokenizer.vocab_size)
        self.longest = max(x.shape[1] for x, _ in encoded)
        sizes = " / ".join(f"{len(part):,}" for part in self.parts)
        most = f"examples of {self.longest} tokens at most"
        say("", f"{most}; train / validation / test {sizes}")
        # Each process gets a copy of this object: only the test part is needed again as words.
        self.parts = self.parts._replace(train=[], validation=[])

    def read(self, tell=silent):
        self.parts = tasks.load(self.config.data[0], self.config.seed, tell)
        return self.parts.crc()

    def build(self, rng):
        model = super().build(rng)
        if self.longest > model.block_size:
            need = f"expected at least {self.longest}, the longest example"
            remedy = "raise it"
            if self.origin and hasattr(model, "position"):  # it has no more positions
                remedy = "shorten the examples, or --init another model"
            raise ValueError(f"--block-size: {need}, got {self.config.block_size}; {remedy}")
        return model

    def windows(self):
        return self.validation

    def stream(self):
        return tasks.Lines(*self.train, self.config.seed)

    def remark(self, trainer, loss, best):
        """How many answers to the first hundred examples are right."""
        x, y = self.validation
        return f", exact {exact(trainer.model, x[:100], y[:100]).mean():.1%}"

    def validate(self, loss):
        say("5 validate", f"validation part: {loss:.4f} nats per token of the answers")

    def apply(self, model):
        super().apply(model)
        question = quoted(self.parts.test[0][0][0])
        say("", f"next: python sample.py {quoted(self.config.out)} --prompt {question}")

    def scores(self, model):
        x, y = tasks.encode(self.parts.test, self.tokenizer)
        lines = exact_by_kind(model, x, y, tasks.kinds(self.parts.test))
        return [*lines, f"{mean_loss(model, x, y, 64):.4f} nats per token of the answers"]

    def listen(self, how, prompt):
        if how.stop:
            raise ValueError("--stop: expected none, as an answer ends by itself; leave it out")
        if prompt is not None and not prompt.strip():
            raise ValueError("--prompt: expected a question, got none; leave it out for the report")
        self.how = how

    def reply(self, model, words, rng):
        """Print the answer to a question, without the question."""
        question = self.known(words)
        if not question.strip():
            print("sample.py: nothing is asked", file=sys.stderr)
            return
        asked = tasks.asked(question)
        for pieces in self.texts(model, asked, rng, stop="\n", temperature=0):
            print(visible("".join(pieces).strip()))

    def without_prompt(self, model, how, read):
        self.listen(how, None)
        return read() or super().without_prompt(model, how, read)
