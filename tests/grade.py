"""Check rules that you have written yourself: python -m tests.grade FILE

FILE defines functions on NumPy arrays with these names, any of them:

    softmax(x), softmax_backward(dy, x)                 x (N, C): along the last axis
    matmul(a, b), matmul_backward(dy, a, b)             a (N, K), b (K, M)
    cross_entropy(z, t), cross_entropy_backward(dloss, z, t)      z (N, V), t (N,) ids; the mean
    layer_norm(x, g, b), layer_norm_backward(dy, x, g, b)         x (N, C), g, b (C,); eps 1e-5
    gelu(x), gelu_backward(dy, x)                       with tanh, as GPT-2's
    attention(q, k, v), attention_backward(dy, q, k, v)           (B, H, T, D), causal
    adamw(w, g, m, v, rate, step)                       betas 0.9, 0.99; eps 1e-8; decay 0.1; one
                                                        step -> w, m, v; step counts from 1

A backward function gets the gradient of the result and what the forward function got, and returns
the gradient of each array, one or a tuple. Each value is compared with the definition in
minigpt/engine/functional.py, each gradient with nudging: the first element that is wrong is named.
"""

import runpy
import sys
from types import SimpleNamespace

import numpy as np

from minigpt.engine import functional, ops
from minigpt.engine.autograd import no_grad, plain, raw
from minigpt.training.optim import AdamW
from tests.gradcheck import differences, draw

TOLERANCE, IDS = 1e-6, np.array([2, 0, 4, 1])
RULES = {  # name: the definition, the names of its arguments, and arguments
    "softmax": (functional.softmax, "x", [draw(3, 5)]),
    "matmul": (ops.matmul, "a b", [draw(3, 4), draw(4, 2, seed=1)]),
    "cross_entropy": (functional.cross_entropy, "z t", [draw(4, 5), IDS]),
    "layer_norm": (functional.layer_norm, "x g b", [draw(3, 6), draw(6) + 1, draw(6, seed=1)]),
    "gelu": (functional.gelu, "x", [draw(4, 3)]),
    "attention": (functional.attention, "q k v", [*draw(3, 2, 2, 5, 3)]),
}  # fmt: skip


def difference(what, mine, expected):
    """A line about the first element that is wrong; None if all are right."""
    mine = np.asarray(mine)
    if mine.shape != np.shape(expected):
        return f"{what}: expected shape {np.shape(expected)}, got {mine.shape}"
    off = np.abs(mine - expected) > TOLERANCE * (1 + np.abs(expected))
    off |= ~np.isfinite(mine)
    if not off.any():
        return None
    place = tuple(int(i) for i in np.argwhere(off)[0])
    where = f" at {list(place)}" if place else ""
    count = f" ({off.sum()} of {off.size} elements are)" if off.size > 1 else ""
    return f"{what} is wrong{where}: expected {expected[place]:.6f}, got {mine[place]:.6f}{count}"


def value(definition, arguments):
    """What the definition in primitive ops says."""
    with no_grad(), plain():
        return np.asarray(raw(definition(*arguments)))


def grade_rule(name, mine):
    """Lines about what is wrong with one rule of a learner's, or what is missing."""
    definition, letters, arguments = RULES[name]
    expected = value(definition, arguments)
    if name in mine:
        yield difference("the value", call(mine[name], arguments), expected)
    if f"{name}_backward" not in mine:
        return
    dy = draw(*expected.shape, seed=99)  # as differences() draws it
    gradients = call(mine[f"{name}_backward"], [dy, *arguments])
    gradients = gradients if isinstance(gradients, (tuple, list)) else (gradients,)
    floats = [i for i, a in enumerate(arguments) if a.dtype.kind == "f"]
    if len(gradients) < len(floats):
        yield f"backward: expected {len(floats)} gradients, got {len(gradients)}"
        return
    with plain():
        slopes = differences(definition, arguments)
    for number, slope in zip(floats, slopes, strict=True):
        letter = letters.split()[number]
        yield difference(f"the gradient of {letter}", gradients[number], slope)


def grade_adamw(mine):
    """Three steps of a learner's AdamW beside ours."""
    w, m, v = draw(5), np.zeros(5), np.zeros(5)
    flat = SimpleNamespace(data=w.copy(), grad=np.zeros(5), decayed=5)
    ours = AdamW(flat, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
    for step in (1, 2, 3):
        g = draw(5, seed=step)
        flat.grad[:] = g
        with plain():
            ours.step(0.1, step)
        w, m, v = (np.array(a) for a in call(mine["adamw"], [w, g.copy(), m, v, 0.1, step]))
        pairs = zip(("w", "m", "v"), (w, m, v), (flat.data, *ours.moments.values()), strict=True)
        wrong = [difference(f"{n} after step {step}", a, b) for n, a, b in pairs]
        if any(wrong):
            return wrong
    return []


def call(function, arguments):
    """The result of a learner's function, on copies, so that it cannot spoil what follows."""
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    return function(*copies)


def grade(mine):
    """{name of a rule: lines about what is wrong} for all rules that a file defines."""
    found = {}
    for name in [*RULES, "adamw"]:
        if name not in mine and f"{name}_backward" not in mine:
            continue
        try:
            lines = grade_adamw(mine) if name == "adamw" else grade_rule(name, mine)
            found[name] = [line for line in lines if line]
        except Exception as error:  # a learner's code may do anything
            found[name] = [f"it stopped: {type(error).__name__}: {error}"]
    return found


def main(words=None):
    words = sys.argv[1:] if words is None else words
    if len(words) != 1 or words[0].startswith("-"):
        print(__doc__)
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        mine = runpy.run_path(words[0])
    except Exception as error:
        print(f"{words[0]}: cannot be run: {type(error).__name__}: {error}")
        return 2
    found = grade(mine)
    if not found:
        print(f"{words[0]}: expected one of {', '.join([*RULES, 'adamw'])}, found none of them")
        return 2
    for name, wrong in found.items():
        print(f"{name}: {'right' if not wrong else ''}".rstrip())
        for line in wrong:
            print(f"    {line}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
