"""A spy notes every array that tiny.py makes: its line, its inputs, and the gradient it receives.

Every primitive op ends in `ops.record`. Within `with Spy():` a function of the spy replaces it and
notes, besides, which expression has called. The code of the engine is unchanged.
"""

import sys
from pathlib import Path

import numpy as np

from minigpt import tiny
from minigpt.engine import autograd, ops
from minigpt.engine.autograd import Tensor

SOURCE = Path(tiny.__file__)


class Spy:
    """Within `with Spy() as spy:` every op that tiny.py calls is noted.

    values: a dictionary for each array that an op made, and for each weight at its first use. It
    holds the place in the source (line, start, end), the round, op, array and grad; `number` counts
    the ops, and `uses` maps each input, by its index in `values`, to the largest absolute gradient
    that the input got from here.
    A round is one execution of a line, and its `parent` is the round of the line that called it.
    """

    def __init__(self):
        self.values, self.at = [], {}  # at: what made a tensor -> the place of its value
        self.ops = 0  # how many were noted
        self.frames = {}  # call of tiny.py -> its last instruction, how often it has jumped back
        self.rounds, self.numbers = [], {}  # (frame, line, times) -> the number of its round

    def __enter__(self):
        self.original, ops.record = ops.record, self.record
        return self

    def __exit__(self, *_):
        ops.record = self.original

    def record(self, y, *inputs):
        """In place of autograd.record: the same, with rules that also note the gradients."""
        mine, sources = [], [self.source(x) for x, _ in inputs]

        def watched(rule, source):
            """The rule of one input, which also notes what arrives and what it hands on."""

            def note(*dys):
                for value, dy in zip(mine, dys, strict=True):
                    value["grad"] = dy
                dx = rule(*dys)
                if source is not None and dx is not None:
                    shape = self.values[source]["array"].shape
                    self.given(mine, source, np.abs(autograd._unbroadcast(dx, shape)).max())
                return dx

            note.__qualname__ = rule.__qualname__
            return note

        pairs = [(x, watched(rule, s)) for (x, rule), s in zip(inputs, sources, strict=True)]
        result = self.original(y, *pairs)
        outputs = result if isinstance(result, tuple) else (result,)
        if outputs[0].node is None:
            return result
        about = self.place(sys._getframe(1)) | {"op": outputs[0].node.name, "leaf": None}
        about |= {"number": self.ops, "name": None, "grad": None}
        self.ops += 1
        for x in outputs:
            uses = {source: 0.0 for source in sources if source is not None}
            value = about | {"array": x.data, "output": x.output, "uses": uses}
            mine.append(self.keep(x, value))
        return result

    def keep(self, tensor, value):
        """Append a value, and remember its index for the tensor."""
        self.at[tensor.node or tensor, tensor.output] = len(self.values)
        self.values.append(value)
        return value

    def given(self, mine, source, most):
        """Note the largest gradient that a source got from the outputs `mine` of an op."""
        for value in mine:
            value["uses"][source] = max(float(most), value["uses"].get(source, 0.0))

    def source(self, x):
        """The index of x in `values`, None if x needs no gradient; a new weight is added there."""
        if not isinstance(x, Tensor) or not x.requires_grad:
            return None
        if (x.node or x, x.output) not in self.at:
            self.weight(x)
        return self.at[x.node or x, x.output]

    def weight(self, x):
        """Note a weight where tiny.py first names it, in the function that was called first."""
        found, frame = None, sys._getframe(1)
        while frame:
            if frame.f_code.co_filename == tiny.__file__:
                for name, local in frame.f_locals.items():
                    found = (frame, name) if local is x else found
            frame = frame.f_back
        frame, name = found
        line = SOURCE.read_text("utf-8").splitlines()[frame.f_lineno - 1]
        start = max(0, line.find(name))
        value = {"line": frame.f_lineno, "start": start, "end": start + len(name), "op": "weight"}
        value |= {"array": x.data, "leaf": x, "output": 0, "grad": None, "name": name}
        self.keep(x, value | {"uses": {}, "round": self.round(frame)})

    def place(self, frame):
        """Where in tiny.py this op was asked for: the expression, and which round of its line."""
        while frame.f_code.co_filename != tiny.__file__:
            frame = frame.f_back
            if frame is None:  # called from outside, as the mean is
                return {"line": 0, "start": 0, "end": 0, "round": self.round(None)}
        # Python knows where the source of each instruction, of two bytes, begins and where it ends.
        line, last, start, end = list(frame.f_code.co_positions())[frame.f_lasti // 2]
        if last != line:
            end = len(SOURCE.read_text("utf-8").splitlines()[line - 1])
        return {"line": line, "start": start, "end": end, "round": self.round(frame)}

    def round(self, frame):
        """The number of the round: of the present execution of this frame's line."""
        if frame is None:
            key, parent = (None, 0, 0), None
        else:
            last, times = self.frames.get(frame, (0, 0))
            times += frame.f_lasti < last  # a step back in the code: a loop goes round once more
            self.frames[frame] = frame.f_lasti, times
            key, outer = (frame, frame.f_lineno, times), frame.f_back
            while outer and outer.f_code.co_filename != tiny.__file__:
                outer = outer.f_back
            parent = self.round(outer) if outer else None
        if key not in self.numbers:
            self.numbers[key] = len(self.rounds)
            self.rounds.append({"line": key[1], "parent": parent})
        return self.numbers[key]
