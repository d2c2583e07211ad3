"""What every competitor shares: weights, batches, prompts, and work on command.

python -m tests.benchmarks.competitor MODULE TASK OPTIONS, a task being a function of that module
and its options JSON, answers the lines that it reads.
"""

import json
import sys
import time
from importlib import import_module

import numpy as np

RATE, DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.99), 1.0


def array(name, shape):
    """The first value of a weight, the same in every process; transformers' name and shape."""
    noise = np.random.default_rng(list(name.encode())).standard_normal(shape, np.float32) * 0.02
    return noise + 1 if "ln_" in name and name.endswith("weight") else noise


def train(step, shape, batch, lines=sys.stdin, answers=sys.stdout):
    """Answer [steps] with the ms and the losses of as many calls of step(x, y) -> loss.

    Tokens are drawn from a skewed distribution, so that there is something to learn.
    """
    rng, V, T = np.random.default_rng(1), shape["vocab_size"], shape["block_size"]
    p = 1 / np.arange(1, V + 1)

    def work(steps):
        ms, losses = [], []
        for _ in range(steps):
            ids = rng.choice(V, (batch, T + 1), p=p / p.sum())
            start = time.perf_counter()
            losses.append(step(ids[:, :-1], ids[:, 1:]))
            ms.append((time.perf_counter() - start) * 1000)
        return ms, losses

    serve(work, lines, answers)


def sample(write, shape, prompt):
    """Answer [B, tokens, greedy] with [ms] and the ids (B, tokens) that write puts after a prompt;
    write(ids (B, prompt), tokens, greedy)."""

    def work(B, tokens, greedy):
        ids = np.random.default_rng(1).integers(shape["vocab_size"], size=(B, prompt))
        start = time.perf_counter()
        ids = write(ids, tokens, greedy)
        return [(time.perf_counter() - start) * 1000], ids.tolist()

    serve(work, sys.stdin, sys.stdout)


def serve(work, lines, answers):
    """For every line, a JSON list of arguments, write a line with what work(*arguments) returns."""
    for line in lines:
        answer = json.dumps(work(*json.loads(line)), allow_nan=False)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    module, task, options = sys.argv[1:]
    getattr(import_module(f"tests.benchmarks.{module}"), task)(**json.loads(options))
