"""The minigpt side of the benchmark: python -m tests.benchmarks.mini_gpt WEIGHTS [--plain]"""

import contextlib
import sys

import numpy as np

from minigpt.engine import device
from minigpt.engine.autograd import plain
from minigpt.engine.functional import cross_entropy
from minigpt.nn.gpt import GPT, GPTConfig, hugging_face_name
from minigpt.nn.module import Flat
from minigpt.training.optim import AdamW, clip
from tests.benchmarks.worker import BETAS, CLIP, DECAY, RATE, SHAPE, peak_mb, serve


def main():
    imported = peak_mb()
    device.select("cpu")
    model = GPT(GPTConfig(**SHAPE), np.random.default_rng(0))
    arrays = np.load(sys.argv[1])
    model.load_state_dict({n: arrays[hugging_face_name(n)] for n in model.named_parameters()})
    flat = Flat(model)
    optimizer, number = AdamW(flat, DECAY, BETAS), 0

    def step(x, y):
        nonlocal number
        number += 1
        loss = cross_entropy(model(x), y)
        loss.backward()
        clip(flat.grad, CLIP)
        optimizer.step(RATE, number)
        return loss.item()

    with plain() if "--plain" in sys.argv else contextlib.nullcontext():
        serve(step, imported)


if __name__ == "__main__":
    main()
