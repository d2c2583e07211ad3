"""Which library owns an array, NumPy or CuPy. The arrays decide where a computation runs.

CuPy has NumPy's functions for arrays on a GPU. Every op asks `module_of` for the library of its
operand and calls that library's function, so the same code runs on both.
"""

import math

import numpy as np

LIBRARIES = {np.ndarray: np}  # type of array -> its library; device.py adds CuPy if a GPU answers


def module_of(x):
    """The library that owns the array x; Python and NumPy scalars belong to NumPy."""
    return LIBRARIES.get(type(x), np)


def to_numpy(x):
    """The array x as a NumPy array, copied from the GPU if it is there."""
    xp = module_of(x)
    return np.asarray(x) if xp is np else xp.asnumpy(x)


def quiet():
    """Within `with quiet():` NumPy warns of no number that is not finite: the caller looks."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


LONG = 1 << 12  # terms of a sum from which on float32 would lose digits


def total(x, axis=None, keepdims=False):
    """The sum of x over axis. Along the last axis NumPy adds by halves, along others one by one; a
    large float32 sum then loses the last digits of each new term. So these add up in float64."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    last = {-1, x.ndim - 1}.intersection(axes)
    wide = x.ndim and not last and math.prod(x.shape[i] for i in axes) > LONG
    y = x.sum(axis=axis, keepdims=keepdims, dtype=np.float64 if wide else None)
    return y.astype(x.dtype) if wide else y


def uniform(xp, shape, seed):
    """Random numbers in [0, 1), float32, in an array of library xp.

    The same seed gives the same numbers again: they come from Philox, a generator that computes the
    n-th number from (seed, n) and has no other state.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    philox = xp.random.Philox if xp is np else xp.random.Philox4x3210
    return xp.random.Generator(philox(seed)).random(shape, dtype=xp.float32)
