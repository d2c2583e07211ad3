"""Recurrence, each cell defined once, in primitive ops.

A cell reads a text from left to right. It keeps a state h of H numbers, which sums up what it has
read, and computes the next state from the next token and the state before. All tokens are read
with the same weights: w_ih (input to hidden) meets the token, w_hh the state before.
"""

from minigpt.engine.functional import fused, linear
from minigpt.engine.ops import reshape, split, stack, tanh, where


def sigmoid(x):
    """y = 1 / (1 + e^-x), between 0 and 1; as (1 + tanh(x / 2)) / 2, which cannot overflow"""
    return tanh(x * 0.5) * 0.5 + 0.5


def _recur(cell, x, state, w, b, mask):
    """state = cell(x_t w + b, *state) from left to right.  x (B, T, I) -> y (B, T, H), last state

    The state is a tuple of (B, H); y holds its first part at all times. Where mask (B, T) is 0,
    the state stays.
    """
    z = linear(x, w, b)  # of all times in one product: it needs no state
    ys = []
    for t, now in enumerate(split(z, x.shape[1], 1)):
        B, _, n = now.shape
        after = cell(reshape(now, (B, n)), *state)
        if mask is not None:
            real = mask[:, t, None] != 0
            after = [where(real, new, old) for new, old in zip(after, state, strict=True)]
        state = after
        ys.append(state[0])
    return stack(ys, 1), state


@fused
def rnn(x, h, w_ih, w_hh, b_ih, b_hh, mask=None):
    """The simplest cell: h_t = tanh(x_t w_ih + b_ih + h_{t-1} w_hh + b_hh)

    x (B, T, I), h (B, H), w_ih (I, H), w_hh (H, H), b (H,), mask (B, T), 0 = skip
    -> (B, T, H), the last of which is the last h. Source: Elman 1990; the form is torch.nn.RNN's.
    """

    def cell(z, h):
        return (tanh(z + linear(h, w_hh, b_hh)),)

    y, _ = _recur(cell, x, (h,), w_ih, b_ih, mask)
    return y


@fused
def lstm(x, h, c, w_ih, w_hh, b_ih, b_hh, mask=None):
    """A second state c is only scaled by f and added to, so it can keep a number over many steps.

    c_t = s(f) c_{t-1} + s(i) tanh(g);  h_t = s(o) tanh(c_t), s = sigmoid, with
    i, f, g, o = x_t w_ih + b_ih + h_{t-1} w_hh + b_hh.
    The gates, between 0 and 1, decide what comes in (i), what is kept (f) and what shows (o).
    x (B, T, I), h, c (B, H), w_ih (I, 4H), w_hh (H, 4H), b (4H,), mask (B, T), 0 = skip
    -> h at all times (B, T, H), and the last c (B, H).
    Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000; the form is torch.nn.LSTM's.
    """

    def cell(z, h, c):
        i, f, g, o = split(z + linear(h, w_hh, b_hh), 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    y, (_, c) = _recur(cell, x, (h, c), w_ih, b_ih, mask)
    return y, c


@fused
def gru(x, h, w_ih, w_hh, b_ih, b_hh, mask=None):
    """The gate u mixes the old state with a new one, n; the gate r says how much n sees of the old.

    h_t = (1 - u) n + u h_{t-1};  r, u = s(r_x + r_h), s(u_x + u_h), n = tanh(n_x + r n_h), with
    r_x, u_x, n_x = x_t w_ih + b_ih;  r_h, u_h, n_h = h_{t-1} w_hh + b_hh;  s = sigmoid
    The shapes are those of rnn, with 3H columns in the weights and biases.
    Source: Cho et al. 2014, arXiv 1406.1078; the form is torch.nn.GRU's.
    """

    def cell(z, h):
        r_x, u_x, n_x = split(z, 3, 1)
        r_h, u_h, n_h = split(linear(h, w_hh, b_hh), 3, 1)
        n = tanh(n_x + sigmoid(r_x + r_h) * n_h)
        return (n + sigmoid(u_x + u_h) * (h - n),)

    y, _ = _recur(cell, x, (h,), w_ih, b_ih, mask)
    return y
