"""The pictures of the tour, drawn from what they show: python -m tests.pictures

Those of small numbers compute them anew; those of long runs read tests/benchmarks/results.json.
"""

import math
from pathlib import Path
from statistics import mean

import numpy as np

from minigpt.drawing import BLUE, GREEN, GREY, INK, LINE, PALE, RED, Axes, Picture
from minigpt.engine.autograd import Tensor
from minigpt.engine.functional import softmax
from minigpt.engine.ops import tanh
from minigpt.generate import truncated
from tests.benchmarks import tables

FOLDER = Path(__file__).resolve().parents[1] / "minigpt/pictures"
MONO = {"font_family": "ui-monospace, monospace"}
# Of tiny Shakespeare, by text.baselines; the last is README's, of nanoGPT's CPU preset.
COUNTED = {"guessing": 4.174, "letter frequencies": 3.347, "nanoGPT, 66 s": 1.898}
COUNTED |= {"bzip2": 1.827, "best n-gram": 1.669}


def bars():
    """0: how surprised each way to predict is."""
    found = dict(COUNTED)
    for seconds, _, loss in budgets():
        found[f"minigpt, {seconds:.0f} s"] = loss
    picture = Picture(640, 40 + 26 * len(found), "nats per character of tiny Shakespeare")
    picture.text(20, 24, "surprise in nats per character, tiny Shakespeare", PALE)
    for place, (name, loss) in enumerate(found.items()):
        y = 40 + 26 * place
        mine = name.startswith("minigpt")
        picture.text(170, y + 14, name, INK, "end")
        picture.rect(180, y, 90 * loss, 18, BLUE if mine else GREY)
        picture.text(188 + 90 * loss, y + 14, f"{loss:.2f}")
    return picture


def budgets():
    """(seconds, steps, loss) of the default on tiny Shakespeare, means over seeds."""
    rows = tables.load()["budgets"]["rows"]
    return [tuple(map(mean, row)) for row in rows]


PARTS = [  # of tiny.py: how its first and last line begin, and where the tour explains it
    ("def parameters", "return [Tensor", "6  why some start smaller"),
    ("def norm", "return x / sqrt", "4  every row to size 1"),
    ("x = letter", "x = letter", "4  letters become vectors"),
    ("heads =", "x = x + (share", "5  attention"),
    ("h = norm", "x = x + h", "4  a bend;  6  residuals"),
    ("def surprise", "return log", "0, 3  surprise is loss"),
    ("mean(surprise", "mean(surprise", "2  blame flows backward"),
    ("rate =", "w.grad =", "7  a step"),
    ("scores =", "test = np.append", "8  writing is sampling"),
]


def code():
    """1: tiny.py, and the chapter that explains each part."""
    lines = (FOLDER.parent / "tiny.py").read_text(encoding="utf-8").splitlines()
    picture = Picture(900, 30 + 12 * len(lines), "tiny.py, and the chapters that explain its parts")
    for first, last, words in PARTS:
        at = [n for n, line in enumerate(lines) if line.strip().startswith(first)][0]
        end = [n for n, line in enumerate(lines) if line.strip().startswith(last) and n >= at][0]
        y, height = 14 + 12 * at, 12 * (end - at + 1) - 2
        picture.rect(12, y, 620, height, BLUE, fill_opacity=0.1)
        middle = y + height / 2
        picture.line([(632, middle), (662, middle)], BLUE, 1.5)
        picture.line([(656, middle - 4), (662, middle), (656, middle + 4)], BLUE, 1.5)
        picture.text(670, middle + 4, words, INK)
    for n, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        style = {"font_size": 9.5, **MONO}
        picture.text(18 + 5.72 * indent, 23 + 12 * n, line.strip(), INK, **style)
    return picture


def blame():
    """3: three probabilities, and the gradient of each logit."""
    p = softmax(np.array([[1.0, 2.0, 3.0]])).data[0]
    slopes = p - [0, 0, 1]
    picture = Picture(560, 230, "Logits 1, 2, 3: probabilities, and gradient if the third comes")
    for left, name, values in (90, "probability", p), (350, "gradient of the logit", slopes):
        picture.text(left - 60, 26, name, PALE)
        picture.line([(left - 60, 140), (left + 150, 140)], LINE, 1)
        for place, value in enumerate(values):
            x, height = left + 60 * place - 40, 130 * abs(value)
            picture.rect(
                x, 140 - height if value > 0 else 140, 40, height, BLUE if value > 0 else RED
            )
            y = 134 - height if value > 0 else 156 + height
            picture.text(x + 20, y, f"{value:.3f}", INK, "middle")
            picture.text(x + 20, 218, f"z = {place + 1}", PALE, "middle")
    return picture


def rectangle(picture, x, y, width, height, name, shape, fill):
    picture.rect(x, y, width, height, fill, stroke=INK, fill_opacity=0.25)
    picture.text(x + width / 2, y + height / 2 + 5, name, INK, "middle", font_size=16, **MONO)
    picture.text(x + width / 2, y + height + 18, shape, PALE, "middle")


def shapes():
    """4: a product and its two backward products as rectangles of N = 80, K = 50, M = 110."""
    N, K, M = 80, 50, 110
    picture = Picture(620, 420, "y = a b, da = dy b transposed, db = a transposed dy")
    rows = [
        (20, ("a", N, K, "N, K", BLUE), ("b", K, M, "K, M", GREEN), ("y", N, M, "N, M", GREY)),
        (150, ("dy", N, M, "N, M", RED), ("bᵀ", M, K, "M, K", GREEN), ("da", N, K, "N, K", BLUE)),
        (310, ("aᵀ", K, N, "K, N", BLUE), ("dy", N, M, "N, M", RED), ("db", K, M, "K, M", GREEN)),
    ]
    for y, *three in rows:
        x = 40
        for (name, high, wide, shape, fill), sign in zip(three, ("", "·", "="), strict=True):
            picture.text(x - 6, y + 45, sign, INK, "middle", font_size=20)
            rectangle(picture, x + 10, y, wide, high, name, shape, fill)
            x += 150 + 40
    return picture


def triangle():
    """5: the shares of the three positions of the example."""
    shares = [[1, 0, 0], [1 / 3, 2 / 3, 0], [1 / 6, 1 / 3, 1 / 2]]
    picture = Picture(430, 250, "The shares of three positions; nobody sees a later one")
    picture.text(120, 30, "whose value (keys)", PALE)
    for i, row in enumerate(shares):
        picture.text(98, 82 + 56 * i, f"position {i + 1}", PALE, "end")
        for j, share in enumerate(row):
            x, y = 110 + 66 * j, 50 + 56 * i
            if j > i:
                picture.rect(x, y, 60, 50, "#ffffff", stroke=LINE, stroke_dasharray="4 3")
                picture.text(x + 30, y + 30, "hidden", GREY, "middle", font_size=11)
                continue
            picture.rect(x, y, 60, 50, BLUE, fill_opacity=0.15 + 0.6 * share)
            picture.text(x + 30, y + 30, f"{share:.2f}", INK, "middle")
        picture.text(322, 82 + 56 * i, f"→ {(6, 10, 14)[i]}")
    picture.text(110, 236, "values: 6, 12, 18", PALE)
    return picture


def depth():
    """6: the size of the gradient at each of 20 layers."""
    picture = Picture(560, 330, "The size of the gradient at each of 20 layers")
    axes = Axes(picture, (80, 44, 410, 270), (0, 20), (1e-7, 10), log=True)
    axes.frame(range(0, 21, 5), [10.0**n for n in range(-7, 2, 2)], "layer", "gradient", "{:.0e}")
    for residual, name, colour in (True, "with residuals", BLUE), (False, "without", RED):
        points = [(layer, size) for layer, size in enumerate(gradients(residual))]
        axes.line(points, colour, 2.5)
        x, y = axes.at(*points[0])
        picture.text(424, (axes.at(20, 1)[1] - 20) if residual else y, name, colour)
    return picture


def gradients(residual, layers=20, C=64):
    """The size of the gradient of each layer's input, as in the tour's example."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((16, C)), requires_grad=True)
    matrices = [rng.standard_normal((C, C)) * 0.5 / C**0.5 for _ in range(layers)]
    values = [x.data]
    for w in matrices:
        y = np.tanh(values[-1] @ w)
        values.append(values[-1] + y if residual else y)
    dx, sizes = np.ones((16, C)), [1.0]
    for value, w in zip(reversed(values[:-1]), reversed(matrices), strict=True):
        leaf = Tensor(value, requires_grad=True)
        y = tanh(leaf @ w)
        (leaf + y if residual else y).backward(dx)
        dx = leaf.grad
        sizes.append(float(np.abs(dx).mean()))
    return sizes[::-1]


def valleys():
    """7: the loss (a^2 + 100 b^2) / 2 as a map, with twenty steps of SGD and of AdamW."""
    picture = Picture(620, 290, "A valley, steep in one direction: 20 steps of SGD and of AdamW")
    axes = Axes(picture, (40, 40, 590, 250), (-2.2, 0.6), (-0.28, 0.28))
    for level in (0.02, 0.2, 0.6, 1.2, 2.0, 3.0):
        a, b = (2 * level) ** 0.5, (2 * level / 100) ** 0.5
        turn = np.linspace(0, 2 * np.pi, 90)
        inside = [(a * math.cos(t), b * math.sin(t)) for t in turn]
        inside = [point for point in inside if -2.2 <= point[0] <= 0.6]
        for half in ([p for p in inside if p[1] >= 0], [p for p in inside if p[1] <= 0]):
            axes.line(sorted(half), LINE, 1)
    start = np.array([-2.0, 0.2])
    for name, path, colour, y in (
        ("SGD, rate 0.018", sgd(start, 0.018, 20), RED, 20),
        ("AdamW, rate 0.3", adam(start, 0.3, 20), BLUE, 20),
    ):
        axes.line(path, colour, 2)
        for x, b in path:
            place = axes.at(x, b)
            picture.add("circle", cx=place[0], cy=place[1], r=2.5, fill=colour)
        picture.text(60 if colour == RED else 240, y, name, colour)
    x, y = axes.at(0, 0)
    picture.text(x + 8, y + 18, "lowest point", PALE)
    return picture


def slope(w):
    return w * [1, 100]


def sgd(w, rate, steps):
    path = [tuple(w)]
    for _ in range(steps):
        w = w - rate * slope(w)
        path.append(tuple(w))
    return path


def adam(w, rate, steps):
    path, m, v = [tuple(w)], 0.0, 0.0
    for t in range(1, steps + 1):
        g = slope(w)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        w = w - rate * (1 - t / steps) * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.99**t))
        path.append(tuple(w))
    return path


def temperature():
    """8: the logits 1, 2, 3 at three temperatures, and what top-p leaves."""
    z = np.array([[1.0, 2.0, 3.0]])
    shown = {f"temperature {t:g}": softmax(z / t).data[0] for t in (0.5, 1, 2)}
    kept = truncated(np.exp(z), None, 0.9)[0]
    shown["top-p 0.9"] = kept / kept.sum()
    picture = Picture(680, 210, "Logits 1, 2, 3: what temperature and top-p make of them")
    for group, (name, values) in enumerate(shown.items()):
        left = 20 + 165 * group
        for place, value in enumerate(values):
            x, height = left + 46 * place, 120 * value
            picture.rect(x, 155 - height, 38, height, BLUE if value else LINE)
            picture.text(x + 19, 149 - height, f"{value:.2f}", INK, "middle", font_size=11)
        picture.line([(left - 4, 155), (left + 136, 155)], LINE, 1)
        picture.text(left + 66, 180, name, PALE, "middle")
    return picture


def waterfall():
    """9: the loss after each part of the recipe, from the ablation."""
    rows = tables.load()["ablation"]["rows"]
    picture = Picture(760, 60 + 28 * len(rows), "What each part takes off the loss")
    low, high = 1.3, max(row["loss"] for row in rows.values())
    picture.text(20, 26, "nats per character after 66 s (bars begin at 1.3)", PALE)
    before = None
    for place, (name, row) in enumerate(rows.items()):
        y, width = 44 + 28 * place, 330 * (row["loss"] - low) / (high - low)
        picture.text(310, y + 14, name.replace("`", ""), INK, "end")
        picture.rect(320, y, width, 20, BLUE, fill_opacity=0.8)
        if before is not None:
            picture.rect(320 + width, y, before - width, 20, BLUE, fill_opacity=0.15)
        picture.text(330 + max(width, before or 0), y + 14, f"{row['loss']:.3f}")
        before = width
    return picture


def memories():
    """10: what each mechanism keeps between two letters."""
    picture = Picture(740, 250, "What attention, recurrence and convolution remember")
    letters = "the cat s"
    for row, name in enumerate(("attention", "recurrence", "convolution")):
        y = 40 + 70 * row
        picture.text(20, y + 18, name)
        for place, letter in enumerate(letters):
            x = 130 + 40 * place
            kept = row == 0 or (row == 2 and place >= len(letters) - 3)
            fill = {"fill": BLUE, "fill_opacity": 0.25} if kept else {"fill": "#ffffff"}
            picture.rect(x, y, 34, 28, stroke=LINE, **fill)
            picture.text(x + 17, y + 19, letter, INK if kept else GREY, "middle", **MONO)
        if row == 1:
            picture.rect(500, y, 34, 28, RED, fill_opacity=0.35, stroke=LINE)
            picture.text(517, y + 19, "h", INK, "middle", **MONO)
        said = "a key and a value of each", "one vector for all", "the last few inputs"
        picture.text(548, y + 18, said[row], PALE)
    return picture


def ladder():
    """12: a step of GPT-2's form on each rung, from the benchmark."""
    rows = tables.load()["gpt"]["rows"]
    picture = Picture(640, 50 + 30 * len(rows), "Milliseconds of a training step")
    picture.text(20, 26, "ms of a training step of GPT-2's form", PALE)
    most = max(row["ms"][0] for row in rows.values())
    for place, (name, row) in enumerate(rows.items()):
        y, width = 40 + 30 * place, 320 * row["ms"][0] / most
        picture.text(210, y + 15, name, INK, "end")
        picture.rect(220, y, width, 20, BLUE if name.startswith("minigpt") else GREY)
        picture.text(228 + width, y + 15, f"{row['ms'][0]:.0f}")
    return picture


PICTURES = {
    "0-bars": bars, "1-code": code, "3-blame": blame, "4-shapes": shapes, "5-triangle": triangle,
    "6-depth": depth, "7-valleys": valleys, "8-temperature": temperature,
    "9-waterfall": waterfall, "10-memories": memories, "12-ladder": ladder,
}  # fmt: skip


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(str(draw()), encoding="utf-8")


if __name__ == "__main__":
    main()
