"""Optimizers over one flat vector of weights, clipping, learning rate schedules."""

import math
from types import SimpleNamespace

from minigpt.engine.arrays import module_of
from minigpt.training.ranks import Alone


class SGD:
    """v = momentum v + g;  w -= rate (v + decay w).  Source: Sutskever et al. 2013, section 2.

    flat: a Flat; a step leaves its gradient zero. moments: what a checkpoint must keep besides."""

    def __init__(self, flat, weight_decay=0.0, momentum=0.9):
        self.flat, self.weight_decay, self.momentum = flat, weight_decay, momentum
        self.moments = {"v": module_of(flat.data).zeros_like(flat.data)}

    def step(self, rate, number):
        """Update the weights; number counts steps from 1."""
        w, g, v = self.flat.data, self.flat.grad, self.moments["v"]
        v *= self.momentum
        v += g
        w[: self.flat.decayed] *= 1 - rate * self.weight_decay
        module_of(v).multiply(v, rate, out=g)
        w -= g
        g.fill(0)


class AdamW:
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate (m' / (sqrt(v') + eps) + decay w)

    with m' = m / (1 - b1^t), v' = v / (1 - b2^t) at step t; the spent gradient serves as scratch.
    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    def __init__(self, flat, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8):
        self.flat, self.weight_decay, self.betas, self.eps = flat, weight_decay, betas, eps
        zeros = module_of(flat.data).zeros_like
        self.moments = {"m": zeros(flat.data), "v": zeros(flat.data)}

    def step(self, rate, number):
        """Update the weights; number counts steps from 1."""
        w, g, m, v = self.flat.data, self.flat.grad, self.moments["m"], self.moments["v"]
        b1, b2 = self.betas
        g *= 1 - b1
        m *= b1
        m += g
        g *= g
        g *= (1 - b2) / (1 - b1) ** 2
        v *= b2
        v += g
        xp = module_of(g)
        xp.sqrt(v, out=g)
        g *= (1 - b2**number) ** -0.5
        g += self.eps
        xp.divide(m, g, out=g)
        g *= rate / (1 - b1**number)
        w[: self.flat.decayed] *= 1 - rate * self.weight_decay
        w -= g
        g.fill(0)


def orthogonal(g, steps=5):
    """The matrix u v^T of g = u s v^T, nearly: s becomes 0.7 to 1.2 unless tiny.  (R, C) -> (R, C)

    Newton-Schulz: x <- p x with p = a + b x x^T + c (x x^T)^2 drives all s toward 1 without finding
    them. Here q collects the p and s = x x^T follows them, so that all products but two are of the
    short side's size: two thirds of the time. Source: Jordan et al. 2024,
    kellerjordan.github.io/posts/muon.
    """
    x = g / ((g * g).sum() ** 0.5 + 1e-7)
    x = x.T if len(g) > g.shape[1] else x
    s, p, q = x @ x.T, None, None
    for _ in range(steps):
        s = s if p is None else s @ (p @ p.T)  # p = p^T, and of z z^T BLAS computes half
        p = 2.0315 * (s @ s.T) - 4.7750 * s
        p.reshape(-1)[:: len(p) + 1] += 3.4445  # on the diagonal
        q = p if q is None else q @ p
    x = q @ x
    return x.T if len(g) > g.shape[1] else x


class Muon:
    """Hidden matrices: m = b m + g;  w -= rate (0.2 sqrt(max(R, C)) orthogonal(g + b m) + decay w)

    All directions of a matrix learn at one pace, also those with small gradients. The factor gives
    a step the size of one of AdamW, which updates the rest, undecayed, at the same rate. The ranks
    share out the matrices: 11.5 of the 65 ms of a step of the default. Source: Jordan et al. 2024;
    factor: Liu et al. 2025, arXiv 2502.16982.
    """

    def __init__(self, flat, weight_decay=0.1, momentum=0.95):
        self.flat, self.weight_decay, self.momentum = flat, weight_decay, momentum
        hidden = slice(flat.hidden, None)
        rest = SimpleNamespace(data=flat.data[hidden], grad=flat.grad[hidden], decayed=0)
        self.rest, self.ranks = AdamW(rest), flat.ranks or Alone()
        m = module_of(flat.data).zeros_like(flat.data[: flat.hidden])
        self.moments = {"momentum": m} | self.rest.moments
        largest_first = sorted(flat.matrices, key=lambda m: -math.prod(m[1]))
        self.mine = largest_first[self.ranks.rank :: self.ranks.size]

    def step(self, rate, number):
        """Update the weights; number counts steps from 1."""
        self.rest.step(rate, number)
        hidden = slice(self.flat.hidden)
        w, g, m = self.flat.data[hidden], self.flat.grad[hidden], self.moments["momentum"]
        m *= self.momentum
        m += g
        directions = [
            (place, orthogonal((g[place] + self.momentum * m[place]).reshape(shape)))
            for place, shape in self.mine
        ]
        g.fill(0)  # what other ranks find is added
        for place, x in directions:
            module_of(x).multiply(x.reshape(-1), 0.2 * max(x.shape) ** 0.5 * rate, out=g[place])
        self.ranks.all_reduce(self.flat.grad)
        w *= 1 - rate * self.weight_decay
        w -= g
        g.fill(0)


OPTIMIZERS = {"muon": Muon, "adamw": AdamW, "sgd": SGD}


def clip(gradient, limit):
    """Scale the gradient to norm `limit` if longer -> its norm.  Source: Pascanu et al. 2013"""
    norm = math.sqrt(float(gradient @ gradient))
    if limit < norm < math.inf:
        gradient *= limit / norm
    return norm


SCHEDULES = {  # share of the steps done, 0 to 1 -> share of the peak rate
    "cosine": lambda done: 0.55 + 0.45 * math.cos(math.pi * done),  # ends at a tenth
    "stable": lambda done: min(1.0, (1 - done) / 0.6),  # flat, then down to 0 from 40 % on
}


def rate_at(step, steps, peak, warmup, schedule):
    """The learning rate of step 0 to steps - 1: `warmup` steps up in a line, then the schedule."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * SCHEDULES[schedule]((step - warmup) / max(1, steps - warmup))
