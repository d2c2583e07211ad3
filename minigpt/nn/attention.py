"""The attention mixer: every position gathers what it needs from the positions before it."""

from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import raw
from minigpt.engine.functional import attention
from minigpt.engine.ops import split
from minigpt.nn.layers import Dropout, Linear
from minigpt.nn.module import Mixer


def positions(mask, past, T):
    """Positions of T new tokens behind `past` others: a slice, or (B, T) if a mask (B, past + T)
    tells padding, 0: real tokens are numbered from 0, padding in front of them has position 0."""
    if mask is None:
        return slice(past, past + T)
    xp = module_of(mask)
    return xp.clip(xp.cumsum(mask, axis=1) - 1, 0, None)[:, past:]


class Attention(Mixer):
    """Self-attention with H heads of D = C / H.  x (B, T, C) -> y (B, T, C), state

    The state is (keys, values, n): arrays (B, H, block_size, D) of which the first n positions are
    filled; a call with a state appends its T positions and attends to all. mask (B, n + T), 0 =
    padding. No gradient flows through a state. turn: rotary, which gives queries and keys their
    positions, or None. causal: none sees what follows it.
    Source: Vaswani et al. 2017, section 3.2.2.
    """

    limited = True

    def __init__(
        self, n_embd, n_head, rng, window=None, p=0.0, out_std=0.02, turn=None, causal=True
    ):
        if turn and n_embd // n_head % 2:
            expected = f"heads of an even width, got {n_embd} / {n_head} = {n_embd // n_head}"
            raise ValueError(f"n_embd: expected {expected}; try {n_embd + n_head}")
        self.qkv = Linear(n_embd, 3 * n_embd, rng)
        self.out = Linear(n_embd, n_embd, rng, std=out_std)
        self.dropout, self.n_head, self.window = Dropout(p, rng), n_head, window
        self.turn, self.causal = turn, causal

    def forward(self, x, mask=None, state=None):
        (B, T, C), H = x.shape, self.n_head
        z = self.qkv(x).reshape((B, T, 3 * H, C // H))
        if self.turn:
            qk, v = split(z, [2 * H], 2)
            q, k = split(self.turn(qk, positions(mask, state[2] if state else 0, T)), 2, 2)
        else:
            q, k, v = split(z, 3, 2)
        q, k, v = (z.transpose((0, 2, 1, 3)) for z in (q, k, v))
        if state is not None:
            k, v, state = self.remember(k, v, state)
        y = attention(q, k, v, mask, self.window, self.causal).transpose((0, 2, 1, 3))
        return self.dropout(self.out(y.reshape((B, T, C)))), state

    def remember(self, k, v, state):
        """Write k and v behind the n positions of the state -> all n + T of each, new state."""
        if getattr(k, "node", None) is not None:
            raise ValueError("attention: a state keeps no history; call the model within no_grad()")
        keys, values, n = state
        end = n + k.shape[2]
        keys[:, :, n:end], values[:, :, n:end] = raw(k), raw(v)
        return keys[:, :, :end], values[:, :, :end], (keys, values, end)

    def new_state(self, B, block_size):
        """An empty state for B texts of up to block_size tokens."""
        weight = self.qkv.weight.data
        shape = (B, self.n_head, block_size, len(weight) // self.n_head)
        keys, values = (module_of(weight).zeros(shape, weight.dtype) for _ in range(2))
        return keys, values, 0

    def flops(self, T):
        """12 C per key that a query sees: of T, half (causal), or the last `window`"""
        return 6 * len(self.out.weight.data) * (w := min(self.window or T, T)) * (2 * T - w) // T
