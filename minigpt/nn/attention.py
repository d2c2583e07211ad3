"""The attention mixer: every position gathers what it needs from the positions before it."""

from minigpt.engine.autograd import raw
from minigpt.engine.device import module_of
from minigpt.engine.functional import attention
from minigpt.engine.ops import split
from minigpt.nn.layers import Dropout, Linear
from minigpt.nn.module import Module


class Attention(Module):
    """Causal self-attention with H heads of D = C / H.  x (B, T, C) -> y (B, T, C), state

    The state is (keys, values, n): arrays (B, H, block_size, D) of which the first n positions are
    filled; a call with a state appends its T positions and attends to all. mask (B, n + T), 0 =
    padding. No gradient flows through a state. Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, n_embd, n_head, rng, window=None, p=0.0, out_std=0.02):
        self.qkv = Linear(n_embd, 3 * n_embd, rng)
        self.out = Linear(n_embd, n_embd, rng, std=out_std)
        self.dropout, self.n_head, self.window = Dropout(p, rng), n_head, window

    def forward(self, x, mask=None, state=None):
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (z.reshape(heads).transpose((0, 2, 1, 3)) for z in split(self.qkv(x), 3, -1))
        if state is not None:
            k, v, state = self.remember(k, v, state)
        y = attention(q, k, v, mask, self.window)
        y = y.transpose((0, 2, 1, 3)).reshape((B, T, C))
        return self.dropout(self.out(y)), state

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
