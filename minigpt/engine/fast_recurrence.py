"""Fast pairs of recurrence on NumPy arrays; see fast_numpy.py. Without them a step of the LSTM in
tests/benchmarks takes 16 % longer, one of `--model gru` 79 %, of `--model rnn` 37 %.

Arrays are kept time first, (T, B, ..): what belongs to one step lies together, and the gradients of
weights are one product over all steps. A cell has two functions, `_step` and `_back`, that fill
buffers in place; `_run` and `_run_back` apply them T times.
"""

from functools import lru_cache, partial

import numpy as np


def _time_first(x):
    return np.ascontiguousarray(x.swapaxes(0, 1))


def _blocks(w):
    """w (I, O) -> (O / 32, I, 32): BLAS multiplies a few rows by narrow matrices without packing
    these first: 78 to 115 GFLOP/s of one core at 16 x 256 @ 256 x 1024."""
    n = 32 if w.shape[1] % 32 == 0 else w.shape[1]
    return np.ascontiguousarray(w.reshape(len(w), -1, n).swapaxes(0, 1))


def _cut(x, blocks):
    """x (B, O) as a view (O / n, B, n), into which products with blocks are written"""
    return x.reshape(len(x), len(blocks), blocks.shape[2]).swapaxes(0, 1)


def _run(step, x, states, w_ih, w_hh, b, mask):
    """Fill new states by step(x_t w_ih + b, h_{t-1} w_hh, *states, *new states, extra), T times"""
    (B, T, C), H = x.shape, states[0].shape[1]
    x = _time_first(x).reshape(T * B, C)
    z = x @ w_ih
    z += b
    z, u = z.reshape(T, B, z.shape[1]), np.empty((B, w_hh.shape[1]), z.dtype)
    extra = np.empty((T, B, H), z.dtype)
    past = [np.empty((T + 1, B, H), z.dtype) for _ in states]
    for array, first in zip(past, states, strict=True):
        array[0] = first
    padding, blocks = None if mask is None else (mask == 0).T, _blocks(w_hh)
    product = _cut(u, blocks)
    for t in range(T):
        np.matmul(past[0][t], blocks, out=product)
        step(z[t], u, *(a[t] for a in past), *(a[t + 1] for a in past), extra[t])
        if padding is not None:
            for array in past:
                array[t + 1, padding[t]] = array[t, padding[t]]
    return past[0][1:].swapaxes(0, 1), (x, z, past, extra, w_ih, w_hh, padding)


def _run_back(back, dy, last, saved):
    """back(z_t, du, *d states, *states, *new states, extra) turns z_t, what step left there, into
    its gradient, fills du, that of h_{t-1} w_hh, and makes d states those of the states before."""
    x, z, past, extra, w_ih, w_hh, padding = saved
    T, B, H = extra.shape
    ds = [np.zeros((B, H), z.dtype) if d is None else d.copy() for d in last]
    dy = np.zeros_like(extra) if dy is None else _time_first(dy)
    du, dh, blocks = (
        np.empty((T, B, w_hh.shape[1]), z.dtype),
        np.empty((B, H), z.dtype),
        _blocks(w_hh.T),
    )
    product = _cut(dh, blocks)
    for t in range(T)[::-1]:
        ds[0] += dy[t]
        kept = [] if padding is None else [d[padding[t]] for d in ds]
        back(z[t], du[t], *ds, *(a[t] for a in past), *(a[t + 1] for a in past), extra[t])
        if padding is not None:
            z[t, padding[t]] = du[t, padding[t]] = 0
        np.matmul(du[t], blocks, out=product)
        ds[0] += dh
        for d, k in zip(ds, kept, strict=False):
            d[padding[t]] = k
    dz, du = (a.reshape(T * B, w_hh.shape[1]) for a in (z, du))
    dx = (dz @ w_ih.T).reshape(T, B, len(w_ih)).swapaxes(0, 1)
    h, one = past[0][:-1].reshape(T * B, H), np.ones(T * B, z.dtype)
    return dx, *ds, x.T @ dz, h.T @ du, one @ dz, one @ du


def rnn_forward(x, h, w_ih, w_hh, b_ih, b_hh, mask=None, activation="tanh"):
    f = {"tanh": np.tanh, "relu": partial(np.maximum, 0)}[activation]
    y, saved = _run(partial(_rnn_step, f), x, (h,), w_ih, w_hh, b_ih + b_hh, mask)
    return y, (activation, saved)


def _rnn_step(f, z, u, h, h_new, _):
    z += u
    f(z, out=h_new)


def rnn_backward(dy, saved):
    return _run_back(partial(_rnn_back, saved[0]), dy, [None], saved[1])


def _rnn_back(activation, z, du, dh, h, h_new, _):
    np.multiply(dh, 1 - h_new * h_new if activation == "tanh" else h_new > 0, out=z)
    du[...] = z
    dh[...] = 0


@lru_cache
def _gates(H, tanh_at, n, dtype):
    """scale and shift (n H,) with which scale tanh(scale z) + shift is sigmoid z = 1/2 +
    tanh(z/2)/2 but in gate number tanh_at, where it is tanh z: one tanh serves all gates."""
    scale, shift = (np.full((n, H), 0.5, dtype) for _ in range(2))
    scale[tanh_at], shift[tanh_at] = 1, 0
    return scale.reshape(-1), shift.reshape(-1)


def lstm_forward(x, h, c, w_ih, w_hh, b_ih, b_hh, mask=None):
    y, saved = _run(_lstm_step, x, (h, c), w_ih, w_hh, b_ih + b_hh, mask)
    return [y, saved[2][1][-1]], saved


def _lstm_step(z, u, h, c, h_new, c_new, tanh_c):
    scale, shift = _gates(h.shape[1], 2, 4, z.dtype)
    z += u
    z *= scale
    np.tanh(z, out=z)
    z *= scale
    z += shift
    i, f, g, o = _parts(z, 4)
    np.multiply(f, c, out=c_new)
    c_new += np.multiply(i, g, out=tanh_c)
    np.tanh(c_new, out=tanh_c)
    np.multiply(o, tanh_c, out=h_new)


def _parts(z, n):
    """z (B, n H) -> n views (B, H)"""
    H = z.shape[1] // n
    return [z[:, i : i + H] for i in range(0, n * H, H)]


def lstm_backward(dys, saved):
    return _run_back(_lstm_back, dys[0], [None, dys[1]], saved)


def _lstm_back(z, du, dh, dc, h, c, h_new, c_new, tanh_c):
    """Of a sigmoid s the slope is s (1 - s), of a tanh t it is 1 - t^2."""
    (i, f, g, o), (di, df, dg, do) = _parts(z, 4), _parts(du, 4)
    np.multiply(dh, tanh_c, out=do)
    dh *= o
    dc += dh
    tanh_c *= tanh_c
    dh *= tanh_c
    dc -= dh  # dc + dh o (1 - tanh^2 c)
    np.multiply(dc, g, out=di)
    np.multiply(dc, c, out=df)
    np.multiply(dc, i, out=dg)
    dc *= f
    g *= g
    np.subtract(1, g, out=g)
    for s in (z[:, : 2 * h.shape[1]], o):
        s -= s * s
    z *= du
    du[...] = z
    dh[...] = 0


def gru_forward(x, h, w_ih, w_hh, b_ih, b_hh, mask=None):
    b, H = b_ih.copy(), h.shape[1]
    b[: 2 * H] += b_hh[: 2 * H]
    return _run(partial(_gru_step, b_hh[2 * H :]), x, (h,), w_ih, w_hh, b, mask)


def _gru_step(b, z, u, h, h_new, n_h):
    (r, k, n), gates, H = _parts(z, 3), z[:, : 2 * h.shape[1]], h.shape[1]
    gates += u[:, : 2 * H]
    gates *= 0.5
    np.tanh(gates, out=gates)
    gates *= 0.5
    gates += 0.5
    np.add(u[:, 2 * H :], b, out=n_h)
    n += r * n_h
    np.tanh(n, out=n)
    np.subtract(h, n, out=h_new)
    h_new *= k
    h_new += n


def gru_backward(dy, saved):
    return _run_back(_gru_back, dy, [None], saved)


def _gru_back(z, du, dh, h, h_new, n_h):
    (r, k, n), (dr, dk, dn) = _parts(z, 3), _parts(du, 3)
    np.multiply(dh, h - n, out=dk)
    dk *= k - k * k
    n *= n
    np.subtract(1, n, out=n)
    n *= dh - dh * k  # d n_x
    np.multiply(n, r, out=dn)  # d n_h
    np.multiply(n, n_h, out=dr)
    dr *= r - r * r
    dh *= k
    r[...], k[...] = dr, dk
