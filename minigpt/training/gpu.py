"""The end of a training step on a GPU, for which the CPU does not wait.

The CPU puts work into a queue, and the GPU works through it. To read a number back, such as the
loss, the CPU has to wait until the queue is empty, and then the GPU has to wait for new work. So
the loss and the norm of the gradient stay on the GPU, where the kernels of the optimizers read the
norm; the Trainer looks at both after several steps.
"""

import math

import numpy as np

from minigpt.engine.arrays import module_of
from minigpt.engine.fast_cupy import product, squared_norm
from minigpt.engine.fast_elementwise import run


class Queued:
    """The end of each step, and what it leaves on the GPU: a running mean of the loss, and the
    number of the first step whose loss or gradient was not finite; then the loss of that step.

    From that step on the optimizer changes nothing: weights and moments stay as they were before.
    """

    def __init__(self, optimizer, limit):
        data = optimizer.flat.data
        self.optimizer, self.limit, zeros = optimizer, limit, module_of(data).zeros
        self.recent, self.failed = zeros(1, data.dtype), zeros(1, np.int64)
        self.verdict = zeros(1, data.dtype)  # |g|^2, or NaN if a step has failed

    def step(self, loss, rate, number, scale, share):
        """Clip the gradient and update the weights.  loss () on the GPU; scale, share: as Trainer's
        train_step has them"""
        flat, results = self.optimizer.flat, (self.verdict, self.recent, self.failed)
        run("judged", squared_norm(flat.grad), loss, number, *exact(flat, scale, share), *results)
        flat.clipping = self.verdict, self.limit
        self.optimizer.step(rate, number)

    def read(self):
        """Wait for the GPU -> the running mean of the loss; which step failed, 0 if none did"""
        return self.recent.item(), self.failed.item()


def clipping(flat):
    """|g|^2 (1,) on the GPU, and the norm to which a longer gradient is shortened. If no Queued has
    set them, nothing is clipped."""
    if not hasattr(flat, "clipping"):
        flat.clipping = module_of(flat.data).zeros(1, flat.data.dtype), math.inf
    return flat.clipping


def exact(flat, *numbers):
    """Numbers in the type of the weights, as kernels take them."""
    return [flat.data.dtype.type(number) for number in numbers]


def adamw_step(optimizer, rate, number):
    """AdamW with clipping in one pass over the vectors; nothing changes without a finite norm."""
    flat, (norm2, limit) = optimizer.flat, clipping(optimizer.flat)
    left = (1 - beta**number for beta in optimizer.betas)
    kept = 1 - rate * optimizer.weight_decay
    numbers = exact(flat, limit, rate, *optimizer.betas, *left, optimizer.eps, kept)
    m, v = optimizer.moments["m"], optimizer.moments["v"]
    run("adamw", norm2, flat.decayed, *numbers, flat.data, flat.grad, m, v)


def sgd_step(optimizer, rate, number):
    """As adamw_step, for SGD."""
    flat, (norm2, limit) = optimizer.flat, clipping(optimizer.flat)
    numbers = exact(flat, limit, rate, optimizer.momentum, 1 - rate * optimizer.weight_decay)
    run("sgd", norm2, flat.decayed, *numbers, flat.data, flat.grad, optimizer.moments["v"])


def muon_step(optimizer, rate, number):
    """Muon, all matrices of one shape at once: a model of many layers has few shapes.

    One by one they would ask the GPU for so little work at a time that it waits for the CPU.
    """
    flat, (norm2, limit) = optimizer.flat, clipping(optimizer.flat)
    optimizer.rest.flat.clipping = norm2, limit
    optimizer.rest.step(rate, number)
    w, g = flat.data[: flat.hidden], flat.grad[: flat.hidden]
    numbers = exact(flat, limit, optimizer.momentum)
    run("muon_ahead", norm2, *numbers, g, optimizer.moments["momentum"])
    groups = {}
    for place, shape in flat.matrices:
        groups.setdefault(shape, []).append(place)
    for shape, places in groups.items():
        ahead = module_of(g).stack([g[place].reshape(shape) for place in places])
        directions = orthogonal(ahead).reshape(len(places), -1)
        numbers = exact(flat, 0.2 * max(shape) ** 0.5 * rate, 1 - rate * optimizer.weight_decay)
        for i, place in enumerate(places):
            run("muon_apply", norm2, directions[i], *numbers, w[place], g[place])


def orthogonal(x, steps=5):
    """muon.orthogonal of each of n matrices.  (n, R, C) -> (n, R, C)

    The definition levels x^T in place of a tall x. The same comes out if s is x^T x and the
    polynomial of s stands on the right of x.
    """
    tall = x.shape[1] > x.shape[2]
    x = x / (module_of(x).sqrt((x * x).sum((1, 2), keepdims=True)) + 1e-7)
    for _ in range(steps):
        s = product(x, x, ta=tall, tb=not tall)
        p = -4.7750 * s + 2.0315 * product(s, s)
        x = 3.4445 * x + (product(x, p) if tall else product(p, x))
    return x
