"""One trial of each kernel: what its pair computes on the stand-in, beside the definition."""

from types import SimpleNamespace

import numpy as np

from .standin import StrictArray  # first: it makes tests/ known to Python

# isort: split
from gradcheck import draw, run

import emulator
from minigpt.engine import convolution, fast_cupy, fast_elementwise, functional, recipe
from minigpt.engine.autograd import plain
from minigpt.training.optim import AdamW, clip


def values(f, *args):
    """A trial of a formula's value -> by its pair, by its definition"""

    def trial():
        with plain():
            expected = f(*args)
        moved = (StrictArray(x) if isinstance(x, np.ndarray) else x for x in args)
        return [f(*moved).data._array], [expected.data]

    return trial


def gradients(f, *args):
    """A trial of a formula's gradients -> by its pair, by its definition"""

    def trial():
        with plain():
            expected = run(f, *args)[1]
        return run(f, *args, put=StrictArray)[1], expected

    return trial


def norm():
    g = draw(5000)
    return [fast_cupy.squared_norm(StrictArray(g))._array], [np.array([g @ g])]


def adamw_steps():
    """Three steps, of which the second one's gradient is short enough not to be clipped."""
    w, g = draw(500), draw(500, seed=1)
    flat = SimpleNamespace(data=w.copy(), grad=g.copy(), decayed=300)
    optimizer, mine = AdamW(flat), [StrictArray(a) for a in (w, g.copy(), 0 * w, 0 * w)]
    for number, size in ((1, 1.0), (2, 1e-4), (3, 5.0)):
        flat.grad[:] = mine[1]._array[:] = size * g
        clip(flat.grad, 1.0)
        optimizer.step(0.01, number)
        norm2 = fast_cupy.squared_norm(mine[1])
        settings = 300, 0.01, number, optimizer.betas, optimizer.eps, 0.1, norm2, 1.0
        fast_elementwise.adamw(*mine, *settings)
    return [a._array for a in mine], [flat.data, flat.grad, *optimizer.moments.values()]


B, H, T, D = 2, 3, 40, 4
qkv = [draw(B, H, T, D, seed=seed) for seed in range(3)]
qkv[1][1, :, 2] = np.nan  # a key of the second text, which is padding there
mask = np.ones((B, T), int)
mask[1, :5] = 0
attention = functional.attention, *qkv, mask, 9
attention_alone = functional.attention, *qkv[:1], draw(B, H, T, D, seed=1), qkv[2], mask, 9
norm_of = functional.layer_norm, 100 + draw(130, 70), draw(70, seed=1), draw(70, seed=2)
loss = functional.cross_entropy, 3 * draw(6, 600), np.array([1, 599, -100, 0, 2, 300])
table = functional.embedding, draw(7, 70), np.arange(40) % 3 * 3
shifted = recipe.token_shift, draw(2, 7, 23)
turned = recipe.rotary, draw(2, 5, 3, 4), slice(2, 7)

TRIALS = {
    "softmax_forward": values(*attention),
    "softmax_backward": gradients(*attention_alone),
    "cross_entropy_forward": values(*loss),
    "cross_entropy_backward": gradients(*loss),
    "layer_norm_forward": values(*norm_of),
    "layer_norm_backward": gradients(*norm_of),
    "layer_norm_weights": gradients(*norm_of),
    "column_sum": gradients(functional.linear, draw(200, 3), draw(3, 40), draw(40)),
    "embedding_backward": gradients(*table),
    "square_sum": norm,
    "adamw": adamw_steps,
    "gelu_forward": values(functional.gelu, draw(301)),
    "gelu_backward": gradients(functional.gelu, draw(301)),
    "relu2_forward": values(recipe.relu2, draw(301)),
    "relu2_backward": gradients(recipe.relu2, draw(301)),
    "relu_forward": values(convolution.relu, draw(301)),
    "relu_backward": gradients(convolution.relu, draw(301)),
    "rotary": gradients(*turned),
    "token_shift": gradients(*shifted),
    "dropout": gradients(functional.dropout, draw(30, 11), 0.3, 7),
}


def tried(name):
    """None if the kernel computes what the definition says, else what is wrong, as a sentence."""
    emulator.launches.clear()
    try:
        got, expected = TRIALS[name]()
    except emulator.DeviceFault as fault:
        stopped, _, what = str(fault).partition(": ")
        return what if stopped == name else f"not reached: {stopped} has a fault"
    assert name in emulator.launches, f"the trial of {name} does not run it"
    for y, e in zip(got, expected, strict=True):
        off = np.abs(y - e).max() / (np.abs(e).max() + 1e-300)
        if not off < 1e-11:
            return f"wrong numbers: off by {off:.0e} of the definition's largest"
    return None
