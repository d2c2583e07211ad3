"""A run that was stopped and resumed is the undisturbed run, whatever it is that learns.

COMBINATIONS=all in the environment tries the whole design below, 49 runs, which takes minutes.
"""

import os
import random
import re
import signal
from dataclasses import asdict, fields, replace
from functools import cache
from itertools import combinations, islice, product
from pathlib import Path

import pytest

import train
from minigpt.applications import options
from minigpt.datasets import examples, tasks
from minigpt.nn import FAMILIES
from minigpt.training.checkpoint import read_about
from minigpt.training.config import Config
from minigpt.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog. " * 40
LINES = [f"{a} {i}\t{b}" for i in range(30) for a, b in (("yes", "oui"), ("no", "non"))]
STEPS, EVERY, FEW = 6, 2, 16
ASKED = {"pairs.tsv": 16, "qa": 600, "translation": 200}  # tasks: tokens of the longest example
WORDS = ["text.txt", *ASKED]
DATA = [*WORDS, "digits", "sounds", "tumours", "credit"]
FACTORS = {
    "data": DATA,
    "model": [*FAMILIES, "gpt2-mini", "gpt3-125m"],
    "tokenizer": ["char", "bpe"],
    "optimizer": ["muon", "adamw", "sgd"],
    "workers": ["1", "2"],
    "accumulate": ["1", "2"],
    "dropout": ["0", "0.2"],
}


def possible(choice):
    """Whether these go together: the papers' models and byte pairs are for words alone."""
    return choice["data"] in WORDS or (
        choice["model"] in FAMILIES and choice["tokenizer"] == "char"
    )


def design():
    """Yield choices until each two values that go together were tried together.

    Each is one of those with the most pairs that are new, so the first few are worth the most.
    """
    every = [dict(zip(FACTORS, values, strict=True)) for values in product(*FACTORS.values())]
    every = [choice for choice in every if possible(choice)]
    random.Random(0).shuffle(every)
    pairs = [set(combinations(choice.items(), 2)) for choice in every]
    left = set().union(*pairs)
    while left:
        best = max(range(len(every)), key=lambda i: len(pairs[i] & left))
        left -= pairs[best]
        yield every[best]


CHOSEN = list(islice(design(), None if os.environ.get("COMBINATIONS") == "all" else 10))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a text and pairs; of what the project ships, a few examples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "pairs.tsv").write_text("\n".join(LINES))
    monkeypatch.setattr(tasks, "load", few_questions)
    monkeypatch.setattr(examples, "load", few_examples)


@cache
def few_questions(*given, load=tasks.load):
    return tasks.Task(*(part[:FEW] for part in load(*given)))


@cache
def few_examples(*given, load=examples.load):
    whole = load(*given)
    parts = {name: getattr(whole, name) for name in ("train", "validation", "test")}
    whole = replace(whole, **{name: (x[:FEW], y[:FEW]) for name, (x, y) in parts.items()})
    if whole.groups:
        whole.groups = whole.groups[0], whole.groups[1][:FEW]
    return whole


def words_of(choice):
    """What train.py is told."""
    words = f"--steps {STEPS} --eval-every {EVERY} --n-layer 1 --n-embd 16 --batch-size 8".split()
    of_words = choice["data"] in WORDS
    for name, value in choice.items():
        words += [f"--{name}", value] * (of_words or name != "tokenizer")
    if of_words:
        words += ["--block-size", str(ASKED.get(choice["data"], 16))]
        words += ["--vocab-size", "300"] * (choice["tokenizer"] == "bpe")
    if choice["model"] not in ("lstm", "gru", "rnn", "conv"):
        words += ["--n-head", "2"]
    return words


def stopped_after(step, monkeypatch, words):
    """Train until a signal comes at the end of this step."""
    train_step = Trainer.train_step

    def told(self):
        train_step(self)
        if self.step == step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", told)
        assert train.main(words) == signal.SIGTERM


def left(run):
    """All that a run has left, without its seconds, which alone differ."""
    files = {file.name: file.read_bytes() for file in Path(run).iterdir()}
    assert files.pop("curve.svg").endswith(b"</svg>\n")  # it is drawn over seconds
    files["log.csv"] = [line.rpartition(b",")[0] for line in files["log.csv"].splitlines()]
    if "samples.txt" in files:
        lines = [line.split(b"\t") for line in files["samples.txt"].splitlines()]
        files["samples.txt"] = [(step, *words) for step, _, *words in lines]
    return files


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals")
@pytest.mark.parametrize("choice", CHOSEN, ids=lambda choice: "-".join(choice.values()))
def test_a_stopped_and_resumed_run_of_any_kind_leaves_what_the_undisturbed_one_does(
    place, monkeypatch, choice
):
    words = words_of(choice)
    step = random.Random(str(choice)).randrange(1, STEPS)
    train.main([*words, "--out", "whole"])
    stopped_after(step, monkeypatch, [*words, "--out", "run"])
    assert read_about("run/last.safetensors")["state"]["step"] == step
    train.main(["--resume", "--out", "run"])
    assert left("run") == left("whole")


@pytest.mark.parametrize("name", [f.name for f in fields(Config)])
def test_the_options_that_may_change_are_those_that_the_help_of_resume_names(name):
    [resume] = [a for a in train.command_line()._actions if a.dest == "resume"]
    told = {word.replace("-", "_") for word in re.findall(r"--([a-z-]+)", resume.help)}
    about = {"config": asdict(Config()), "state": {"step": 1}}
    if name in told or name == "out":  # --out only says where the run lies now
        assert options.continued({name: 7}, about)[name] == 7
    else:
        with pytest.raises(ValueError, match="this run has .*, got 7; "):
            options.continued({name: 7}, about)
