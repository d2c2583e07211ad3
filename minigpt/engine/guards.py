"""What formulas and optimizers refuse, so that no wrong value comes out without a word.

`fused` in functional.py calls the guard of a formula's name, whether the definition or its pair
computes. NumPy would read id -1 as the last row, and numbers of a strange type as other numbers.
On a GPU ids are not looked at here, as that would wait for the GPU; the Trainer checks each batch.
"""

import math
from functools import wraps

import numpy as np

from minigpt.engine.autograd import now

IGNORED = -100  # a target that is not scored, as in PyTorch and Hugging Face


def within(name, below=1.0, **numbers):
    """Raises ValueError unless 0 <= number < below."""
    for what, number in numbers.items():
        if not 0 <= number < below:
            limit = f" < {below:g}" if below < math.inf else ""
            raise ValueError(f"{name}: expected 0 <= {what}{limit}, got {number}")


def check_ids(name, ids, n):
    """Raises TypeError unless ids are integers, IndexError unless all are in 0 .. n - 1."""
    kind = getattr(getattr(ids, "dtype", None), "kind", "no array")
    if kind not in "iu":
        got = getattr(ids, "dtype", type(ids).__name__)
        raise TypeError(f"{name}: expected an array of ids that are integers, got {got}")
    if not isinstance(ids, np.ndarray) or not ids.size:
        return
    # Of a few, as in sampling, Python finds the extremes in a fifth of NumPy's time.
    few = ids.ravel().tolist() if ids.size < 32 else (ids.min(), ids.max())
    if min(few) < 0 or max(few) >= n:
        wrong = ids[(ids < 0) | (ids >= n)][0]
        raise IndexError(f"{name}: expected ids from 0 to {n - 1}, got {wrong}")


def _embedding(w, ids):
    if not isinstance(ids, slice):  # of positions
        check_ids("embedding", ids, len(w))


def _cross_entropy(z, targets, count=None):
    if getattr(targets, "shape", None) != z.shape[:-1]:
        if not hasattr(targets, "shape"):
            check_ids("targets", targets, 0)  # raises, as this is no array
        raise ValueError(f"targets: expected shape {z.shape[:-1]}, got {targets.shape}")
    scored = targets[targets != IGNORED] if isinstance(targets, np.ndarray) else targets
    check_ids("targets", scored, z.shape[-1])


def _attention(q, k, v, mask=None, window=None, causal=True):
    (B, H, T, D), S = q.shape, k.shape[2]
    if k.shape != (B, H, S, D) or v.shape[:3] != (B, H, S):
        need = "q (B, H, T, D), k (B, H, S, D), v (B, H, S, E)"
        raise ValueError(f"attention: expected {need}, got {q.shape}, {k.shape}, {v.shape}")
    if causal and T > S:
        raise ValueError(f"attention: expected at most as many queries as keys, {S}, got {T}")
    if mask is not None and mask.shape != (B, S):
        raise ValueError(f"attention: expected a mask of shape {(B, S)}, got {mask.shape}")


def _dropout(x, p, seed):
    within("dropout", p=p)


def _conv2d(x, w, b, stride=1, padding=0, dilation=1):
    _window(stride=stride, dilation=dilation)
    _window(0, padding=padding)


def _max_pool2d(x, size=2, stride=None, padding=0):
    _window(size=size, stride=size if stride is None else stride)
    _window(0, padding=padding)


def _window(least=1, **options):
    """Raises ValueError unless each option is a whole number, or a pair of them, >= least."""
    for name, value in options.items():
        both = value if isinstance(value, tuple) else (value, value)
        if len(both) != 2 or not all(isinstance(n, (int, np.integer)) and n >= least for n in both):
            need = f"a whole number >= {least}, or a pair of them"
            raise ValueError(f"{name}: expected {need}, got {value}")


GUARDS = {
    "embedding": _embedding,
    "cross_entropy": _cross_entropy,
    "attention": _attention,
    "dropout": _dropout,
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
}


def moves_weights(step):
    """Let an optimizer's `step` look at its Flat first, and note that the weights change now.

    Then backward() refuses a loss that was computed before. Raises RuntimeError if a parameter is
    no longer a view of the Flat's vectors, or was frozen since: it would be trained no more, or
    decay, without a word.
    """

    @wraps(step)
    def told(self, rate, number):
        for name, p, data, grad in getattr(self.flat, "views", ()):
            if p.data is not data or p.grad is not grad or not p.requires_grad:
                hint = "write p.data[...] = a and p.grad[...] = 0; freeze before Flat(model)"
                raise RuntimeError(f"{name}: expected Flat's own view, not frozen; {hint}")
        if hasattr(self.flat, "changed"):
            self.flat.changed[0] = now()
        return step(self, rate, number)

    return told
