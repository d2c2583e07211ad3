"""Optimizers over one flat vector of weights, clipping, learning rate schedules."""

import math

from minigpt.engine.device import module_of


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


OPTIMIZERS = {"adamw": AdamW, "sgd": SGD}


def clip(gradient, limit):
    """Scale the gradient to norm `limit` if longer -> its norm.  Source: Pascanu et al. 2013"""
    norm = math.sqrt(float(gradient @ gradient))
    if limit < norm < math.inf:
        gradient *= limit / norm
    return norm


SCHEDULES = {  # share of the steps done, 0 to 1 -> share of the peak rate
    "cosine": lambda done: 0.55 + 0.45 * math.cos(math.pi * done),  # ends at a tenth
    "linear": lambda done: 1 - done,
}


def rate_at(step, steps, peak, warmup, schedule):
    """The learning rate of step 0 to steps - 1: `warmup` steps up in a line, then the schedule."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * SCHEDULES[schedule]((step - warmup) / max(1, steps - warmup))
