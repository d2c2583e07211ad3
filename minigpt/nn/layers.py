"""The layers that every architecture shares: parameters, and the formula that uses them."""

from minigpt.engine.functional import dropout, embedding, layer_norm, linear
from minigpt.engine.guards import within
from minigpt.nn.module import Module, constant, normal


class Linear(Module):
    """y = x w + b: every output is a weighted sum of all inputs.  x (..., I) -> (..., O)"""

    def __init__(self, n_in, n_out, rng, bias=True, std=0.02):
        self.weight = normal(rng, (n_in, n_out), std)
        self.bias = constant(n_out, 0.0) if bias else None

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class Embedding(Module):
    """A table with a vector for each id: y = its row.  ids (...) -> (..., C)"""

    table = True

    def __init__(self, n, n_embd, rng, std=0.02):
        self.weight = normal(rng, (n, n_embd), std)

    def forward(self, ids):
        return embedding(self.weight, ids)


class LayerNorm(Module):
    """y = (x - mean) / sqrt(variance + eps) w + b over the last axis.  x (..., C) -> (..., C)

    Whatever the size of x, y starts with variance 1, so the next layer gets inputs of one size.
    """

    def __init__(self, n, eps=1e-5):
        self.weight, self.bias, self.eps = constant(n, 1.0), constant(n, 0.0), eps

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias, self.eps)


class Dropout(Module):
    """While training, y = x / (1 - p), or 0 with probability p, so that no unit relies on another.

    Otherwise y = x. Each call draws a seed from the Generator rng.
    """

    def __init__(self, p, rng):
        within("dropout", p=p)
        self.p, self.rng = p, rng

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        return dropout(x, self.p, int(self.rng.integers(1 << 62)))


class MLP(Module):
    """y = activation(x w1 + b1) w2 + b2.  x (..., C) -> (..., C), n_inner wide in between"""

    def __init__(self, n_embd, n_inner, rng, activation, p=0.0, out_std=0.02):
        self.up = Linear(n_embd, n_inner, rng)
        self.down = Linear(n_inner, n_embd, rng, std=out_std)
        self.dropout, self.activation = Dropout(p, rng), activation

    def forward(self, x):
        return self.dropout(self.down(self.activation(self.up(x))))
