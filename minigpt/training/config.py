"""Everything a run can be told: one dataclass, which is also its command line and its JSON."""

import argparse
import math
import operator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, fields
from functools import partial

from minigpt.messages import nearest, visible
from minigpt.training import OPTIMIZERS
from minigpt.training.optim import SCHEDULES

COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def option(default, text, *bounds, **argument):
    """A field with its help and the bounds of its number: option(3, "how many", (">=", 1))."""
    metadata = {"help": text, "bounds": bounds, "argument": argument}
    return field(default_factory=partial(copy, default), metadata=metadata)


@dataclass
class Config:
    """The options of train.py; the texts are its --help."""

    data: list = option(
        ["manual"],
        "manual (this Python's documentation), text files or a folder of them; to answer: qa, "
        "translation, a .tsv; to classify: digits, sounds, tumours, credit, a .csv with --target, "
        "MNIST's folder, or a folder with a subfolder of .npy, .wav, .png or .jpg for each class",
        nargs="+",
    )
    model: str = option(
        "gpt",
        "gpt: attention; lstm, gru, rnn: recurrence; conv: convolution; gpt2-mini: GPT-2's own "
        "form, small; or the papers' gpt2 (-medium, -large, -xl), gpt3-125m (-350m, -760m, -1.3b, "
        "-2.7b, -6.7b, -13b, -175b); the defaults below are those of gpt on text, other models and "
        "data may have their own",
        metavar="NAME",
    )
    tokenizer: str = option("char", "bpe: frequent strings as tokens")
    vocab_size: int = option(4096, "with bpe: how many tokens at most", (">=", 257))
    target: str = option(None, "column of a .csv that holds the class to predict", metavar="NAME")
    out: str = option(
        None, "folder of the run; default out/DATA-MODEL, or out/DATA-from-RUN", metavar="DIR"
    )
    init: str = option(
        None,
        "begin with the weights, shape and tokenizer of another run, or of a GPT-2 in Hugging "
        "Face's files, instead of random weights",
        metavar="RUN|FOLDER",
    )
    minutes: float = option(3.0, "training time; a longer run reaches a lower loss", (">", 0))
    steps: int = option(None, "number of updates, instead of --minutes", (">=", 1))
    n_layer: int = option(2, "blocks: more find deeper patterns, each slows a step", (">=", 1))
    n_head: int = option(4, "attention heads; must divide n-embd, best 16 wide or more", (">=", 1))
    n_embd: int = option(128, "width; raise it for longer texts and runs", (">=", 1))
    block_size: int = option(256, "tokens of context; more learn later, then better", (">=", 1))
    batch_size: int = option(8, "windows per update; more: slower, smoother steps", (">=", 1))
    device: str = option("auto", "auto: a GPU if one answers", choices=["auto", "cpu", "gpu"])
    dropout: float = option(
        0.0, "probability of dropping; raise it for small texts", (">=", 0), ("<", 1)
    )
    optimizer: str = option("muon", "muon; adamw or sgd to compare", choices=[*OPTIMIZERS])
    learning_rate: float = option(4e-3, "the peak rate; lower it if the loss jumps", (">", 0))
    warmup: int = option(20, "steps to the peak rate; raise it if early losses jump", (">=", 0))
    schedule: str = option(
        "stable", "stable: flat, then down to 0; cosine: to a tenth", choices=[*SCHEDULES]
    )
    weight_decay: float = option(0.1, "shrinks matrices and tables; more for small text", (">=", 0))
    accumulate: int = option(1, "compute a batch in N parts: less memory, same update", (">=", 1))
    workers: int = option(
        None, "processes that share a batch; default: as many as cores, if it pays", (">=", 1)
    )
    precision: str = option(
        "float32", "of products on a GPU; tf32 is faster", choices=["float32", "tf32"]
    )
    eval_every: int = option(100, "steps between validations, samples and checkpoints", (">=", 1))
    patience: int = option(
        5, "once the rate falls, stop after N validations without a new best", (">=", 1)
    )
    seed: int = option(1337, "for weights, data order, samples, generated data", (">=", 0))
    plain: bool = option(False, "run the definitions alone: slower, the same but for rounding")

    @classmethod
    def restored(cls, about, path):
        """The options in a checkpoint.  Raises ValueError if they are not those of this version, or
        no command line could have given them: a file may come from a stranger."""
        try:
            for f in fields(cls):
                if not possible(f, value := about["config"][f.name]):
                    raise TypeError(f"{f.name} = {value!r:.60}")
            return cls(**about["config"])
        except (KeyError, TypeError) as error:
            remedy = "open it with the minigpt that wrote it"
            need = "expected the options of this version"
            raise ValueError(f"{path}: {need}, got {error}; {remedy}") from None

    def __post_init__(self):
        if self.batch_size % self.accumulate:
            expected = f"a divisor of --batch-size {self.batch_size}"
            raise ValueError(f"--accumulate: expected {expected}, got {self.accumulate}")
        if (self.workers or 1) > (windows := self.batch_size // self.accumulate):
            expected = f"at most {windows}, --batch-size / --accumulate"
            raise ValueError(f"--workers: expected {expected}, got {self.workers}")


def possible(f, value):
    """Whether a value is of the kind of this field of Config, within its bounds and choices."""
    kinds = (int, float) if f.type is float else f.type
    if value is None:
        return f.default_factory() is None
    if not isinstance(value, kinds) or isinstance(value, bool) != (f.type is bool):
        return False
    if f.type in (int, float):
        bounds = (*f.metadata["bounds"], ("<", 2**31))
        return all(COMPARE[sign](value, bound) for sign, bound in bounds)
    words = value if f.type is list else [value] if f.type is str else []
    choices = f.metadata["argument"].get("choices")
    return all(
        isinstance(w, str) and w.isprintable() and (not choices or w in choices) for w in words
    )


def number(kind, *bounds):
    """A parser of command line words into int or float within bounds; NaN is within none."""
    bounds = (*bounds, ("<", 2**31)) if kind is int else bounds

    def parse(word):
        with suppress(ValueError, OverflowError):  # no number, or an int beyond every float
            value = kind(word)
            if math.isfinite(value) and all(COMPARE[sign](value, b) for sign, b in bounds):
                return value
        wanted = "a whole number" if kind is int else "a number"
        wanted += " " + " and ".join(f"{sign} {bound}" for sign, bound in bounds)
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {word!r}")

    return parse


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with exit code 2, and name the nearest option."""

    def error(self, message):
        if message.startswith("unrecognized arguments: -"):
            word = message.split()[2].partition("=")[0]
            hint = nearest(word, self._option_string_actions, "--help lists them")
            message = f"unknown option {word}; {hint}"
        elif "invalid choice: '" in message:
            _, word, listed = message.split("'", 2)
            hint = nearest(word, listed.translate(dict.fromkeys(b"',()")).split())
            message += f"; {hint}" if hint else ""
        self.exit(2, f"{self.prog}: {visible(message)}\n")


def add_options(parser, choices):
    """Give the parser an option for every field of Config.

    choices: {field: names} of the fields whose names stand elsewhere. Only options that are used
    reach the namespace, so that the others can still get defaults from the data and the model.
    """
    defaults = Config()
    for f in fields(Config):
        if f.name == "dropout":  # from here on for those who know why
            parser = parser.add_argument_group("more")
        default, how = getattr(defaults, f.name), dict(f.metadata["argument"])
        if f.name in choices:
            how["choices"] = [*choices[f.name]]
        if f.type is bool:
            how["action"] = "store_true"
        elif f.type in (int, float):
            how |= {"type": number(f.type, *f.metadata["bounds"]), "metavar": "N"}
        how["help"] = f.metadata["help"]
        if f.type in (int, float, str) and default is not None:
            how["help"] += f" (default {default})"
        parser.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS, **how)
