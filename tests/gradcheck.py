"""Run a function with its gradients, and compare these with central differences in float64."""

from contextlib import nullcontext
from functools import reduce

import numpy as np

from minigpt.engine.arrays import to_numpy
from minigpt.engine.autograd import Tensor, no_grad, plain


def draw(*shape, seed=0):
    """Standard normal numbers, float64."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def frozen(x, dtype=None):
    """x, layout kept, as an array that nobody may write to."""
    x = x.astype(dtype or x.dtype, copy=False).view()
    x.flags.writeable = False
    return x


def run(f, *args, dtype=None, put=lambda x: x):
    """f's outputs, and the gradients of its float arrays for a random projection of the outputs.

    Float arrays become Tensors, other arrays stay arrays, both moved by `put`; the rest is passed
    on. Operands and incoming gradient are read-only, so writing to them raises.
    """
    inputs = [put(frozen(x)) if isinstance(x, np.ndarray) else x for x in args]
    leaves = {i: Tensor(put(frozen(x, dtype)), True) for i, x in enumerate(args) if is_float(x)}
    y = f(*(leaves.get(i, x) for i, x in enumerate(inputs)))
    ys = y if isinstance(y, tuple) else (y,)
    weights = [put(frozen(draw(*y.shape, seed=99 + i), y.dtype)) for i, y in enumerate(ys)]
    if len(ys) == 1:
        y.backward(weights[0])
    else:
        sums = [(y * w).sum() for y, w in zip(ys, weights, strict=True)]
        reduce(lambda a, b: a + b, sums).backward()
    return [to_numpy(y.data) for y in ys], [to_numpy(leaf.grad) for leaf in leaves.values()]


def differences(f, args, step=1e-5):
    """The same gradients as (loss(x + step) - loss(x - step)) / (2 step), one element at a time."""

    def loss(changed):
        with no_grad():
            y = f(*(Tensor(x) if is_float(x) else x for x in changed))
        ys = y if isinstance(y, tuple) else (y,)
        return sum((y.data * draw(*y.shape, seed=99 + i)).sum() for i, y in enumerate(ys))

    grads = []
    for i, x in enumerate(args):
        if is_float(x):
            grads.append(np.zeros(x.shape))
            for index in np.ndindex(x.shape):
                sides = []
                for change in (step, -step):
                    moved = x.copy()
                    moved[index] += change
                    sides.append(loss([*args[:i], moved, *args[i + 1 :]]))
                grads[-1][index] = (sides[0] - sides[1]) / (2 * step)
    return grads


def gradcheck(f, *args):
    """Assert that backward gives f's derivatives for every float array, without and with pairs."""
    for mode in (plain, nullcontext):
        with mode():
            got, expected = run(f, *args)[1], differences(f, args)
        for dx, slope in zip(got, expected, strict=True):
            assert dx.shape == slope.shape and dx.dtype == slope.dtype
            np.testing.assert_allclose(dx, slope, rtol=1e-6, atol=1e-8)
