"""Fast pairs of convolution, ReLU and pooling on NumPy arrays; see fast_numpy.py.

Y rows, X columns, C channels.
"""

import math
from functools import reduce

import numpy as np
from numpy.lib.stride_tricks import as_strided

_ROOM = 1 << 18  # elements of a matrix of windows: 1 MB stays in the L2 cache


def _two(n):
    return n if isinstance(n, tuple) else (n, n)


def _places(shape, size, stride, padding, dilation):
    """How many windows fit down and across.  Raises ValueError if none does."""
    options = zip(shape[1:3], size, _two(stride), _two(padding), _two(dilation), strict=True)
    counts = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in options]
    if min(counts) < 1:
        padded = tuple(n + 2 * p for n, p in zip(shape[1:3], _two(padding), strict=True))
        raise ValueError(f"window: expected at most {padded}, the padded input, got {tuple(size)}")
    return counts


def _plan(x, w, stride, padding, dilation):
    """-> the parts of the batch, room for one part in a frame of zeros, and two views of it: what
    the frame surrounds, and all windows (n, Y', X', I, J, C)"""
    (B, Y, X, C), (n_i, n_j) = x.shape, w.shape[:2]
    (sy, sx), (py, px), (dy, dx) = map(_two, (stride, padding, dilation))
    rows, columns = _places(x.shape, (n_i, n_j), stride, padding, dilation)
    n = min(max(1, _ROOM // max(1, rows * columns * n_i * n_j * C)), max(1, B))
    room = np.zeros((n, Y + 2 * py, X + 2 * px, C), x.dtype)
    a, b, c, d = room.strides
    strides = a, sy * b, sx * c, dy * b, dx * c, d
    windows = as_strided(room, (n, rows, columns, n_i, n_j, C), strides)
    parts = [slice(i, i + n) for i in range(0, B, n)]
    return parts, room, room[:, py : py + Y, px : px + X], windows


def conv2d_forward(x, w, b, stride=1, padding=0, dilation=1, groups=1):
    """im2col: windows become rows of a matrix, a few images at a time, so that it stays in cache
    (without it a step of the CNN in tests/benchmarks takes 116 % longer)."""
    how = stride, padding, dilation
    cuts = zip(np.split(x, groups, 3), np.split(w, groups, 3), strict=True)
    y = _joined([_forward(x, w, *how) for x, w in cuts])
    if b is not None:
        y += b
    return y, (x, w, b is not None, how, groups)


def _joined(arrays):
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, 3)


def _forward(x, w, *how):
    parts, _, inside, windows = _plan(x, w, *how)
    y = np.empty((len(x), *windows.shape[1:3], w.shape[3]), x.dtype)
    matrix, w = np.empty(windows.shape, x.dtype), w.reshape(-1, w.shape[3])
    for part in parts:
        n = len(x[part])
        inside[:n] = x[part]
        matrix[:n] = windows[:n]
        np.matmul(matrix[:n].reshape(-1, len(w)), w, out=y[part].reshape(-1, w.shape[1]))
    return y


def conv2d_backward(dy, saved):
    """dw = windows^T dy; dx = dy w^T, added to the places that each window came from (col2im)."""
    x, w, biased, how, groups = saved
    cuts = zip(*(np.split(a, groups, 3) for a in (x, w, dy)), strict=True)
    dxs, dws = zip(*[_backward(x, w, dy, *how) for x, w, dy in cuts], strict=True)
    db = np.ones(math.prod(dy.shape[:3]), dy.dtype) @ dy.reshape(-1, dy.shape[3])
    return _joined(dxs), _joined(dws), db if biased else None


def _backward(x, w, dy, *how):
    parts, _, inside, windows = _plan(x, w, *how)
    _, d_room, d_inside, d_windows = _plan(x, w, *how)
    matrix, dx, flat = np.empty(windows.shape, x.dtype), np.empty_like(x), w.reshape(-1, w.shape[3])
    dw, wt = np.zeros_like(flat), np.ascontiguousarray(flat.T)
    for part in parts:
        n = len(x[part])
        inside[:n] = x[part]
        matrix[:n] = windows[:n]
        rows, g = matrix[:n].reshape(-1, len(dw)), dy[part].reshape(-1, w.shape[3])
        dw += rows.T @ g
        np.matmul(g, wt, out=rows)
        d_room[...] = 0
        for i, j in np.ndindex(w.shape[:2]):
            d_windows[:n, :, :, i, j] += matrix[:n, :, :, i, j]
        dx[part] = d_inside[:n]
    return dx, dw.reshape(w.shape)


def relu_forward(x):
    """One pass each way (without it a step of the CNN in tests/benchmarks takes 11 % longer)."""
    y = np.maximum(x, 0)
    return y, y


def relu_backward(dy, saved):
    return (dy * (saved > 0),)


def max_pool2d_forward(x, size=2, stride=None, padding=0):
    """A maximum of a few strided views (without it a step of that CNN takes 54 % longer)."""
    size, (sy, sx), (py, px) = map(_two, (size, stride or size, padding))
    _, Y, X, _ = x.shape
    rows, columns = _places(x.shape, size, (sy, sx), padding, 1)
    if py or px:
        x = np.pad(x, [(0, 0), (py, py), (px, px), (0, 0)], constant_values=-np.inf)
    ends = sy * (rows - 1) + 1, sx * (columns - 1) + 1
    views = [
        (slice(None), slice(i, i + ends[0], sy), slice(j, j + ends[1], sx))
        for i, j in np.ndindex(size)
    ]
    y = reduce(np.maximum, [x[view] for view in views])
    return y, (x, y, views, (slice(None), slice(py, py + Y), slice(px, px + X)))


def max_pool2d_backward(dy, saved):
    """dy goes where x = y, to the first such place of a window."""
    x, y, views, inside = saved
    dx, before = np.zeros_like(x), np.zeros(y.shape, bool)
    for view in views:
        first = x[view] == y
        first &= ~before
        before |= first
        dx[view] += dy * first
    return (dx[inside],)
