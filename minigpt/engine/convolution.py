"""Convolution, ReLU and pooling, each defined once, in primitive ops; functional.py has the rest.

B batch, Y rows, X columns, C channels, which come last.
"""

import math
from functools import partial, reduce

from numpy import ndindex

from minigpt.engine import fast_convolution, functional
from minigpt.engine.autograd import raw
from minigpt.engine.ops import add, concatenate, matmul, pad, reshape, split, where

fused = partial(functional.fused, files={"numpy": fast_convolution})


@fused
def relu(x):
    """y = max(x, 0).  Source: Nair & Hinton 2010"""
    return where(raw(x) <= 0, 0.0, x)


def pair(n):
    """n for rows and for columns: 3 -> (3, 3); a pair stays"""
    return n if isinstance(n, tuple) else (n, n)


def _windows(x, size, stride, padding, dilation, fill=0.0):
    """For each place in a window, row by row: what stands there in all windows (B, Y', X', C)."""
    size, (sy, sx), (py, px), (dy, dx) = map(pair, (size, stride, padding, dilation))
    if py or px:
        x = pad(x, [(0, 0), (py, py), (px, px), (0, 0)], fill)
    Y, X = x.shape[1] - dy * (size[0] - 1), x.shape[2] - dx * (size[1] - 1)  # where windows begin
    if Y < 1 or X < 1:
        raise ValueError(f"window: expected at most {x.shape[1:3]}, the padded input, got {size}")
    for i, j in ndindex(size):
        yield x[:, dy * i : dy * i + Y : sy, dx * j : dx * j + X : sx]


@fused
def conv2d(x, w, b, stride=1, padding=0, dilation=1, groups=1):
    """y = b + sum over places (i, j) of x[stride (row, column) + dilation (i, j) - padding] w[i, j]

    x (B, Y, X, C), w (I, J, C / groups, O), b (O,) or None -> (B, Y', X', O), with
    Y' = (Y + 2 padding - dilation (I - 1) - 1) // stride + 1; options are ints or pairs. Each group
    of output channels sees its own group of input channels. As torch's, but channels come last.
    Source: LeCun et al. 1989; Dumoulin & Visin 2016, arXiv 1603.07285.
    """
    y = b
    parts = _windows(x, w.shape[:2], stride, padding, dilation)
    for place, part in zip(ndindex(w.shape[:2]), parts, strict=True):
        pairs = zip(split(part, groups, 3), split(w[place], groups, 1), strict=True)
        part = concatenate([matmul(x, w) for x, w in pairs], 3)
        y = part if y is None else part + y
    return y


def conv1d(x, w, b, stride=1, padding=0, dilation=1, groups=1):
    """conv2d over one axis.  x (B, T, C), w (K, C / groups, O), b (O,) or None -> (B, T', O)"""
    x, w = reshape(x, (x.shape[0], 1, *x.shape[1:])), reshape(w, (1, *w.shape))
    y = conv2d(x, w, b, (1, stride), (0, padding), (1, dilation), groups)
    return reshape(y, (y.shape[0], *y.shape[2:]))


@fused
def max_pool2d(x, size=2, stride=None, padding=0):
    """y = the largest x in each window, its first if equal.  (B, Y, X, C) -> (B, Y', X', C)

    stride None: windows lie side by side. NaN counts as largest. Source: Ranzato et al. 2007.
    """
    parts = _windows(x, size, stride or size, padding, 1, -math.inf)
    return reduce(lambda y, x: where((raw(x) > raw(y)) | (raw(x) != raw(x)), x, y), parts)


def avg_pool2d(x, size=2, stride=None, padding=0):
    """y = the mean of x in each window, padding counted as 0.  (B, Y, X, C) -> (B, Y', X', C)"""
    parts = _windows(x, size, stride or size, padding, 1)
    return reduce(add, parts) * (1 / math.prod(pair(size)))
