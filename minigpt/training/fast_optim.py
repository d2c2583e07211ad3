"""Fast versions of the optimizers' steps on NumPy arrays; gpu.py has those on CuPy's.

Each does what the formula in optim.py or muon.py says, and is found there under its name. Deleting
it changes the time and the last digits, because it rounds in another order.
"""

import math

import numpy as np

from minigpt.training.ranks import Alone

BLOCK = 1 << 15  # numbers: blocks of four vectors, 128 KB each, stay in the L2 cache


def adamw_step(optimizer, rate, number):
    """AdamW without a new array, block by block: 0.8 M weights take 1.3 ms instead of 3.9.

    In blocks no vector is fetched from memory more than once; without them it would be 2.2 ms.
    """
    flat, m, v = optimizer.flat, optimizer.moments["m"], optimizer.moments["v"]
    for i in range(0, len(m), BLOCK):
        part = slice(i, i + BLOCK)
        vectors = flat.data[part], flat.grad[part], m[part], v[part]
        vectors[0][: max(0, flat.decayed - i)] *= 1 - rate * optimizer.weight_decay
        _adam(*vectors, rate, number, *optimizer.betas, optimizer.eps)


def _adam(w, g, m, v, rate, number, b1, b2, eps):
    """The formula of AdamW without the decay; the spent gradient serves as scratch.

    g holds (1 - b1) g, then (1 - b2) g^2, then sqrt(v_hat) + eps, and at last the step itself. The
    corrections of the moments are numbers, multiplied into what is multiplied anyway.
    """
    g *= 1 - b1
    m *= b1
    m += g
    g *= g
    g *= (1 - b2) / (1 - b1) ** 2  # g^2 again, and its share in the mean
    v *= b2
    v += g
    np.sqrt(v, out=g)
    g *= (1 - b2**number) ** -0.5
    g += eps
    np.divide(m, g, out=g)
    g *= rate / (1 - b1**number)
    w -= g
    g.fill(0)


def muon_step(optimizer, rate, number):
    """Muon whose matrices the ranks share out.

    All ranks come with the same gradient. Each finds the directions of its own matrices, writes
    them into its otherwise empty gradient, and all_reduce gives every rank the directions of all.
    For the default model the formula takes 23 ms on two cores, and this 16 ms, shared by the ranks.
    """
    flat, m = optimizer.flat, optimizer.moments["momentum"]
    optimizer.rest.step(rate, number)
    w, g = flat.data[: flat.hidden], flat.grad[: flat.hidden]
    m *= optimizer.momentum
    m += g
    ranks = flat.ranks or Alone()
    largest_first = sorted(flat.matrices, key=lambda matrix: -math.prod(matrix[1]))
    directions = []
    for place, shape in largest_first[ranks.rank :: ranks.size]:
        ahead = g[place] + optimizer.momentum * m[place]
        directions.append((place, orthogonal(ahead.reshape(shape))))
    g.fill(0)  # the directions that other ranks find are added
    for place, x in directions:
        scale = 0.2 * max(x.shape) ** 0.5 * rate
        np.multiply(x.reshape(-1), scale, out=g[place])
    ranks.all_reduce(g)
    w *= 1 - rate * optimizer.weight_decay
    w -= g
    g.fill(0)


def orthogonal(g, steps=5):
    """muon.orthogonal with products of the short side's size: two thirds of the time.

    One turn of the definition is x <- p x with p = a + b s + c s^2 and s = x x^T. All p and s are
    polynomials of the first s: they are symmetric, and their order in a product does not matter.
    So the next s is p x x^T p^T = s (p p^T), which needs no x. The product q of all p is applied to
    x once, at the end. Small singular values lose digits, because s holds their squares.
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
