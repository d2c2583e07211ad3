"""Muon, the optimizer of the default recipe: all directions of a matrix learn at one pace."""

import math
from types import SimpleNamespace

from minigpt.engine.arrays import module_of
from minigpt.engine.functional import fast
from minigpt.engine.guards import moves_weights, within
from minigpt.training.optim import AdamW


def orthogonal(g, steps=5):
    """Nearly the matrix closest to g whose singular values are all 1.  (R, C) -> (R, C)

        x <- a x + b (x x^T) x + c (x x^T)^2 x        `steps` times, from x = g / |g|

    Every matrix turns a vector, stretches it along the axes, and turns it again: x = u s v^T, where
    u and v are orthogonal and s is diagonal and holds the singular values. To level s without
    finding u and v, look at the terms of the formula. In x x^T = u s^2 u^T the two v cancel. In the
    same way (x x^T) x = u s^3 v^T, and (x x^T)^2 x = u s^5 v^T. So an odd polynomial of a matrix
    keeps u and v, and it maps every singular value by itself: s <- a s + b s^3 + c s^5.

    The norm |g| puts all s between 0 and 1 at first. These a, b and c multiply a small s by up to
    3.4 a turn and hold a large one near 1. After five turns every s lies between 0.7 and 1.2, if it
    was not tiny. Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon (Newton-Schulz).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = g / ((g * g).sum() ** 0.5 + 1e-7)  # not 0 / 0 if no gradient has come
    x = x.T if tall else x  # x x^T then has the shorter side's size
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


FADING = 20  # tables decay this many times as fast as matrices


class Muon:
    """Muon moves a hidden matrix equally far in all directions; AdamW updates the other weights.

        m <- momentum m + g
        w <- w - rate (0.2 sqrt(max(R, C)) orthogonal(g + momentum m) + weight_decay w)

    If the next gradient is like this one, the next m is g + momentum m; to look ahead in this way
    is called Nesterov momentum. The gradient of a matrix has a few large singular values, and a
    plain step would move little else. `orthogonal` levels them, so that directions with small
    gradients learn as fast as those with large ones. The numbers in an orthogonal matrix are about
    1 / sqrt(max(R, C)) in size. The factor makes them 0.2, as they usually are in a step of AdamW,
    so one rate fits both optimizers. AdamW updates what does not map one hidden layer to the next:
    tables, biases and norms. The rows of tables decay FADING times as fast as matrices. A rare row
    was learned from a few places of the text, by heart, and fades until it comes again; a frequent
    one is renewed all the time. Biases and norms do not decay.
    Source: Jordan et al. 2024; factor: Liu et al. 2025, arXiv 2502.16982.
    """

    kept = 1, 2  # numbers remembered per weight of a hidden matrix, and per other weight

    def __init__(self, flat, weight_decay=0.1, momentum=0.95):
        within("Muon", momentum=momentum)
        within("Muon", math.inf, weight_decay=weight_decay)
        self.flat, self.weight_decay, self.momentum = flat, weight_decay, momentum
        rest = slice(flat.hidden, None)  # the vector begins with the hidden matrices
        tables = flat.decayed - flat.hidden  # where they end in the rest
        vectors = SimpleNamespace(data=flat.data[rest], grad=flat.grad[rest], decayed=tables)
        self.rest = AdamW(vectors, FADING * weight_decay)
        m = module_of(flat.data).zeros_like(flat.data[: flat.hidden])
        self.moments = {"momentum": m} | self.rest.moments

    @moves_weights
    def step(self, rate, number):
        if shared := fast("muon_step", self.flat.data):  # faster: fast_optim.py, gpu.py
            return shared(self, rate, number)
        self.rest.step(rate, number)
        vectors = self.flat.data, self.flat.grad, self.moments["momentum"]
        for place, shape in self.flat.matrices:
            w, g, m = (vector[place].reshape(shape) for vector in vectors)  # views, no copies
            m[:] = self.momentum * m + g
            direction = orthogonal(g + self.momentum * m)
            w *= 1 - rate * self.weight_decay
            w -= rate * 0.2 * max(shape) ** 0.5 * direction
            g[:] = 0
