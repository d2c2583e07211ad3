"""Is the gradient right? train.py --check-gradients compares it with its definition.

The derivative of the loss by a weight w is how much the loss changes if w does, divided by that:
(L(w + h) - L(w - h)) / 2h for a small h. It is wrong by a multiple of h^2, which drops out of

    (8 (L(w + h) - L(w - h)) - (L(w + 2h) - L(w - 2h))) / 12h

This takes four runs of the model per weight, so only a few weights of each parameter are tried: the
one with the steepest slope, and others by chance. Source: Goodfellow et al. 2016, section 11.5.
"""

import numpy as np

from minigpt.engine.autograd import no_grad
from minigpt.engine.functional import cross_entropy

NUDGE = 1e-4  # h, of numbers about 1 in size
TRIED = 4  # weights of each parameter
CLOSE = (
    1e-4  # of the largest slope of a parameter: further off is wrong. A bend, as that of ReLU^2,
)
# that happens to lie within 2h takes a part of it.


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
            offs.append((apart / (steepest + 1e-6), name, index))
        found.append(max(offs))
    return sorted(found, reverse=True)


def difference(model, x, y, p, index):
    """The slope of the loss by one number of a parameter, from four losses beside it."""
    before, losses = p.data[index], []
    for nudge in (1, -1, 2, -2):
        p.data[index] = before + nudge * NUDGE
        with no_grad():
            losses.append(cross_entropy(model(x), y).item())
    p.data[index] = before
    a, b, c, d = losses
    return (8 * (a - b) - (c - d)) / (12 * NUDGE)


def report(found):
    """Lines about what check() has found, the worst first -> lines, whether all is right."""
    off, name, index = found[0]
    if off < CLOSE:
        return [f"all {len(found)} parameters agree; the worst, {name}, is {off:.0e} off"], True
    lines = [f"{sum(o >= CLOSE for o, *_ in found)} of {len(found)} parameters are wrong:"]
    for off, name, index in found[:5]:
        if off >= CLOSE:
            lines.append(f"{name} at {list(index)}: off by {off:.1%} of its largest slope")
    return lines, False
