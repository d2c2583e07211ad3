"""What both sides share: batches, memory, and steps on command."""

import json
import resource
import sys
import time

import numpy as np

SHAPE = {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
BATCH, RATE, DECAY, BETAS, CLIP = 12, 1e-3, 0.1, (0.9, 0.99), 1.0


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(step, imported_mb):
    """For every number of steps on standard input, train that long and answer one JSON line.

    Tokens are drawn from a skewed distribution, so that there is something to learn.
    """
    rng = np.random.default_rng(1)
    V, T = SHAPE["vocab_size"], SHAPE["block_size"]
    p = 1 / np.arange(1, V + 1)
    for line in sys.stdin:
        ms, losses = [], []
        for _ in range(int(line)):
            ids = rng.choice(V, (BATCH, T + 1), p=p / p.sum())
            start = time.perf_counter()
            losses.append(step(ids[:, :-1], ids[:, 1:]))
            ms.append((time.perf_counter() - start) * 1000)
        answer = {"ms": ms, "losses": losses, "peak_mb": peak_mb(), "imported_mb": imported_mb}
        print(json.dumps(answer), flush=True)
