"""Source that shows its own gradients: python -m minigpt.look [TEXT] writes look.html.

The page holds the source of tiny.py, which has run once on the text at a small size. Each
expression shows the array that it made, the gradient that came back to it, where that came from,
and how far it is from its definition, the difference of two losses.
"""

import argparse
import ast
import io
import itertools
import tokenize
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minigpt import tiny
from minigpt.drawing import numbers, page
from minigpt.engine import ops
from minigpt.engine.autograd import no_grad, plain
from minigpt.spy import SOURCE, Spy

T, H, L, WIDTHS = 10, 2, 2, (16, 12, 20, 24, 28)  # sizes of tiny.py, for the page; WIDTHS: of C
READ = 60  # characters of the text at most, so that the page stays small
LEARNING, STEPS = 0.1, 30  # a little plain gradient descent, so that there is something to see
NUDGE, CHECKED = 1e-4, 4  # how much an element is changed, and how many of each array are
PAGE = Path(__file__).with_name("look.html")


def name_results(values, tree):
    """Give each array the name to which its line assigns it, as in x = ... and q, k, v = ..."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            for output, part in enumerate(parts):
                if isinstance(part, ast.Name):
                    names[value.lineno, value.col_offset, value.end_col_offset, output] = part.id
    for value in values:
        key = value["line"], value["start"], value["end"], value["output"]
        value["name"] = value["name"] or names.get(key)


def sizes(length, V):
    """The sizes of tiny.py for a text of V different letters. The numbers of letters, places and
    channels differ, because the page tells by the length of an axis what the axis means."""
    places = min(T, length - 1)
    places -= places == V
    for C in WIDTHS:
        if not {places, V} & {C // H, C, 3 * C, 4 * C}:
            return {"T": places, "C": C, "H": H, "L": L}
    raise AssertionError("cannot happen: two sizes rule out at most two widths each, there are 5")


@contextmanager
def small(sizes):
    """tiny.py at the page's size."""
    before = {name: getattr(tiny, name) for name in sizes}
    for name, size in sizes.items():
        setattr(tiny, name, size)
    try:
        yield
    finally:
        for name, size in before.items():
            setattr(tiny, name, size)


def nudged(loss, value, index, change):
    """The loss if element `index` of a value were larger by `change`."""
    if value["leaf"] is not None:
        data = value["leaf"].data
        before, data[index] = data[index], data[index] + change
        result = loss().item()
        data[index] = before
        return result
    original, count = ops.record, itertools.count()

    def record(y, *inputs):
        result = original(y, *inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        if outputs[0].node is not None and next(count) == value["number"]:
            tensor = outputs[value["output"]]
            tensor.data = tensor.data.copy()  # it may be a view of another one's array
            tensor.data[index] += change
        return result

    ops.record = record
    try:
        return loss().item()
    finally:
        ops.record = original


def off(loss, value, rng):
    """How far a gradient is from differences, at its steepest element and at others by chance.

    The slope is (8 (a - b) - (c - d)) / 12 h of the losses at +h, -h, +2h, -2h; its error is about
    h^4. Returns the largest distance, and how many elements were tried.
    """
    grad, worst = value["grad"], 0.0
    places = {int(np.abs(grad).argmax()), *rng.integers(grad.size, size=CHECKED - 1).tolist()}
    for place in sorted(places):
        index = np.unravel_index(place, grad.shape)
        a, b, c, d = (nudged(loss, value, index, n * NUDGE) for n in (1, -1, 2, -2))
        slope = (8 * (a - b) - (c - d)) / (12 * NUDGE)
        apart = abs(slope - float(grad[index]))
        worst = max(worst, apart if np.isfinite(apart) else np.inf)
    return worst, len(places)


def learned(ids, V, size):
    """Weights of tiny.py in float64, after a few steps on the text."""
    weights, rng = tiny.parameters(V), np.random.default_rng(0)
    for w in weights:
        w.data = w.data.astype(np.float64)
    for _ in range(STEPS):
        places = rng.integers(len(ids) - size, size=(4, 1)) + np.arange(size + 1)
        ops.mean(tiny.surprise(weights, ids[places])).backward()
        for w in weights:
            w.data -= LEARNING * w.grad
            w.grad = None
    return weights


def look(text):
    """All that the page shows of a text, as a dictionary of numbers and words."""
    letters, ids = np.unique(list(text[:READ]), return_inverse=True)
    # Definitions alone: a fast pair would be one op of which the page could not look inside.
    with plain(), small(sizes(len(ids), len(letters))):
        weights = learned(ids, len(letters), tiny.T)
        window = ids[None, : tiny.T + 1]

        def loss():
            return ops.mean(tiny.surprise(weights, window))

        with Spy() as spy:
            result = loss()
            result.backward()
        for value in spy.values:
            if value["leaf"] is not None:
                value["grad"] = value["leaf"].grad
        source = SOURCE.read_text("utf-8")
        name_results(spy.values, ast.parse(source))
        return {
            "source": source.splitlines(),
            "quiet": quiet(source),
            "rounds": spy.rounds,
            "values": expressions(spy, loss),
            "text": [str(letters[i]) for i in window[0]],
            "letters": [str(c) for c in letters],
            "p": numbers(predictions(weights, window)),
            "loss": result.item(),
            "T": tiny.T,
        }


def predictions(weights, window):
    """The probability of every letter at every place of a text (1, T + 1) -> (T, V)"""
    with no_grad():
        z = tiny.gpt(weights, window[:, :-1]).data[0]
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def expressions(spy, loss):
    """What the page shows of each expression: its array, its gradient, and where gradients flow.

    Ops that are made of other ops, such as mean, are one expression.
    """

    def key_of(v):
        return v["round"], v["start"], v["end"], v["output"], v["op"] == "weight"

    last = {key_of(v): number for number, v in enumerate(spy.values)}
    order = sorted(last.values())
    place = {number: i for i, number in enumerate(order)}
    home = [last[key_of(v)] for v in spy.values]
    shown, rng = [], np.random.default_rng(0)
    for number in order:
        v = spy.values[number]
        if v["grad"] is None:
            v["grad"] = np.zeros_like(v["array"])
        worst, checked = off(loss, v, rng)
        steps = [w["op"] for w, h in zip(spy.values, home, strict=True) if h == number]
        entry = {key: v[key] for key in ("line", "start", "end", "round", "name")}
        entry |= {"ops": steps, "shape": list(v["array"].shape), "off": worst, "checked": checked}
        entry |= {"v": numbers(v["array"]), "g": numbers(v["grad"]), "to": {}, "from": {}}
        shown.append(entry)
    for user, v in enumerate(spy.values):
        for used, most in v["uses"].items():
            a, b = place[home[used]], place[home[user]]
            if a != b:
                shown[a]["from"][b] = max(most, shown[a]["from"].get(b, 0.0))
                shown[b]["to"][a] = max(most, shown[b]["to"].get(a, 0.0))
    return shown


def quiet(source):
    """[line, start, end] of comments and docstrings, which the page shows paler."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.string.startswith('"""'):
            for line in range(token.start[0], token.end[0] + 1):
                start = token.start[1] if line == token.start[0] else 0
                found.append([line, start, token.end[1] if line == token.end[0] else 999])
    return found


def main(words=None):
    """The command: write the page of a text; a mistake ends in one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m minigpt.look", description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="?", default="to be, or not to be", help="what it reads")
    parser.add_argument("--out", default="look.html", help="the page (default look.html)")
    args = parser.parse_args(words)
    if len(args.text) < 3 or len(set(args.text[:READ])) < 2:
        parser.error(f"text: expected 3 letters, 2 of them different, got {args.text!r}; add some")
    data = look(args.text)
    try:
        Path(args.out).write_text(page(PAGE, data), encoding="utf-8")
    except OSError as error:
        parser.error(f"--out: cannot write {args.out}: {error.strerror}; name another file")
    worst = max(value["off"] for value in data["values"])
    read = min(len(args.text), READ)
    print(
        f"{args.out}: the first {len(data['text'])} letters, by a model that learned from {read};"
    )
    print(f"{len(data['values'])} arrays of {len(data['rounds'])} rounds of lines; gradients and")
    print(f"differences are at most {worst:.0e} apart. Open it in a browser.")


if __name__ == "__main__":
    main()
