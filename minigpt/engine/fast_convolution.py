"""Fast pairs of convolution, ReLU and pooling on NumPy arrays; see fast_numpy.py.

B batch, Y rows, X columns, C channels; windows of I x J places, here (G, B, Y', X', I, J, C / G),
where G is the number of groups.
"""

from functools import reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_ROOM = 1 << 18  # elements of a matrix of windows: 1 MB stays in the L2 cache


def _two(n):
    return n if isinstance(n, tuple) else (n, n)


def _padded(x, padding, fill=0.0):
    """x in a frame, and the slices that take it out again"""
    frame = [(n, n) for n in (0, *_two(padding), 0)]
    inside = tuple(slice(n, n + size) for (n, _), size in zip(frame, x.shape, strict=True))
    return np.pad(x, frame, constant_values=fill) if any(_two(padding)) else x, inside


def _windows(x, size, stride, dilation=1, groups=1):
    """All windows of x, a view.  Raises ValueError if x is smaller than a window."""
    (sy, sx), (dy, dx), (B, Y, X, C) = _two(stride), _two(dilation), x.shape
    spans = dy * (size[0] - 1) + 1, dx * (size[1] - 1) + 1
    if spans[0] > Y or spans[1] > X:
        raise ValueError(f"window: expected at most {(Y, X)}, the padded input, got {size}")
    x = x.reshape(B, Y, X, groups, C // groups)
    windows = sliding_window_view(x, spans, (1, 2), writeable=True)
    return windows[:, ::sy, ::sx, ..., ::dy, ::dx].transpose(3, 0, 1, 2, 5, 6, 4)


def _grouped(a, groups):
    """a (.., O) as a view (G, rows, O / G)"""
    return a.reshape(-1, groups, a.shape[-1] // groups).swapaxes(0, 1)


def _parts(windows):
    """Slices of the batch whose windows fit in the cache"""
    B = windows.shape[1]
    n = max(1, _ROOM * B // max(1, windows.size))
    return [slice(i, i + n) for i in range(0, B, n)]


def conv2d_forward(x, w, b, stride=1, padding=0, dilation=1, groups=1):
    """im2col: windows become rows of a matrix, a few images at a time, so that it stays in cache
    (without it a step of the CNN in tests/benchmarks takes 88 % longer)."""
    x, inside = _padded(x, padding)
    how = w.shape[:2], stride, dilation, groups
    windows, matrix = _windows(x, *how), _grouped(w, groups)
    y = np.empty((*windows.shape[1:4], w.shape[3]), x.dtype)
    for part in _parts(windows):
        rows = windows[:, part].reshape(groups, -1, matrix.shape[1])
        np.matmul(rows, matrix, out=_grouped(y[part], groups))
    if b is not None:
        y += b
    return y, (x, w, b is not None, inside, how)


def conv2d_backward(dy, saved):
    """dw = windows^T dy; dx = dy w^T, added to the places that each window came from (col2im)."""
    x, w, biased, inside, how = saved
    dx, dw = np.zeros_like(x), np.zeros(w.shape, w.dtype)
    windows, d_windows = _windows(x, *how), _windows(dx, *how)
    matrix, d_matrix = _grouped(w, how[3]), _grouped(dw, how[3])
    for part in _parts(windows):
        patches, g = windows[:, part].copy(), _grouped(dy[part], how[3])
        rows = patches.reshape(how[3], -1, matrix.shape[1])
        d_matrix += rows.swapaxes(1, 2) @ g
        np.matmul(g, matrix.swapaxes(1, 2), out=rows)  # written over patches
        for i, j in np.ndindex(how[0]):
            d_windows[:, part, :, :, i, j] += patches[:, :, :, :, i, j]
    dy = dy.reshape(-1, dy.shape[3])
    return dx[inside], dw, np.ones(len(dy), dy.dtype) @ dy if biased else None


def relu_forward(x):
    """One pass each way (without it a step of the CNN in tests/benchmarks takes 5 % longer)."""
    y = np.maximum(x, 0)
    return y, y


def relu_backward(dy, saved):
    return (dy * (saved > 0),)


def max_pool2d_forward(x, size=2, stride=None, padding=0):
    """A maximum of a few strided views (without it a step of that CNN takes 27 % longer)."""
    x, inside = _padded(x, padding, -np.inf)
    how = _two(size), stride or size
    y = reduce(np.maximum, _places(x, *how))
    return y, (x, y, how, inside)


def _places(x, size, stride):
    """For each place in a window, what stands there in all windows: views (B, Y', X', C)"""
    windows = _windows(x, size, stride)[0]
    return [windows[:, :, :, i, j] for i, j in np.ndindex(size)]


def max_pool2d_backward(dy, saved):
    """dy goes where x = y, to the first such place of a window."""
    x, y, how, inside = saved
    dx, before = np.zeros_like(x), np.zeros(y.shape, bool)
    for view, d_view in zip(_places(x, *how), _places(dx, *how), strict=True):
        first = view == y
        first &= ~before
        before |= first
        d_view += dy * first
    return (dx[inside],)
