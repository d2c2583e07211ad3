"""Fast pairs of recurrence on NumPy arrays; fast_numpy.py says what a pair is. Without them a step
of the LSTM in tests/benchmarks takes 46 % longer, one of `--model gru` 78 %, of `--model rnn` 20 %.

A cell of G gates is one function, `cell(z, u, *states) -> new states, back`. z (G, B, H) is
x_t w_ih + b_ih, and u (G, B, H) is h_{t-1} w_hh + b_hh, which the cell may overwrite. Its other
result is a function, `back(*d new states) -> dz, du, *d states`, which leaves out what reaches h
through u. `_run` applies the cell T times, and `_run_back` goes from the last time to the first
with what the cells returned. The gradients of the weights are one product over all times.
"""

import numpy as np

from minigpt.engine.fast_numpy import column_sums


def _blocks(w, G):
    """w (I, G H) -> (G, H / 32, I, 32). BLAS copies a wide matrix before it multiplies by it, but
    not a narrow one: at 16 x 256 @ 256 x 1024 one core does 115 GFLOP/s instead of 78."""
    H = w.shape[1] // G
    n = 32 if H % 32 == 0 else H
    return np.ascontiguousarray(w.reshape(len(w), G, H // n, n).transpose(1, 2, 0, 3))


def _times(x, blocks):
    """x (B, I) times the matrix that was cut into blocks -> (G, B, H)"""
    B, (G, m, _, n) = len(x), blocks.shape
    y = np.empty((G, B, m, n), x.dtype)
    np.matmul(x, blocks, out=y.swapaxes(1, 2))
    return y.reshape(G, B, m * n)


def _run(cell, x, states, w_ih, w_hh, b_ih, b_hh, mask):
    """Apply the cell from left to right -> outputs, and what _run_back needs

    The outputs are y (B, T, H), the first state at all times, and the last of each other state.
    """
    (B, T, C), (H, n) = x.shape, w_hh.shape
    x = x.swapaxes(0, 1).reshape(T * B, C)  # time first: what belongs to one step lies together
    z = x @ w_ih
    z += b_ih
    z, b_hh = z.reshape(T, B, n // H, H).swapaxes(1, 2), b_hh.reshape(n // H, 1, H)
    padding = None if mask is None else (mask == 0).T[..., None]  # (T, B, 1)
    blocks, hs, backs = _blocks(w_hh, n // H), [states[0]], []
    for t in range(T):
        u = _times(hs[t], blocks)
        u += b_hh
        after, back = cell(z[t], u, *states)
        if mask is not None:
            after = [np.where(padding[t], *pair) for pair in zip(states, after, strict=True)]
        states = after
        hs.append(states[0])
        backs.append(back)
    h = np.stack(hs)
    return [h[1:].swapaxes(0, 1), *states[1:]], (x, h[:-1], backs, w_ih, w_hh, padding)


def _run_back(dys, saved):
    """The chain rule from the last time to the first ("backpropagation through time").

    h_t acts on the loss in two ways: through y_t, and through h_{t+1}, both by the weights w_hh
    (du w_hh^T) and directly (what `back` returns). ds collects these contributions.
    dys: the gradients of y and of the last states but the first, None for one that is not used
    -> the gradients of x, the first states, w_ih, w_hh, b_ih, b_hh
    """
    x, h, backs, w_ih, w_hh, padding = saved
    (T, B, H), n = h.shape, w_hh.shape[1]
    dy = np.zeros((B, T, H), h.dtype) if dys[0] is None else dys[0]
    ds = [np.zeros((B, H), h.dtype) if d is None else d for d in (None, *dys[1:])]
    both, blocks = np.empty((2, T, B, n // H, H), h.dtype), _blocks(w_hh.T, 1)  # dz and du
    gates = both.swapaxes(2, 3)
    for t in reversed(range(T)):
        ds[0] = ds[0] + dy[:, t]
        if padding is not None:  # the state was kept there: its gradient goes on unchanged
            passing, ds = np.where(padding[t], ds, 0), np.where(padding[t], 0, ds)
        gates[0, t], gates[1, t], *ds = backs[t](*ds)
        ds[0] = ds[0] + _times(both[1, t].reshape(B, n), blocks)[0]
        if padding is not None:
            ds = [d + more for d, more in zip(ds, passing, strict=True)]
    (dz, du), h = both.reshape(2, T * B, n), h.reshape(T * B, H)
    dx = (dz @ w_ih.T).reshape(T, B, len(w_ih)).swapaxes(0, 1)
    return dx, *ds, x.T @ dz, h.T @ du, column_sums(dz), column_sums(du)


def rnn_forward(x, h, w_ih, w_hh, b_ih, b_hh, mask=None):
    """Computes x w_ih of all times in one product."""
    [y], saved = _run(_rnn, x, (h,), w_ih, w_hh, b_ih, b_hh, mask)
    return y, saved


def _rnn(z, u, h):
    h_new = np.tanh(z[0] + u[0])

    def back(dh):
        dz = dh * (1 - h_new * h_new)
        return dz, dz, 0

    return (h_new,), back


def rnn_backward(dy, saved):
    """_run_back with one output."""
    return _run_back([dy], saved)


def lstm_forward(x, h, c, w_ih, w_hh, b_ih, b_hh, mask=None):
    """Four gates in one product per step, and one tanh for all of them."""
    return _run(_lstm, x, (h, c), w_ih, w_hh, b_ih, b_hh, mask)


def _lstm(z, u, h, c):
    """Written over u: one tanh serves all gates, as sigmoid z = 1/2 + tanh(z/2)/2."""
    u += z
    i, f, g, o = u  # views: they become the gates' values as u does
    for s in (u[:2], o):  # the sigmoids: i and f, o
        s *= 0.5
    np.tanh(u, out=u)
    for s in (u[:2], o):
        s *= 0.5
        s += 0.5
    c_new = f * c + i * g
    tanh_c = np.tanh(c_new)

    def back(dh, dc):
        """h = o tanh c, c = f c_before + i g. A sigmoid s has slope s (1 - s), a tanh t 1 - t^2."""
        dh_o = dh * o
        dc = dc + dh_o * (1 - tanh_c * tanh_c)
        dc_i, dc_f = dc * i, dc * f
        df, do = dc_f * c * (1 - f), dh_o * tanh_c * (1 - o)
        dz = np.array([dc_i * g * (1 - i), df, dc_i * (1 - g * g), do])
        return dz, dz, 0, dc_f

    return (o * tanh_c, c_new), back


lstm_backward = _run_back  # of y and c


def gru_forward(x, h, w_ih, w_hh, b_ih, b_hh, mask=None):
    """Three gates in one product per step."""
    [y], saved = _run(_gru, x, (h,), w_ih, w_hh, b_ih, b_hh, mask)
    return y, saved


def _gru(z, u, h):
    r, k = np.tanh((z[:2] + u[:2]) * 0.5) * 0.5 + 0.5  # sigmoids; k is the definition's gate u
    n = np.tanh(z[2] + r * u[2])

    def back(dh):
        """h_new = n + k (h - n), n = tanh(z_n + r u_n); u_n gets what z_n gets, times r."""
        dn = dh * (1 - k) * (1 - n * n)
        dr = dn * u[2] * r * (1 - r)
        dk = dh * (h - n) * k * (1 - k)
        return np.array([dr, dk, dn]), np.array([dr, dk, dn * r]), dh * k

    return (n + k * (h - n),), back


gru_backward = rnn_backward
