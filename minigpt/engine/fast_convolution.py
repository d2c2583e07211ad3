"""Fast pairs of convolution, ReLU and pooling on NumPy arrays; fast_numpy.py says what a pair is.

Letters are those of convolution.py. All windows of an image together, each of I x J places, are a
view (B, Y', X', I, J, C): a number that several windows show is stored once.
"""

from functools import reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minigpt.engine.fast_numpy import column_sums

_ROOM = 1 << 18  # elements of a matrix of windows: 1 MB stays in the L2 cache


def _two(n):
    return n if isinstance(n, tuple) else (n, n)


def _padded(x, padding, fill=0.0):
    """x in a frame, and the slices that take it out again"""
    frame = [(n, n) for n in (0, *_two(padding), 0)]
    inside = tuple(slice(n, n + size) for (n, _), size in zip(frame, x.shape, strict=True))
    return np.pad(x, frame, constant_values=fill) if any(_two(padding)) else x, inside


def _windows(x, size, stride, dilation=1):
    """All windows of x, a view (B, Y', X', I, J, C).  Raises as _windows in convolution.py does."""
    (sy, sx), (dy, dx) = _two(stride), _two(dilation)
    spans = dy * (size[0] - 1) + 1, dx * (size[1] - 1) + 1
    if spans[0] > x.shape[1] or spans[1] > x.shape[2]:
        raise ValueError(f"window: expected at most {x.shape[1:3]}, the padded input, got {size}")
    windows = sliding_window_view(x, spans, (1, 2), writeable=True)  # (B, Y, X, C, spans)
    return windows[:, ::sy, ::sx, :, ::dy, ::dx].transpose(0, 1, 2, 4, 5, 3)


def _parts(windows):
    """Slices of the batch whose windows fit in the cache"""
    B = len(windows)
    n = max(1, _ROOM * B // max(1, windows.size))
    return [slice(i, i + n) for i in range(0, B, n)]


def conv2d_forward(x, w, b, stride=1, padding=0, dilation=1):
    """im2col: each window becomes a row of a matrix, so that one product does all weighted sums.

    A few images at a time, so that this matrix stays in cache (without the pair a step of the CNN
    in tests/benchmarks takes 88 % longer).
    """
    x, inside = _padded(x, padding)
    how = w.shape[:2], stride, dilation
    windows, n_out = _windows(x, *how), w.shape[3]
    matrix = w.reshape(-1, n_out)  # (I J C, O)
    y = np.empty((*windows.shape[:3], n_out), x.dtype)
    for part in _parts(windows):
        rows = windows[part].reshape(-1, len(matrix))
        np.matmul(rows, matrix, out=y[part].reshape(-1, n_out))
    if b is not None:
        y += b
    return y, (x, w, b is not None, inside, how)


def conv2d_backward(dy, saved):
    """The forward is a product, rows @ matrix. So d matrix = rows^T dy, and d rows = dy matrix^T.

    A row is a copy of a window, so what its numbers get is added where they came from (col2im):
    one place (i, j) of all windows at a time, because no two windows show the same number there.
    """
    x, w, biased, inside, how = saved
    n_out = w.shape[3]
    dx, dw = np.zeros_like(x), np.zeros(w.shape, w.dtype)
    windows, d_windows = _windows(x, *how), _windows(dx, *how)
    matrix, d_matrix = w.reshape(-1, n_out), dw.reshape(-1, n_out)
    for part in _parts(windows):
        patches, g = windows[part].copy(), dy[part].reshape(-1, n_out)
        rows = patches.reshape(-1, len(matrix))
        d_matrix += rows.T @ g
        np.matmul(g, matrix.T, out=rows)  # d rows, written over rows, which is patches
        for i, j in np.ndindex(how[0]):
            d_windows[part, :, :, i, j] += patches[:, :, :, i, j]
    dy = dy.reshape(-1, n_out)
    return dx[inside], dw, column_sums(dy) if biased else None


def relu_forward(x):
    """One pass each way (without it a step of the CNN in tests/benchmarks takes 5 % longer)."""
    y = np.maximum(x, 0)
    return y, y


def relu_backward(dy, saved):
    """dx = dy where y is not 0, so also where it is NaN, as in PyTorch"""
    return (dy * (saved != 0),)


def max_pool2d_forward(x, size=2, stride=None, padding=0):
    """A maximum of a few strided views (without it a step of that CNN takes 27 % longer)."""
    x, inside = _padded(x, padding, -np.inf)
    how = _two(size), stride or size
    y = reduce(np.maximum, _places(x, *how))
    return y, (x, y, how, inside)


def _places(x, size, stride):
    """For each place in a window, what stands there in all windows: views (B, Y', X', C)"""
    windows = _windows(x, size, stride)
    return [windows[:, :, :, i, j] for i, j in np.ndindex(size)]


def max_pool2d_backward(dy, saved):
    """dy goes where x = y, to the first such place of a window; NaN, if there is one, is the y."""
    x, y, how, inside = saved
    dx, found, broken = np.zeros_like(x), np.zeros(y.shape, bool), np.isnan(y).any()
    for view, d_view in zip(_places(x, *how), _places(dx, *how), strict=True):
        first = view == y
        if broken:
            first |= np.isnan(view)
        first &= ~found
        found |= first
        d_view += dy * first
    return (dx[inside],)
