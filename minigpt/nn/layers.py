"""The layers every architecture shares: parameters and the formula that uses them."""

from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import raw
from minigpt.engine.functional import dropout, embedding, gelu, layer_norm, linear
from minigpt.nn.module import Module, constant, normal


class Linear(Module):
    """y = x w + b.  x (..., I) -> (..., O)"""

    def __init__(self, n_in, n_out, rng, bias=True, std=0.02):
        self.weight = normal(rng, (n_in, n_out), std)
        self.bias = constant(n_out, 0.0) if bias else None

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class Embedding(Module):
    """y = row ids of the table.  ids (...) -> (..., C)"""

    table = True

    def __init__(self, n, n_embd, rng, std=0.02):
        self.weight = normal(rng, (n, n_embd), std)

    def forward(self, ids):
        return embedding(self.weight, ids)


class LayerNorm(Module):
    """y = (x - mean) / sqrt(variance + eps) w + b over the last axis.  (..., C) -> (..., C)"""

    def __init__(self, n, eps=1e-5):
        self.weight, self.bias, self.eps = constant(n, 1.0), constant(n, 0.0), eps

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias, self.eps)


class Dropout(Module):
    """y = x / (1 - p), or 0 with probability p, while training; each call draws a seed from rng."""

    def __init__(self, p, rng):
        self.p, self.rng = p, rng

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        return dropout(x, self.p, int(self.rng.integers(1 << 62)))


class MLP(Module):
    """y = activation(x w1 + b1) w2 + b2.  (..., C) -> (..., C), n_inner wide between"""

    def __init__(self, n_embd, n_inner, rng, activation=gelu, p=0.0, out_std=0.02):
        self.up = Linear(n_embd, n_inner, rng)
        self.down = Linear(n_inner, n_embd, rng, std=out_std)
        self.dropout, self.activation = Dropout(p, rng), activation

    def forward(self, x):
        return self.dropout(self.down(self.activation(self.up(x))))


def without_padding(x, mask):
    """x (B, T, C), 0 where the last T columns of mask are"""
    return x if mask is None else x * mask[:, -x.shape[1] :, None].astype(x.dtype)


def last_inputs(past, x, mask):
    """The last n real rows of past (B, n, C), all real, and x (B, T, C) together -> (B, n, C)"""
    xp, n, T = module_of(past), past.shape[1], x.shape[1]
    rows, last = slice(None), slice(T, None)
    if mask is not None:
        real = xp.concatenate([xp.ones((len(past), n), int), mask[:, -T:]], 1) != 0
        last = xp.sort(xp.where(real, xp.arange(T + n), -1), 1)[:, -n:]
        rows = xp.arange(len(past))[:, None]
    return xp.concatenate([past, raw(x)], 1)[rows, last].copy()
