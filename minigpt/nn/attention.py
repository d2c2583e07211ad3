"""The attention mixer: every position gathers what it needs from the positions before it.

A position asks with its query q. Every position offers a key k, which says what it is, and a value
v, which says what it has to tell. A query and a key that point the same way have a large product,
and softmax turns the products into shares: a position receives the mean of the values, weighted so.
"""

from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import raw
from minigpt.engine.functional import attention
from minigpt.engine.ops import split
from minigpt.messages import check
from minigpt.nn.layers import Dropout, Linear
from minigpt.nn.module import Mixer


class Attention(Mixer):
    """Self-attention with H heads of D = C / H channels each.  x (B, T, C) -> y (B, T, C), state

    Every head asks its own question, in its own D channels. causal: no position sees a later one;
    window: it sees only the last `window`. mask (B, n + T), where 0 marks padding, hides keys.

    The state remembers the n positions that have been read: (keys, values, n), two arrays
    (B, H, block_size, D) of which the first n positions are filled. A call with a state appends its
    own T positions and attends to all n + T. No gradient flows through a state.
    Source: Vaswani et al. 2017, section 3.2.2.
    """

    title, limited = "attention", True

    def __init__(self, n_embd, n_head, rng, p=0.0, out_std=0.02, causal=True):
        self.qkv = Linear(n_embd, 3 * n_embd, rng)
        self.out = Linear(n_embd, n_embd, rng, std=out_std)
        self.dropout, self.n_head = Dropout(p, rng), n_head
        self.causal, self.window = causal, None

    def forward(self, x, mask=None, state=None):
        fits = self.causal or self.window is None
        check(fits, "attention", "causal=True with a window", "causal=False", "set window to None")
        q, k, v = self.heads(x, mask, state[2] if state else 0)
        q, k, v = (z.transpose((0, 2, 1, 3)) for z in (q, k, v))  # (B, H, T, D)
        if state is not None:
            k, v, state = self.remember(k, v, state)
        y = attention(q, k, v, mask, self.window, self.causal)
        y = y.transpose((0, 2, 1, 3)).reshape(x.shape)  # the heads side by side again
        return self.dropout(self.out(y)), state

    def heads(self, x, mask, past):
        """Queries, keys and values of x, which stands behind `past` others: each (B, T, H, D)."""
        (B, T, C), H = x.shape, self.n_head
        return split(self.qkv(x).reshape((B, T, 3 * H, C // H)), 3, 2)

    def remember(self, k, v, state):
        """Write k and v behind the n positions of the state -> all n + T of each, new state."""
        if getattr(k, "node", None) is not None:
            raise ValueError("attention: a state keeps no history; call the model within no_grad()")
        keys, values, n = state
        end = n + k.shape[2]
        keys[:, :, n:end], values[:, :, n:end] = raw(k), raw(v)
        return keys[:, :, :end], values[:, :, :end], (keys, values, end)

    def new_state(self, B, block_size):
        """The state before the first token of B texts, with room for block_size tokens."""
        weight = self.qkv.weight.data
        shape = (B, self.n_head, block_size, len(weight) // self.n_head)
        keys, values = (module_of(weight).zeros(shape, weight.dtype) for _ in range(2))
        return keys, values, 0

    def flops(self, T):
        """FLOPs to train on one of T tokens, beyond those of the weights.

        A query multiplies C numbers with each key that it sees, and C with each value: 4 C FLOPs,
        as a product and its sum count as two. The backward pass costs twice that: 12 C in all.
        A causal query sees the keys up to its own position, T / 2 on average. With a window of w it
        sees w / 2 on average while the window fills, over the first w positions, and then w.
        """
        C = len(self.out.weight.data)
        if not self.causal:
            return 12 * C * T
        w = min(self.window or T, T)
        pairs = w * w / 2 + w * (T - w)  # of a query and a key that it sees, over all T positions
        return int(12 * C * pairs / T)
