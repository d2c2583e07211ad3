"""One trial of each kernel: what its pair computes on the stand-in, beside the definition."""

from types import SimpleNamespace

import numpy as np

from .standin import StrictArray  # first: it makes tests/ known to Python

# isort: split
from gradcheck import draw, run

import emulator
from minigpt.engine import convolution, fast_cupy, functional, recipe
from minigpt.engine.autograd import plain
from minigpt.training.gpu import Queued
from minigpt.training.muon import Muon
from minigpt.training.optim import SGD, AdamW, clip


def there(x, dtype):
    """x on the stand-in, in this type if it is an array of floats"""
    if not isinstance(x, np.ndarray):
        return x
    return StrictArray(x.astype(dtype) if x.dtype.kind == "f" else x)


def values(f, *args):
    """A trial of a formula's value: dtype -> by its pair, by its definition in float64"""

    def trial(dtype):
        with plain():
            expected = f(*args)
        return [f(*(there(x, dtype) for x in args)).data._array], [expected.data]

    return trial


def gradients(f, *args):
    """A trial of a formula's gradients: dtype -> by its pair, by its definition in float64"""

    def trial(dtype):
        with plain():
            expected = run(f, *args)[1]
        return run(f, *args, dtype=dtype, put=StrictArray)[1], expected

    return trial


def drawn(*shape, seed=0):
    """Standard normal numbers that float32 holds exactly."""
    return draw(*shape, seed=seed).astype(np.float32).astype(float)


def ranks(dtype):
    ids = np.arange(600) * 7 % 90 - 3
    mine = [there(a, dtype) for a in (ids, 0 * ids, 0 * ids)]
    fast_cupy.launch("sort_ids", (3,), (256,), *mine, len(ids))
    order = ids.argsort(kind="stable")
    return [a._array for a in mine[1:]], [ids[order], order]


def norm(dtype):
    g = drawn(5000)
    return [fast_cupy.squared_norm(there(g, dtype))._array], [np.array([g @ g])]


def vectors(dtype=None):
    """What Flat keeps of three matrices, two of one shape and a tall one, a table and a bias."""
    put = (lambda a: there(a, dtype)) if dtype else np.copy
    between = np.arange(200) // 4 == 39  # from the last matrix to the next multiple of 16
    places = [(slice(0, 48), (6, 8)), (slice(48, 96), (6, 8)), (slice(96, 156), (10, 6))]
    data, grad = (put(np.where(between, 0, drawn(200, seed=i))) for i in range(2))
    flat = {"data": data, "grad": grad, "hidden": 160, "decayed": 180}
    return SimpleNamespace(**flat, matrices=places, ranks=None)


def steps(kind):
    """A trial of an optimizer: three clipped steps, of which the second one's gradient is short
    enough to stay as it is."""

    def trial(dtype):
        flat, there_too = vectors(), vectors(dtype)
        defined, queued = kind(flat), Queued(kind(there_too), 1.0)
        g = flat.grad.copy()
        for number, size in ((1, 1.0), (2, 2.0**-13), (3, 4.0)):
            flat.grad[:] = there_too.grad._array[:] = size * g
            clip(flat.grad, 1.0)
            with plain():
                defined.step(0.01, number)
            queued.step(StrictArray(np.array(1.0, dtype)), 0.01, number, 1.0, 0.5)
        got = [there_too.data, there_too.grad, *queued.optimizer.moments.values()]
        return [a._array for a in got], [flat.data, flat.grad, *defined.moments.values()]

    return trial


B, H, T, D = 2, 3, 40, 4
q, k, v = (drawn(B, H, T, D, seed=seed) for seed in range(3))
mask = np.ones((B, T), int)
mask[1, :5] = 0  # the second text begins with padding, of which one key is no number
broken = k.copy()
broken[1, :, 2] = np.nan

norm_of = functional.layer_norm, 100 + drawn(130, 70), drawn(70, seed=1), drawn(70, seed=2)
loss = functional.cross_entropy, 3 * drawn(6, 600), np.array([1, 599, -100, 0, 2, 300])
table = functional.embedding, drawn(7, 70), np.arange(40) % 3 * 3
shifted = recipe.token_shift, drawn(2, 7, 23)
turned = recipe.rotary, drawn(2, 5, 3, 4), slice(2, 7)

TRIALS = {
    "softmax_forward": values(functional.attention, q, broken, v, mask, 9),
    "softmax_backward": gradients(functional.attention, q, k, v, mask, 9),
    "cross_entropy_forward": values(*loss),
    "cross_entropy_backward": gradients(*loss),
    "layer_norm_forward": values(*norm_of),
    "layer_norm_backward": gradients(*norm_of),
    "layer_norm_weights": gradients(*norm_of),
    "column_sum": gradients(functional.linear, drawn(200, 3), drawn(3, 40), drawn(40)),
    "sort_ids": ranks,
    "embedding_backward": gradients(*table),
    "square_sum": norm,
    "adamw": steps(AdamW),
    "judged": steps(SGD),
    "sgd": steps(SGD),
    "muon_ahead": steps(Muon),
    "muon_apply": steps(Muon),
    "gelu_forward": values(functional.gelu, drawn(301)),
    "gelu_backward": gradients(functional.gelu, drawn(301)),
    "relu2_forward": values(recipe.relu2, drawn(301)),
    "relu2_backward": gradients(recipe.relu2, drawn(301)),
    "relu_forward": values(convolution.relu, drawn(301)),
    "relu_backward": gradients(convolution.relu, drawn(301)),
    "rotary": gradients(*turned),
    "token_shift": gradients(*shifted),
    "dropout": gradients(functional.dropout, drawn(30, 11), 0.3, 7),
}


def tried(name, dtype="float64"):
    """None if the kernel computes what the definition says, else what is wrong, as a sentence."""
    emulator.launches.clear()
    try:
        got, expected = TRIALS[name](dtype)
    except emulator.DeviceFault as fault:
        stopped, _, what = str(fault).partition(": ")
        return what if stopped == name else f"not reached: {stopped} has a fault"
    assert name in emulator.launches, f"the trial of {name} does not run it"
    for y, e in zip(got, expected, strict=True):
        off = np.abs(y - e).max() / (np.abs(e).max() + 1e-300)
        if not off < {"float64": 1e-11, "float32": 2e-5}[dtype]:
            return f"wrong numbers: off by {off:.0e} of the definition's largest"
    return None
