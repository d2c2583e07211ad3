"""Is the model right? train.py --check-gradients compares each gradient with its definition, fast
pairs with theirs, and a text read in two pieces with the same text read at once.

The derivative of the loss L by a weight w is how much L changes if w does, divided by that:
(L(w + h) - L(w - h)) / 2h for a small h. This takes two runs of the model per weight, so only a few
weights of each parameter are tried: the one with the steepest slope, and others by chance.
Source: Goodfellow et al. 2016, section 11.5.
"""

import math

import numpy as np

from minigpt.engine.autograd import no_grad, plain
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


def habits(model, x, y):
    """What else is wrong with a model -> a line each, none if all is right.

    Its fast pairs must give the loss that the definitions give. And if it is a language model, no
    position may see those behind it, and its state must hold what later tokens need.
    """
    lines = []
    with no_grad():
        loss = cross_entropy(model(x), y).item()
        with plain():
            defined = cross_entropy(model(x), y).item()
        if not math.isclose(loss, defined, rel_tol=1e-6):
            lines.append(f"loss {loss:.6f} with fast pairs, {defined:.6f} by the definitions")
        if not hasattr(model, "new_state"):
            return lines
        whole, half = model(x).data, x.shape[1] // 2
        other = x.copy()
        other[:, -1] = (other[:, -1] + 1) % whole.shape[-1]
        if (at := first_change(model(other).data[:, :-1], whole[:, :-1])) is not None:
            lines.append(f"position {at} sees the token at position {x.shape[1] - 1}, behind it")
            return lines  # then no state could hold what it needs
        state = model.new_state(len(x))
        pieces = [model(part, None, state)[0].data for part in (x[:, :half], x[:, half:])]
        if (at := first_change(np.concatenate(pieces, 1), whole)) is not None:
            read = f"if {half} tokens are read first and the rest with their state"
            lines.append(f"other logits from position {at} on {read}: see `state` of your mixer")
    return lines


def first_change(a, b):
    """The first position at which logits a and b (B, T, V) differ, or None."""
    apart = (np.abs(a - b) > 1e-6 * np.abs(b).max()).any((0, 2))
    return int(apart.argmax()) if apart.any() else None


def report(found):
    """Lines about what check() has found, the worst first -> lines, whether all is right."""
    off, name, _ = found[0]
    if off < CLOSE:
        return [f"all {len(found)} parameters agree; the worst, {name}, is {off:.0e} off"], True
    wrong = [entry for entry in found if not entry[0] < CLOSE]
    lines = [f"{len(wrong)} of {len(found)} parameters are wrong; the worst:"]
    for off, name, index in wrong[:5]:
        lines.append(f"{name} at {list(index)}: off by {off:.1%} of its largest slope")
    if right := [name for off, name, _ in found if off < CLOSE]:
        lines.append(f"right, so behind the mistake: {', '.join(right[:6])}")
    return lines, False
