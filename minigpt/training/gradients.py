"""Is the gradient right? train.py --check-gradients compares it with its definition.

The derivative of the loss L by a weight w is how much L changes if w does, divided by that:
(L(w + h) - L(w - h)) / 2h for a small h. This takes two runs of the model per weight, so only a few
weights of each parameter are tried: the one with the steepest slope, and others by chance.
Source: Goodfellow et al. 2016, section 11.5.
"""

import math

import numpy as np

from minigpt.engine.autograd import no_grad
from minigpt.engine.functional import cross_entropy

NUDGE = 1e-6  # h: in float64 the difference is then right to about 1e-9
TRIED = 4  # weights of each parameter
CLOSE = 1e-4  # as a share of the largest slope of a parameter: what is further off is wrong
SHAKE = 0.02  # how far the weights are moved before the check


def shake(model, rng):
    """Move all weights a little at random. At first some are exactly 0, as biases are, and then a
    ReLU may stand exactly at its bend, where it has no slope that could be compared."""
    for p in model.named_parameters().values():
        p.data += SHAKE * rng.standard_normal(p.shape)


def check(model, x, y, rng):
    """How far each parameter's gradient is from differences -> [(off, name, index)], worst first.

    model: in float64, dropout off; off: as a share of the parameter's largest slope.
    """
    named = model.named_parameters()
    for p in named.values():
        p.grad = None
    cross_entropy(model(x), y).backward()
    found = []
    for name, p in named.items():
        gradient = np.zeros_like(p.data) if p.grad is None else p.grad
        steepest = np.abs(gradient).max()
        places = {int(np.abs(gradient).argmax()), *rng.integers(p.size, size=TRIED - 1).tolist()}
        offs = []
        for place in sorted(places):
            index = tuple(int(i) for i in np.unravel_index(place, p.shape))
            apart = abs(difference(model, x, y, p, index) - float(gradient[index]))
            off = float(apart / (steepest + 1e-6))
            offs.append((off if math.isfinite(off) else math.inf, name, index))
        found.append(max(offs))
    return sorted(found, reverse=True)


def difference(model, x, y, p, index):
    """d loss / d p[index], estimated from the losses at p[index] + NUDGE and p[index] - NUDGE."""
    before, losses = p.data[index], []
    for nudge in (NUDGE, -NUDGE):
        p.data[index] = before + nudge
        with no_grad():
            losses.append(cross_entropy(model(x), y).item())
    p.data[index] = before
    return (losses[0] - losses[1]) / (2 * NUDGE)


def report(found):
    """Lines about what check() has found, the worst first -> lines, whether all is right."""
    off, name, _ = found[0]
    if off < CLOSE:
        return [f"all {len(found)} parameters agree; the worst, {name}, is {off:.0e} off"], True
    wrong = [entry for entry in found if not entry[0] < CLOSE]
    lines = [f"{len(wrong)} of {len(found)} parameters are wrong; the worst:"]
    for off, name, index in wrong[:5]:
        lines.append(f"{name} at {list(index)}: off by {off:.1%} of its largest slope")
    return lines, False
