"""minigpt's side of the benchmarks."""

import io
import itertools
import sys
from contextlib import nullcontext

import numpy as np

from minigpt.engine import device, fast_numpy
from minigpt.engine.autograd import plain
from minigpt.engine.functional import cross_entropy
from minigpt.generate import generate
from minigpt.hub import hub_name
from minigpt.nn import model_class
from minigpt.nn.gpt import GPTConfig
from minigpt.nn.module import Flat
from minigpt.training import processes
from minigpt.training.optim import AdamW, clip
from tests.benchmarks import competitor
from tests.benchmarks.competitor import BETAS, CLIP, DECAY, RATE


def build(shape, form="gpt2"):
    model = model_class(form)(GPTConfig(**shape), np.random.default_rng(0))
    for name, p in model.named_parameters().items():
        p.data[...] = competitor.array(hub_name(name), p.shape)
    return model


def do_without(name):
    """Delete a fast pair, or do without "keep_pages", the tuned allocator."""
    if name != "keep_pages":
        device.keep_pages()
        vars(fast_numpy).pop(f"{name}_forward", None)


def train(shape, batch, workers=1, definitions=False, without="", form="gpt2"):
    do_without(without)
    processes.run(workers, work, shape, batch, definitions, form)


def work(ranks, shape, batch, definitions, form):
    """What every rank does; rank 0 alone listens and answers."""
    from tests.benchmarks import mini_stack  # which imports this file

    model = (mini_stack.build if form in ("lstm", "cnn") else build)(shape, form)
    flat = Flat(model, ranks)
    optimizer, numbers = AdamW(flat, DECAY, BETAS), itertools.count(1)
    mine = slice(ranks.rank, None, ranks.size)

    def step(x, y):
        y = y[:, -1] if form == "cnn" else y
        loss = cross_entropy(model(x[mine]), y[mine], count=y.size)
        loss.backward()
        ranks.all_reduce(flat.grad)
        clip(flat.grad, CLIP)
        optimizer.step(RATE, next(numbers))
        return sum(ranks.all_gather(loss.item()))

    with plain() if definitions else nullcontext():
        hear = (lambda: None) if ranks.rank else sys.stdin.readline
        lines = iter(lambda: ranks.all_gather(hear())[0], "")  # until rank 0 reads the end
        competitor.train(step, shape, batch, lines, io.StringIO() if ranks.rank else sys.stdout)


def sample(shape, prompt, without=""):
    do_without(without)
    model, rng = build(shape), np.random.default_rng(2)

    def write(ids, tokens, greedy):
        columns = generate(model, list(ids), tokens, rng, temperature=0.0 if greedy else 1.0)
        return np.stack(list(columns), axis=1)

    competitor.sample(write, shape, prompt)
