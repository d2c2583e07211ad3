"""Convolution, ReLU and pooling, each defined once, in primitive ops.

B batch, Y rows, X columns, C channels, which come last. A channel is one number per pixel: a grey
picture has one, a coloured picture has three, and the result of a convolution has many.
"""

import math
from functools import reduce

from numpy import ndindex

from minigpt.engine.autograd import raw
from minigpt.engine.functional import fused
from minigpt.engine.ops import matmul, pad, reshape, where


@fused
def relu(x):
    """y = max(x, 0).  Source: Nair & Hinton 2010"""
    return where(raw(x) <= 0, 0.0, x)


def pair(n):
    """n for rows and for columns: 3 -> (3, 3); a pair stays"""
    return n if isinstance(n, tuple) else (n, n)


def _windows(x, size, stride, padding, dilation, fill=0.0):
    """For each place in a window, row by row: what stands there in all windows (B, Y', X', C)

    Windows begin at every `stride`-th row and column, and the places in a window lie `dilation`
    apart. So what stands at one place in all windows is one strided slice of x.
    Raises ValueError if a window is larger than the padded input.
    """
    (sy, sx), (py, px), (dy, dx) = pair(stride), pair(padding), pair(dilation)
    if py or px:
        x = pad(x, [(0, 0), (py, py), (px, px), (0, 0)], fill)
    Y, X = x.shape[1] - dy * (size[0] - 1), x.shape[2] - dx * (size[1] - 1)  # where windows begin
    if Y < 1 or X < 1:
        raise ValueError(f"window: expected at most {x.shape[1:3]}, the padded input, got {size}")
    for i, j in ndindex(size):
        rows = slice(dy * i, dy * i + Y, sy)
        columns = slice(dx * j, dx * j + X, sx)
        yield x[:, rows, columns]


@fused
def conv2d(x, w, b, stride=1, padding=0, dilation=1):
    """A window slides over the image; each output is a weighted sum of what the window shows.

    y = b + sum over places (i, j) of x[stride (row, column) + dilation (i, j) - padding] w[i, j]
    x (B, Y, X, C), w (I, J, C, O), b (O,) or None -> (B, Y', X', O), with
    Y' = (Y + 2 padding - dilation (I - 1) - 1) // stride + 1; options are ints or pairs.
    Source: LeCun et al. 1989; Dumoulin & Visin 2016, arXiv 1603.07285.
    """
    size, y = w.shape[:2], b
    parts = _windows(x, size, stride, padding, dilation)
    for place, part in zip(ndindex(size), parts, strict=True):
        product = matmul(part, w[place])
        y = product if y is None else product + y
    return y


def conv1d(x, w, b, stride=1, padding=0, dilation=1):
    """conv2d over one axis.  x (B, T, C), w (K, C, O), b (O,) or None -> (B, T', O)"""
    x, w = reshape(x, (x.shape[0], 1, *x.shape[1:])), reshape(w, (1, *w.shape))
    y = conv2d(x, w, b, (1, stride), (0, padding), (1, dilation))
    return reshape(y, (y.shape[0], *y.shape[2:]))


@fused
def max_pool2d(x, size=2, stride=None, padding=0):
    """y = the largest x in each window, the first of equals.  (B, Y, X, C) -> (B, Y', X', C)

    stride None: windows lie side by side. NaN counts as largest. Source: Ranzato et al. 2007.
    """
    parts = _windows(x, pair(size), stride or size, padding, 1, -math.inf)

    def larger(y, x):
        new_nan = (raw(x) != raw(x)) & (raw(y) == raw(y))
        return where((raw(x) > raw(y)) | new_nan, x, y)

    return reduce(larger, parts)
