"""The floor: the matrix products of one training step in NumPy, and nothing else."""

import numpy as np

from tests.benchmarks import competitor


def products(shape, batch):
    """The products a @ b of a GPT's forward pass: (shape of a, shape of b, how often), ...

    Causal attention needs half of its products: all of them, for half of the heads.
    """
    V, T, L, H, C = (shape[n] for n in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"))
    N, heads, D = batch * T, (batch, H // 2), C // H
    linear = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]
    attention = [((*heads, T, D), (*heads, D, T), L), ((*heads, T, T), (*heads, T, D), L)]
    return [*(((N, w[0]), w, L) for w in linear), ((N, C), (C, V), 1), *attention]


def train(shape, batch):
    rng, work = np.random.default_rng(0), []
    for *pair, times in products(shape, batch):
        a, b = (rng.standard_normal(size, np.float32) for size in pair)
        work += [(a, b, a @ b, np.empty_like(a), np.empty_like(b))] * times

    def step(x, y):
        for a, b, y, da, db in work:
            np.matmul(a, b, out=y)
            np.matmul(y, b.mT, out=da)
            np.matmul(a.mT, y, out=db)

    competitor.train(step, shape, batch)
