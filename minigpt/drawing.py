"""Pictures as SVG, a text that says what to draw and that every browser shows; and pages of HTML.

A picture is a list of elements, each at a place in pixels; x counts from the left, y from the top.
`Axes` turns numbers into such places, `curve` draws how a training went, and `leave` is what every
run does at each evaluation. `page` puts data into a page whose own script shows it.
"""

import csv
import json
import math
from html import escape

import numpy as np

INK, PALE, LINE = "#1f2328", "#59636e", "#d1d9e0"  # text, lesser text, thin lines
BLUE, RED, GREEN, GREY = "#0969da", "#bc4c00", "#1a7f37", "#6e7781"


class Picture:
    """An SVG picture of width x height; title: what it shows, for those who cannot see it."""

    def __init__(self, width, height, title):
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        font = 'font-family="system-ui, sans-serif" font-size="13"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">'
        # Its own background: the page behind it may be dark.
        ground = f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>'
        self.parts = [head, f"<title>{escape(title)}</title>", ground]

    def add(self, tag, inside="", **attributes):
        """One element; stroke_width=2 becomes stroke-width="2"."""
        words = "".join(
            f' {name.replace("_", "-")}="{short(value)}"' for name, value in attributes.items()
        )
        self.parts.append(f"<{tag}{words}>{inside}</{tag}>" if inside else f"<{tag}{words}/>")

    def text(self, x, y, words, fill=INK, anchor="start", **more):
        """Words whose base line starts (or ends, or has its middle) at x, y."""
        self.add("text", escape(str(words)), x=x, y=y, fill=fill, text_anchor=anchor, **more)

    def line(self, points, stroke=INK, width=2, **more):
        """A line through points (x, y)."""
        places = " ".join(f"{short(x)},{short(y)}" for x, y in points)
        self.add("polyline", points=places, fill="none", stroke=stroke, stroke_width=width, **more)

    def rect(self, x, y, width, height, fill, **more):
        self.add("rect", x=x, y=y, width=max(0, width), height=max(0, height), fill=fill, **more)

    def __str__(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def short(value):
    """A number with at most two decimals, so that pictures stay small; words as they are."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


class Axes:
    """Numbers as places: x from left to right, y from the bottom up, between given ends.

    box: left, top, right and bottom in pixels; x, y: (lowest, highest); log: a logarithmic y axis.
    """

    def __init__(self, picture, box, x, y, log=False):
        self.picture, self.box, self.ends, self.log = picture, box, (x, y), log

    def at(self, x, y):
        """The place of a point."""
        left, top, right, bottom = self.box
        (x0, x1), (y0, y1) = self.ends
        if self.log:
            y, y0, y1 = math.log(y), math.log(y0), math.log(y1)
        across, up = (x - x0) / ((x1 - x0) or 1), (y - y0) / ((y1 - y0) or 1)
        return left + across * (right - left), bottom - up * (bottom - top)

    def frame(self, xs, ys, x_name, y_name, form="{:g}"):
        """The two axes with marks at xs and ys, and what they count."""
        left, top, right, bottom = self.box
        for y in ys:
            place = self.at(self.ends[0][0], y)[1]
            self.picture.line([(left, place), (right, place)], LINE, 1)
            self.picture.text(left - 8, place + 4, form.format(y), PALE, "end")
        for x in xs:
            place = self.at(x, self.ends[1][0])[0]
            self.picture.text(place, bottom + 18, f"{x:g}", PALE, "middle")
        self.picture.text((left + right) / 2, bottom + 38, x_name, PALE, "middle")
        self.picture.text(left - 8, top - 14, y_name, PALE)

    def line(self, points, stroke, width=2, **more):
        self.picture.line([self.at(x, y) for x, y in points], stroke, width, **more)


def ticks(low, high, most=6):
    """Round numbers from low to high, at most `most` + 1: 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(n for n in (1, 2, 5, 10) if (high - low) / (n * step) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def curve(rows, bars, samples, title):
    """How a training went: losses against seconds, and what counting predicts as dashed lines.

    rows: (seconds, training loss, validation loss) of each evaluation; bars: {name: loss};
    samples: (time, text), what the model wrote then, shown below -> SVG.
    """
    losses = [loss for _, *two in rows for loss in two] + [*bars.values()]
    low, high = min(losses), max(losses)
    low, high = low - 0.05 * (high - low), high + 0.02 * (high - low)
    width, bottom = 760, 360
    picture = Picture(width, bottom + 56 + 22 * len(samples), title)
    last = max(seconds for seconds, *_ in rows)
    axes = Axes(picture, (56, 44, width - 150, bottom), (0, last), (low, high))
    axes.frame(ticks(0, last), ticks(low, high), "seconds of training", "nats")
    free = math.inf  # names of bars that lie close together are moved apart
    for name, loss in sorted(bars.items(), key=lambda bar: bar[1]):
        axes.line([(0, loss), (last, loss)], GREY, 1.5, stroke_dasharray="5 4")
        free = min(axes.at(last, loss)[1] + 4, free - 15)
        picture.text(width - 142, free, f"{name} {loss:.2f}", PALE)
    axes.line([(seconds, loss) for seconds, loss, _ in rows], GREY, 1.5)
    axes.line([(seconds, loss) for seconds, _, loss in rows], BLUE, 2.5)
    for place, (name, colour) in enumerate([("validation", BLUE), ("training", GREY)]):
        picture.line([(130 + 130 * place, 22), (154 + 130 * place, 22)], colour, 2.5)
        picture.text(160 + 130 * place, 26, name)
    for place, (time, words) in enumerate(samples):
        y = bottom + 62 + 22 * place
        picture.text(48, y, time, PALE, "end")
        wide = sum(2 if ord(c) > 0x2E80 else 1 for c in words)  # Chinese letters are square
        size = min(12, 1150 / max(1, wide))
        picture.text(56, y, words, font_family="ui-monospace, monospace", font_size=size)
    return str(picture)


def leave(out, first, bars, samples, about):
    """Leave in a run's folder curve.svg, its losses so far, and samples.txt, what it wrote.

    first: the loss before the first step; bars: {name: loss}; samples: (step, seconds, text), those
    that samples.txt does not have yet; about: which model is trained on which data.
    """
    rows = logged(out / "log.csv")
    file, written = out / "samples.txt", []
    if samples:
        with open(file, "a", encoding="utf-8", newline="\n") as end:
            for step, seconds, text in samples:
                end.write(f"step {step}\t{seconds:.0f} s\t{text}\n")
        # Not splitlines(): a sample may hold other characters that end a line.
        cells = [line.split("\t") for line in file.read_text("utf-8").split("\n")]
        written = [line[1:] for line in cells if len(line) == 3]
    n = len(written)
    few = [written[i] for i in sorted({0, n // 8, n // 2, n - 1}) if written]
    untrained = [(0.0, first, first)] if math.isfinite(first) else []
    picture = curve(untrained + rows, bars, few, f"{about}: loss against seconds")
    (out / "curve.svg").write_text(picture, encoding="utf-8")


def logged(file):
    """log.csv -> [(seconds, training loss, validation loss)]

    A row that is no row of numbers is left out: the head, or one that a power cut has cut off. A
    run of --steps that was resumed counts its seconds from 0 again; here they go on.
    """
    rows, resumed, before = [], 0.0, 0.0
    with open(file) as lines:
        for row in csv.reader(lines):
            try:
                _, training, validation, _, seconds = map(float, row)
            except ValueError:
                continue
            if seconds < before:
                resumed += before
            before = seconds
            rows.append((resumed + seconds, training, validation))
    return rows


def numbers(array):
    """An array for a page: flat, three digits each; minus infinity, a hidden place, as null."""
    return [float(f"{x:.3g}") if np.isfinite(x) else None for x in np.ravel(array)]


def page(file, data):
    """The text of a page with the data in it, where its script expects it.

    "<" is written as an escape, so that no text in the data can end the script.
    """
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return file.read_text("utf-8").replace("/*DATA*/ null", packed)
