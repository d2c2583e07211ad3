"""Optimizers turn the gradient of the loss into a step of the weights; clipping and schedules.

All weights of a model lie in one vector w, and their gradients in another one, g (class Flat in
nn/module.py), so a formula for one weight is one line of code for all of them. Every step changes
these vectors in place (`w -= ...`, `m[:] = ...`), because the parameters of the model are views of
w: a new array under this name would not reach them.
"""

import math

from minigpt.engine.arrays import module_of
from minigpt.engine.functional import fast
from minigpt.engine.guards import moves_weights, within


class SGD:
    """Stochastic gradient descent with momentum follows a decaying sum of the past gradients.

        v <- momentum v + g
        w <- w - rate (v + weight_decay w)

    Where successive gradients agree, v grows up to 1 / (1 - momentum) = 10 times as long as one of
    them; where they contradict each other, they cancel. Weight decay pulls matrices, but not biases
    and norms, toward zero, so that only weights that lower the loss stay large.

    moments: the arrays that an optimizer remembers from step to step; a checkpoint keeps them.
    Source: Sutskever et al. 2013, section 2; decay: Loshchilov & Hutter 2019.
    """

    kept = 1, 1  # numbers remembered per weight of a hidden matrix, and per other weight

    def __init__(self, flat, weight_decay=0.0, momentum=0.9):
        within("SGD", momentum=momentum)
        within("SGD", math.inf, weight_decay=weight_decay)
        self.flat, self.weight_decay, self.momentum = flat, weight_decay, momentum
        self.moments = {"v": module_of(flat.data).zeros_like(flat.data)}

    @moves_weights
    def step(self, rate, number):
        """Update the weights. rate: the learning rate; number counts the steps from 1."""
        if in_place := fast("sgd_step", self.flat.data):
            return in_place(self, rate, number)
        w, g, v = self.flat.data, self.flat.grad, self.moments["v"]
        v[:] = self.momentum * v + g
        w[: self.flat.decayed] *= 1 - rate * self.weight_decay
        w -= rate * v
        g[:] = 0


class AdamW:
    """AdamW divides each weight's gradient by its usual size, so that all learn at one pace.

        m <- b1 m + (1 - b1) g        a running mean of the gradient
        v <- b2 v + (1 - b2) g^2      a running mean of its square
        m_hat = m / (1 - b1^t)        at step t, which counts from 1
        v_hat = v / (1 - b2^t)
        w <- w - rate (m_hat / (sqrt(v_hat) + eps) + weight_decay w)

    The mean of a power of g is called a moment: m is the first moment and v the second. Both start
    at 0, so after t steps the shares of the gradients in them add up to 1 - b^t instead of 1, and
    m_hat and v_hat make up for that. At the first step m_hat = g and v_hat = g^2: each weight
    changes by `rate`, whether its gradient is 100 or 0.01. The decay is not divided by sqrt(v_hat);
    this is what the W adds to Adam.
    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    kept = 2, 2

    def __init__(self, flat, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8):
        within("AdamW", beta_1=betas[0], beta_2=betas[1])
        within("AdamW", math.inf, weight_decay=weight_decay, eps=eps)
        self.flat, self.weight_decay, self.betas, self.eps = flat, weight_decay, betas, eps
        zeros = module_of(flat.data).zeros_like
        self.moments = {"m": zeros(flat.data), "v": zeros(flat.data)}

    @moves_weights
    def step(self, rate, number):
        if in_place := fast("adamw_step", self.flat.data):  # faster: fast_optim.py, gpu.py
            return in_place(self, rate, number)
        w, g, m, v = self.flat.data, self.flat.grad, self.moments["m"], self.moments["v"]
        b1, b2 = self.betas
        m[:] = b1 * m + (1 - b1) * g
        v[:] = b2 * v + (1 - b2) * g * g
        m_hat = m / (1 - b1**number)
        v_hat = v / (1 - b2**number)
        w[: self.flat.decayed] *= 1 - rate * self.weight_decay
        w -= rate * m_hat / (module_of(v).sqrt(v_hat) + self.eps)
        g[:] = 0


def clip(gradient, limit):
    """Shorten the gradient to norm `limit` if it is longer -> the norm that it had.

    So one unusual batch cannot throw the weights far off. The caller sees in the norm if the
    gradient is not finite. Source: Pascanu et al. 2013, arXiv 1211.5063.
    """
    norm = math.sqrt(float(gradient @ gradient))
    if limit < norm < math.inf:
        gradient *= limit / norm
    return norm


def cosine(done):
    """Half a wave from the peak to a tenth.  Source: Loshchilov & Hutter 2017, arXiv 1608.03983"""
    return 0.55 + 0.45 * math.cos(math.pi * done)


def stable(done):
    """The peak rate for 40 % of the steps, and then a straight line down to 0.

    Source: Hu et al. 2024, arXiv 2404.06395, where the fall takes the last tenth only.
    """
    return min(1.0, (1 - done) / 0.6)


SCHEDULES = {"cosine": cosine, "stable": stable}  # share of steps done -> share of the peak rate


def rate_at(step, steps, peak, warmup, schedule):
    """The learning rate of a step, which counts from 0: a climb to `peak`, then the schedule.

    For `warmup` steps the rate climbs in a straight line, because the first gradients of a random
    model point far, and the optimizer's moments have yet to learn their sizes.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * SCHEDULES[schedule](done)
