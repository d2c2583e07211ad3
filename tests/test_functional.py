"""Every definition against a slow loop and differences; every fast pair against its definition."""

import cmath
import contextlib
import inspect
import math
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gradcheck import draw, gradcheck, is_float, run

from minigpt.engine import (
    convolution,
    fast_convolution,
    fast_cupy,
    fast_elementwise,
    fast_numpy,
    fast_recurrence,
    functional,
    recipe,
    recurrence,
)
from minigpt.engine.autograd import Tensor, no_grad, plain
from minigpt.engine.functional import PAIRS, cross_entropy, fast


def heads(*shape, seed=0):
    """q, k, v (B, H, T, D) as a model makes them: cut from one array, and transposed."""
    B, H, T, D = shape
    qkv = np.split(draw(B, T, 3 * H * D, seed=seed), 3, axis=-1)
    return [x.reshape(B, T, H, D).transpose(0, 2, 1, 3) for x in qkv]


def ids(*values):
    return np.array(values)


z5, qkv = draw(6, 5), heads(2, 3, 5, 2)
some = ids(1, -100, 3, 2, -100, 4)
left, right = ids([0, 0, 1, 1, 1], [1, 1, 1, 1, 1]), ids([1, 1, 1, 0, 0], [1, 1, 1, 1, 0]) > 0
empty_row = ids([0, 0, 1, 1, 1], [0, 0, 0, 0, 0])
LINEAR, NORM = (draw(5, 7, seed=1), draw(7, seed=2)), (draw(5, seed=1), draw(5, seed=2))
image, CONV = draw(2, 5, 4, 2), (draw(2, 3, 2, 3, seed=1), draw(3, seed=2))

# name of the definition: what is special -> the arguments
CASES = {
    "linear: matrix": (draw(3, 5), *LINEAR),
    "linear: vector": (draw(5), *LINEAR),
    "linear: three axes": (draw(2, 3, 5), *LINEAR),
    "linear: views": (draw(5, 6)[:, ::-2].T, draw(7, 5, seed=1).T, LINEAR[1]),
    "linear: one": (draw(1, 1), draw(1, 1, seed=1), draw(1, seed=2)),
    "linear: no bias": (draw(3, 5), LINEAR[0], None),
    "linear: batch of 0": (draw(2, 0, 5), *LINEAR),
    "embedding: repeated": (draw(7, 3), ids([0, 6, 0], [0, 3, 3])),
    "embedding: one": (draw(1, 1), ids(0)),
    "embedding: views": (draw(3, 7)[::-1].T, ids([5, 1, 5], [2, 1, 0]).T),
    "embedding: no ids": (draw(7, 3), np.zeros((2, 0), int)),
    "softmax: rows": (draw(3, 5),),
    "softmax: first axis": (draw(3, 5, 2), 0),
    "softmax: view": (draw(7, 4)[::-2].T, -2),
    "softmax: one": (draw(3, 1),),
    "softmax: batch of 0": (draw(0, 3),),
    "log_softmax: rows": (draw(3, 5),),
    "log_softmax: first axis": (draw(3, 5, 2), 0),
    "log_softmax: view": (draw(7, 4)[::-2].T, -1),
    "log_softmax: batch of 0": (draw(0, 3),),
    "cross_entropy: all": (z5, ids(1, 0, 3, 2, 2, 4)),
    "cross_entropy: ignored": (z5, some),
    "cross_entropy: none": (z5, np.full(6, -100)),
    "cross_entropy: count": (z5, some, 11),
    "cross_entropy: three axes": (draw(2, 3, 5), some.reshape(2, 3)),
    "cross_entropy: views": (draw(5, 12)[::-1, ::2].T, np.repeat(some, 2)[::2]),
    "cross_entropy: one": (draw(1, 1), ids(0)),
    "cross_entropy: batch of 0": (draw(0, 5), np.zeros(0, int)),
    "layer_norm: matrix": (draw(3, 5), *NORM),
    "layer_norm: three axes": (draw(2, 3, 5), *NORM),
    "layer_norm: vector": (draw(5), *NORM),
    "layer_norm: view": (draw(5, 6)[::-1, ::2].T, *NORM),
    "layer_norm: eps": (draw(3, 5), *NORM, 0.5),
    "layer_norm: one": (draw(3, 1), draw(1, seed=1), draw(1, seed=2)),
    "layer_norm: batch of 0": (draw(0, 5), *NORM),
    "gelu: prime": (draw(7),),
    "gelu: 0-d": (draw(),),
    "gelu: view": (3.0 * draw(7, 4).T[:, ::-2],),
    "gelu: tails": (np.array([-30.0, -11.0, 11.0, 30.0]),),
    "gelu: empty": (draw(2, 0),),
    "relu: prime": (draw(7),),
    "relu: 0-d": (draw(),),
    "relu: view": (draw(7, 4).T[:, ::-2],),
    "relu: empty": (draw(2, 0),),
    "sigmoid: prime": (5.0 * draw(7),),
    "relu2: prime": (draw(7),),
    "relu2: 0-d": (draw(),),
    "relu2: view": (draw(7, 4).T[:, ::-2],),
    "relu2: empty": (draw(2, 0),),
    "rotary: slice": (draw(2, 5, 3, 4), slice(0, 5)),
    "rotary: later": (draw(2, 5, 1, 6), slice(60, 65)),
    "rotary: positions of each text": (draw(2, 3, 2, 4), ids([0, 0, 1], [7, 8, 9])),
    "rotary: base": (draw(2, 3, 2, 4), slice(1, 4), 10.0),
    "rotary: part of an array": (draw(2, 5, 9, 4)[:, :, 2:4], slice(0, 5)),
    "rotary: view": (draw(4, 3, 5, 2).T, slice(0, 5)),
    "rotary: batch of 0": (draw(0, 5, 3, 4), slice(0, 5)),
    "token_shift: start": (draw(2, 7, 20),),
    "token_shift: one token": (draw(2, 1, 20),),
    "token_shift: odd width": (draw(2, 6, 13),),
    "token_shift: narrow": (draw(2, 4, 9),),
    "token_shift: view": (draw(10, 5, 2).T[:, ::-1],),
    "token_shift: batch of 0": (draw(0, 5, 10),),
    "dropout: a third": (draw(3, 5), 0.3, 7),
    "dropout: nothing": (draw(3, 5), 0, 7),
    "dropout: view": (draw(5, 3).T, 0.5, 8),
    "dropout: empty": (draw(0, 5), 0.5, 8),
    "attention: causal": qkv,
    "attention: arrays of their own": [draw(2, 1, 3, 5, seed=i) for i in range(3)],
    "attention: not causal": (*qkv, None, None, False),
    "attention: window": (*qkv, None, 2),
    "attention: window, not causal": (*qkv, None, 2, False),
    "attention: window of 0": (*qkv, None, 0),
    "attention: padded left": (*qkv, left),
    "attention: padded right": (*qkv, right),
    "attention: padded right, not causal": (*qkv, right, None, False),
    "attention: a row sees nothing": (*qkv, empty_row),
    "attention: padded, window": (*qkv, left, 3),
    "attention: wide values": (*qkv[:2], draw(2, 3, 5, 4)),
    "attention: more queries than keys, not causal": (
        heads(2, 3, 7, 2)[0],
        *qkv[1:],
        None,
        None,
        False,
    ),
    "attention: last queries": (heads(2, 3, 2, 2, seed=1)[0], *qkv[1:]),
    "attention: last query, padded": (heads(2, 3, 1, 2, seed=1)[0], *qkv[1:], left),
    "attention: one": heads(1, 1, 1, 1),
    "attention: batch of 0": heads(0, 3, 5, 2),
    "conv2d: plain": (image, *CONV),
    "conv2d: no bias": (image, CONV[0], None),
    "conv2d: stride": (image, *CONV, 2),
    "conv2d: stride that leaves rows over": (draw(2, 6, 5, 2), *CONV, 3),
    "conv2d: padding": (image, *CONV, 1, 1),
    "conv2d: dilation": (draw(1, 5, 7, 2), *CONV, 1, 0, 2),
    "conv2d: pairs": (draw(1, 5, 4, 2), *CONV, (1, 2), (2, 3), (3, 2)),
    "conv2d: window of the whole": (image, draw(5, 4, 2, 2, seed=1), draw(2, seed=2)),
    "conv2d: views": (draw(2, 4, 5, 4).T[::2, ::-1], CONV[0][::-1, :, ::-1], CONV[1][::-1], 1, 1),
    "conv2d: one": (draw(1, 1, 1, 1), draw(1, 1, 1, 1, seed=1), draw(1, seed=2)),
    "conv2d: batch of 0": (draw(0, 5, 4, 2), *CONV),
    "conv1d: plain": (draw(2, 5, 2), draw(3, 2, 3, seed=1), draw(3, seed=2)),
    "conv1d: options": (draw(2, 5, 4), draw(3, 4, 2, seed=1), draw(2, seed=2), 2, 3, 2),
    "max_pool2d: side by side": (draw(2, 4, 6, 2),),
    "max_pool2d: rows left over": (draw(2, 5, 3, 2),),
    "max_pool2d: overlap": (image, 3, 1),
    "max_pool2d: stride wider than the window": (image, 1, 2),
    "max_pool2d: padding": (image - 3.0, 3, 2, 1),
    "max_pool2d: pairs": (image, (2, 3), (1, 2), (1, 0)),
    "max_pool2d: view": (draw(2, 4, 5, 4).T[::2, ::-1], 2, 1),
    "max_pool2d: one": (draw(1, 1, 1, 1), 1),
    "max_pool2d: batch of 0": (draw(0, 4, 6, 2),),
}


def recurrent(name, B=2, T=4, C=2, H=3):
    """x, the first state (of two parts for lstm), w_ih, w_hh, b_ih, b_hh"""
    n = {"rnn": 1, "lstm": 4, "gru": 3}[name] * H
    states = [(B, H)] * (2 if name == "lstm" else 1)
    shapes = [(B, T, C), *states, (C, n), (H, n), (n,), (n,)]
    return [draw(*shape, seed=seed) for seed, shape in enumerate(shapes)]


for name in ("rnn", "lstm", "gru"):
    args, four = recurrent(name), ids([1, 1, 1, 1], [1, 1, 0, 0])
    CASES |= {
        f"{name}: whole": args,
        f"{name}: padded right": (*args, four),
        f"{name}: padded left": (*args, four[:, ::-1] > 0),
        f"{name}: padded in the middle": (*args, ids([1, 0, 0, 1], [0, 1, 0, 1])),
        f"{name}: a row of padding": (*args, ids([1, 1, 1, 0], [0, 0, 0, 0])),
        f"{name}: one step": recurrent(name, T=1),
        f"{name}: one row": recurrent(name, B=1),
        f"{name}: views": [x[..., ::-1] if x.ndim < 3 else x[:, ::-1] for x in args],
        f"{name}: one": recurrent(name, 1, 1, 1, 1),
        f"{name}: batch of 0": recurrent(name, B=0),
    }


NUMPY = [fast_numpy, fast_convolution, fast_recurrence]  # the files with its pairs
CUPY = [fast_cupy, fast_elementwise]  # test_emulator.py runs these
DEFINITIONS = [functional, recipe, convolution, recurrence]


def formula(name):
    """The definition of this name, which one file has."""
    [found] = [vars(m)[name] for m in DEFINITIONS if owns(m, name)]
    return found


def owns(module, name):
    return getattr(vars(module).get(name), "__module__", None) == module.__name__


def definition(case):
    return formula(case.split(":")[0])


def forwards(module):
    names = [name for name in vars(module) if name.endswith("_forward") and name[0] != "_"]
    return [name[: -len("_forward")] for name in names]


def cases_of(name):
    found = [case for case in CASES if case.split(":")[0] == name]
    assert found, f"the pair {name} has no case"
    return found


def linear_loop(x, w, b):
    rows = x.reshape(-1, len(w)) if x.size else []
    y = [sum(v * wi for v, wi in zip(r, w, strict=True)) + (0 if b is None else b) for r in rows]
    return np.array(y).reshape(*x.shape[:-1], w.shape[1])


def embedding_loop(w, ids):
    return np.array([w[i] for i in ids.flat]).reshape(*ids.shape, w.shape[1])


def softmax_loop(x, axis=-1):
    def column(values):
        powers = [math.exp(value) for value in values]
        return np.array([power / sum(powers) for power in powers])

    return np.apply_along_axis(column, axis, x) if x.size else x


def log_softmax_loop(x, axis=-1):
    return np.log(softmax_loop(x, axis))


def cross_entropy_loop(z, targets, count=None):
    losses = [
        -math.log(softmax_loop(row)[target])
        for row, target in zip(z.reshape(-1, z.shape[-1]), targets.ravel(), strict=True)
        if target != -100
    ]
    return np.array(sum(losses) / (count or len(losses) or 1))


def layer_norm_loop(x, w, b, eps=1e-5):
    y = np.zeros(x.shape)
    for index in np.ndindex(x.shape[:-1]):
        variance = statistics.pvariance(x[index])
        y[index] = (x[index] - statistics.mean(x[index])) / math.sqrt(variance + eps) * w + b
    return y


def gelu_loop(x):
    def one(v):
        return v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    return np.array([one(v) for v in x.flat]).reshape(x.shape)


def relu_loop(x):
    return np.array([v if v > 0 else 0.0 for v in x.flat]).reshape(x.shape)


def one_sigmoid(v):
    return 1 / (1 + math.exp(-v))


def sigmoid_loop(x):
    return np.array([one_sigmoid(v) for v in x.flat]).reshape(x.shape)


def relu2_loop(x):
    return np.array([v * v if v > 0 else 0.0 for v in x.flat]).reshape(x.shape)


def rotary_loop(x, positions, base=1e4):
    (B, T, H, D), y = x.shape, np.zeros(x.shape)
    if isinstance(positions, slice):
        positions = [range(positions.start, positions.stop)] * B
    for b, t, h, i in np.ndindex(B, T, H, D // 2):
        angle = positions[b][t] / base ** (2 * i / D)
        pair = complex(*x[b, t, h, 2 * i : 2 * i + 2]) * cmath.rect(1, angle)
        y[b, t, h, 2 * i : 2 * i + 2] = pair.real, pair.imag
    return y


def token_shift_loop(x, past=None):
    y, tenth = np.zeros(x.shape), x.shape[2] // 10
    for b, t, c in np.ndindex(x.shape):
        back = c // tenth + 1 if c < 5 * tenth else 0
        y[b, t, c] = x[b, t - back, c] if t >= back else 0
    return y


def dropout_loop(x, p, seed):
    numbers = np.random.Generator(np.random.Philox(seed)).random(x.size, np.float32)
    y = [v / (1 - p) if u >= p else 0.0 for v, u in zip(x.flat, numbers, strict=True)]
    return np.array(y).reshape(x.shape)


def attention_loop(q, k, v, mask=None, window=None, causal=True):
    (B, H, T, D), S = q.shape, k.shape[2]
    y = np.zeros((B, H, T, v.shape[3]))
    for b, h, t in np.ndindex(B, H, T):
        here = S - T + t
        seen = [
            s
            for s in range(S)
            if (not causal or s <= here)
            and (window is None or s > here - window)
            and (mask is None or mask[b, s])
        ]
        if seen:
            p = softmax_loop(np.array([q[b, h, t] @ k[b, h, s] / math.sqrt(D) for s in seen]))
            y[b, h, t] = sum(weight * v[b, h, s] for weight, s in zip(p, seen, strict=True))
    return y


def two(n):
    return n if isinstance(n, tuple) else (n, n)


def windows(x, size, stride, padding, dilation=1):
    """The shape (Y', X') of the windows; for each: its place (b, row, column), and what it sees,
    as a list of (place in the window (i, j), channels there)"""
    size, stride, padding, dilation = map(two, (size, stride, padding, dilation))
    counts = []
    for axis in range(2):
        last = x.shape[1 + axis] + padding[axis] - dilation[axis] * (size[axis] - 1)
        counts.append(len(range(-padding[axis], last, stride[axis])))
    found = {}
    for b, row, column in np.ndindex(len(x), *counts):
        seen = found[b, row, column] = []
        for i, j in np.ndindex(*size):
            y = row * stride[0] + i * dilation[0] - padding[0]
            z = column * stride[1] + j * dilation[1] - padding[1]
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                seen.append(((i, j), x[b, y, z]))
    return (len(x), *counts), found


def conv2d_loop(x, w, b, stride=1, padding=0, dilation=1):
    shape, found = windows(x, w.shape[:2], stride, padding, dilation)
    (n_in, n_out), y = w.shape[2:], np.zeros((*shape, w.shape[3]))
    for place, seen in found.items():
        for o in range(n_out):
            terms = [v[c] * w[ij][c, o] for ij, v in seen for c in range(n_in)]
            y[place][o] = sum(terms) + (0 if b is None else b[o])
    return y


def conv1d_loop(x, w, b, stride=1, padding=0, dilation=1):
    return conv2d_loop(x[:, None], w[None], b, (1, stride), (0, padding), dilation)[:, 0]


def max_pool2d_loop(x, size=2, stride=None, padding=0):
    shape, found = windows(x, size, stride or size, padding)
    y = np.zeros((*shape, x.shape[3]))
    for place, seen in found.items():
        y[place] = [max(values) for values in zip(*(v for _, v in seen), strict=True)]
    return y


def recurrence_loop(cell, x, states, w_ih, w_hh, b_ih, b_hh, mask):
    """cell(z, u, *states), of one unit of one text: z, u its part of x_t w_ih + b and h w_hh + b"""
    y, last, H = np.zeros((*x.shape[:2], len(w_hh))), [a.copy() for a in states], len(w_hh)
    for b, t in np.ndindex(x.shape[:2]):
        if mask is None or mask[b, t]:
            z, u = x[b, t] @ w_ih + b_ih, last[0][b] @ w_hh + b_hh
            units = [cell(z[j::H], u[j::H], *(a[b, j] for a in last)) for j in range(H)]
            for a, new in zip(last, zip(*units, strict=True), strict=True):
                a[b] = new
        y[b, t] = last[0][b]
    return y, *last[1:]


def rnn_loop(x, h, w_ih, w_hh, b_ih, b_hh, mask=None):
    def cell(z, u, h):
        return [math.tanh(z[0] + u[0])]

    return recurrence_loop(cell, x, [h], w_ih, w_hh, b_ih, b_hh, mask)[0]


def lstm_loop(x, h, c, w_ih, w_hh, b_ih, b_hh, mask=None):
    def cell(z, u, h, c):
        i, f, g, o = z + u
        c = one_sigmoid(f) * c + one_sigmoid(i) * math.tanh(g)
        return one_sigmoid(o) * math.tanh(c), c

    return recurrence_loop(cell, x, [h, c], w_ih, w_hh, b_ih, b_hh, mask)


def gru_loop(x, h, w_ih, w_hh, b_ih, b_hh, mask=None):
    def cell(z, u, h):
        r, k = one_sigmoid(z[0] + u[0]), one_sigmoid(z[1] + u[1])
        return [(1 - k) * math.tanh(z[2] + r * u[2]) + k * h]

    return recurrence_loop(cell, x, [h], w_ih, w_hh, b_ih, b_hh, mask)[0]


@pytest.mark.parametrize("case", CASES)
def test_value_matches_a_slow_loop(case):
    expected = globals()[f"{definition(case).__name__}_loop"](*CASES[case])
    expected = expected if isinstance(expected, tuple) else (expected,)
    for y, e in zip(run(definition(case), *CASES[case])[0], expected, strict=True):
        assert y.shape == e.shape
        np.testing.assert_allclose(y, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_gradient_matches_differences(case):
    gradcheck(definition(case), *CASES[case])


# float32 rounds at 6e-8; up to 30 terms of size 3 are summed in another order
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", sum(map(forwards, NUMPY), []))
def test_every_pair_equals_its_definition(name, dtype, tolerance):
    for case in cases_of(name):
        with plain():
            expected = run(definition(case), *CASES[case], dtype=dtype)
        got = run(definition(case), *CASES[case], dtype=dtype)
        for y, e in zip(sum(got, []), sum(expected, []), strict=True):
            assert y.shape == e.shape and y.dtype == e.dtype == dtype, case
            np.testing.assert_allclose(y, e, rtol=tolerance, atol=tolerance, err_msg=case)


def test_no_file_of_pairs_is_forgotten_here():
    files = Path(fast_numpy.__file__).parent.glob("fast_*.py")
    assert {f.stem for f in files} == {m.__name__.split(".")[-1] for m in (*NUMPY, *CUPY)}


@pytest.mark.parametrize("module", [*NUMPY, *CUPY])
def test_every_pair_has_the_parameters_of_a_fused_definition(module):
    for name in forwards(module):
        defined = formula(name)
        assert hasattr(defined, "__wrapped__"), f"{name} is not fused"
        forward = getattr(module, f"{name}_forward")
        assert inspect.signature(forward) == inspect.signature(defined)
        assert list(inspect.signature(getattr(module, f"{name}_backward")).parameters)[1] == "saved"


@pytest.mark.parametrize("name", sum(map(forwards, NUMPY), []))
def test_pair_runs_unless_it_is_deleted_or_plain(name, monkeypatch):
    *_, case = cases_of(name)
    inputs = [Tensor(x, True) if is_float(x) else x for x in CASES[case]]

    def made_by():
        y = definition(case)(*inputs)
        return (y[0] if isinstance(y, tuple) else y).node.name

    assert made_by() == name
    with plain():
        assert made_by() != name
        expected = run(definition(case), *CASES[case])
    [file] = [m for m in NUMPY if name in forwards(m)]
    monkeypatch.delattr(file, f"{name}_forward")
    got = run(definition(case), *CASES[case])
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        np.testing.assert_array_equal(y, e)


@pytest.mark.parametrize("mode, found", [("plain", False), ("contextlib.nullcontext", True)])
def test_files_of_pairs_are_imported_when_first_searched_and_never_by_plain(mode, found):
    code = f"""
import contextlib, sys
from minigpt.engine import convolution, functional, recipe, recurrence
from minigpt.engine.autograd import Tensor, plain
assert not any(".fast_" in name for name in sys.modules)
with {mode}():
    functional.softmax(Tensor([1.0]))
assert ("minigpt.engine.fast_numpy" in sys.modules) == {found}
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_fast_function_of_an_added_file_is_found_but_not_by_plain(monkeypatch):
    added, x = ModuleType("added"), draw(3)
    added.answer = lambda: 42
    monkeypatch.setitem(sys.modules, "added", added)
    for file in (added, "added"):  # the module itself, or its name
        monkeypatch.setitem(PAIRS, "numpy", [*PAIRS["numpy"], file])
        assert fast("answer", x) is added.answer and fast("nothing", x) is None
        with plain():
            assert fast("answer", x) is None


@pytest.mark.parametrize("mode", [plain, no_grad])
@pytest.mark.parametrize("case", ["linear: matrix", "cross_entropy: count", "attention: window"])
def test_arguments_by_name_and_by_position_give_the_same(case, mode):
    f, args = definition(case), [Tensor(x, True) if np.ndim(x) > 1 else x for x in CASES[case]]
    named = dict(zip(inspect.signature(f).parameters, args, strict=False))
    with mode():
        expected = f(*args).data
    np.testing.assert_allclose(f(**named).data, expected, rtol=1e-12)


def test_bias_passed_by_name_gets_its_gradient():
    x, w, b = (Tensor(draw(*shape), requires_grad=True) for shape in [(3, 5), (5, 2), (2,)])
    functional.linear(x, w, b=b).sum().backward()
    assert b.grad.tolist() == [3, 3]


@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])
def test_relu2_of_what_is_no_number_is_none(mode):
    with mode():
        y = recipe.relu2(Tensor(np.array([np.nan, -1.0, 2.0]))).data
    np.testing.assert_array_equal(y, [np.nan, 0, 4])


@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])
@pytest.mark.parametrize("cut", [1, 4, 5, 6])
def test_token_shift_behind_a_past_is_that_of_the_whole_text(cut, mode):
    x = draw(2, 9, 20)
    with mode():
        expected = recipe.token_shift(Tensor(x)).data[:, cut:]
        past = np.pad(x, ((0, 0), (5, 0), (0, 0)))[:, cut : cut + 5]
        got = recipe.token_shift(Tensor(x[:, cut:]), past).data
    np.testing.assert_array_equal(got, expected)


def test_products_of_turned_vectors_depend_on_the_distance_alone():
    q, k = draw(1, 1, 1, 8), draw(1, 1, 1, 8, seed=1)

    def product(m, n):
        q_m, k_n = (recipe.rotary(Tensor(x), slice(i, i + 1)) for x, i in ((q, m), (k, n)))
        return (q_m * k_n).sum().item()

    assert product(3, 1) == pytest.approx(product(900, 898), rel=1e-9)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3


def test_gelu_pair_is_the_same_over_several_blocks(monkeypatch):
    x = draw(3, 7)
    with plain():
        expected = run(functional.gelu, x)
    monkeypatch.setattr(fast_numpy, "_BLOCK", 4, raising=False)
    got = run(functional.gelu, x)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12)


@pytest.mark.parametrize("room", [1, 50, 100])  # an image's windows are 48 numbers, or 2 x 24
def test_conv2d_pair_is_the_same_over_several_parts_of_the_batch(room, monkeypatch):
    args = draw(5, 3, 4, 2), draw(2, 2, 2, 4, seed=1), draw(4, seed=2)
    with plain():
        expected = run(convolution.conv2d, *args)
    monkeypatch.setattr(fast_convolution, "_ROOM", room)
    got = run(convolution.conv2d, *args)
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(y, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_recurrent_pair_is_the_same_over_several_blocks_of_weights(name):
    args = recurrent(name, B=3, T=2, H=64)  # blocks are 32 columns wide
    with plain():
        expected = run(formula(name), *args)
    got = run(formula(name), *args)
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(y, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("used", [0, 1])
def test_lstm_of_which_one_output_is_used_has_the_gradients_of_differences(used):
    gradcheck(lambda *args: recurrence.lstm(*args)[used], *CASES["lstm: padded left"])


@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])
@pytest.mark.parametrize("x, y", [(0.0, 0.5), (-1e4, 0.0), (1e4, 1.0)])
def test_sigmoid_of_outliers_does_not_overflow(x, y, mode):
    with mode():
        assert recurrence.sigmoid(Tensor(np.array(x))).data == y


@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_padding_keeps_the_state_and_gets_no_gradient(name, mode):
    *args, mask = CASES[f"{name}: a row of padding"]
    with mode():
        [y, *_], [dx, *_] = run(formula(name), *args, mask)
    np.testing.assert_array_equal(y[1], [args[1][1]] * 4)
    assert not dx[1].any() and not dx[0, 3].any() and dx[0, :3].all()


@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])
def test_first_of_the_largest_in_a_window_gets_the_gradient(mode):
    x = Tensor(np.array([[5.0, 5, 1, 2], [5, 0, 7, 7]]).reshape(1, 2, 4, 1), requires_grad=True)
    with mode():
        convolution.max_pool2d(x).sum().backward()
    assert x.grad.reshape(2, 4).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_largest_of_what_holds_no_number_is_none(at, mode):
    x = draw(1, 2, 4, 1)
    x[0, at // 2, at % 2] = np.nan
    with mode():
        y = convolution.max_pool2d(Tensor(x)).data.ravel()
    np.testing.assert_array_equal(y, [np.nan, x[0, :, 2:].max()])


WIDE = {  # windows larger than the padded input
    "conv2d": lambda x: convolution.conv2d(x, draw(4, 2, 2, 1), None),
    "conv2d: padding": lambda x: convolution.conv2d(x, draw(2, 8, 2, 1), None, 1, (0, 1)),
    "conv2d: dilation": lambda x: convolution.conv2d(x, draw(2, 2, 2, 1), None, 1, 0, 3),
    "max_pool2d": lambda x: convolution.max_pool2d(x, (2, 6)),
    "max_pool2d: padding": lambda x: convolution.max_pool2d(x, 6, 1, 1),
}


@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])
@pytest.mark.parametrize("case", WIDE)
def test_window_larger_than_the_padded_input_is_refused(case, mode):
    with mode(), pytest.raises(ValueError, match="expected at most"):
        WIDE[case](Tensor(draw(1, 3, 5, 2)))


# float64 in small tiles: 7 positions in tiles of 3, and a tile's scores of one text at a time
LONG = {
    "causal": (),
    "window": (None, 3),
    "window of one tile": (None, 4),
    "mask": (ids([0] * 4 + [1] * 3, [1] * 7), None),
    "mask and window": (ids([1] * 3 + [0] * 4, [0, 1] * 3 + [1]), 2),
    "nothing seen": (np.zeros((2, 7), int), None),
    "both ways": (None, None, False),
}


@pytest.mark.parametrize("scale", [1, 200])  # of q: with 200, e^score is not safe
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("case", LONG)
def test_attention_pair_is_the_same_over_several_tiles(case, past, scale, monkeypatch):
    q, k, v = heads(2, 3, 7, 2)
    args = (scale * q[:, :, past:], k, v, *LONG[case])
    with plain():
        expected = run(functional.attention, *args)
    monkeypatch.setattr(fast_numpy, "_TILE", 3, raising=False)
    monkeypatch.setattr(fast_numpy, "_ROOM", 30, raising=False)
    got = run(functional.attention, *args)
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(y, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", [1, 200])
@pytest.mark.parametrize("keys", [1, 7])
def test_attention_pair_is_the_same_for_a_single_query(keys, scale):
    q, k, v = (x[:, :, -keys:] for x in heads(2, 3, 7, 2))
    args = scale * q[:, :, -1:], k, v
    with plain():
        expected = run(functional.attention, *args)
    got = run(functional.attention, *args)
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(y, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("last", range(10))
def test_rotary_pair_finds_the_turn_of_any_position(last):
    args = draw(1, 2, 2, 4), np.array([last, 0])
    with plain():
        [y], [dx] = run(recipe.rotary, *args)
    [z], [dz] = run(recipe.rotary, *args)
    np.testing.assert_allclose(z, y, rtol=1e-12)
    np.testing.assert_allclose(dz, dx, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])  # whose numbers are neighbours instead
def test_rotary_pair_takes_channels_that_are_no_neighbours_in_memory(axis):
    x = np.moveaxis(draw(2, 3, 2, 4), axis, -1).copy()
    x = np.moveaxis(x, -1, axis)
    with plain():
        [y], _ = run(recipe.rotary, x, slice(0, 3))
    [z], _ = run(recipe.rotary, x, slice(0, 3))
    np.testing.assert_allclose(z, y, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 4096, 4097, 8193])  # fast_numpy adds blocks of 4096 rows
def test_the_gradient_of_a_bias_is_the_sum_of_all_rows(n):
    dy, b = draw(n, 2), Tensor(np.zeros(2), requires_grad=True)
    functional.linear(Tensor(np.zeros((n, 1))), Tensor(np.zeros((1, 2))), b).backward(dy)
    np.testing.assert_allclose(b.grad, dy.sum(0), rtol=1e-10)


def test_memory_of_attention_grows_with_the_context_not_with_its_square():
    if not hasattr(fast_numpy, "attention_forward"):
        pytest.skip("the definition keeps all scores")
    peaks = []
    for T in (1024, 4096):
        q, k, v = (Tensor(x.astype("f"), requires_grad=True) for x in heads(1, 1, T, 8))
        tracemalloc.start()
        y = functional.attention(q, k, v)
        y.backward(np.ones_like(y.data))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 5 * peaks[0]  # 4 times as long; the scores of a square would take 16


@pytest.mark.parametrize("mode", [plain, no_grad])
def test_gelu_of_outliers_is_x_or_zero_without_a_warning(mode):
    x = np.array([-3e4, -11.0, 11.0, 3e4], np.float32)
    with mode():
        y = functional.gelu(Tensor(x)).data
    np.testing.assert_allclose(y, [0, 0, 11, 3e4], atol=1e-7)


@pytest.mark.parametrize("f", [functional.softmax, functional.log_softmax])
def test_softmax_of_huge_logits_does_not_overflow(f):
    y = f(Tensor(np.array([1000.0, 0.0]))).data
    assert y.tolist() == ([1, 0] if f is functional.softmax else [0, -1000])


def test_loss_of_ignored_targets_alone_is_zero_with_zero_gradient():
    [loss], [dz] = run(functional.cross_entropy, *CASES["cross_entropy: none"])
    assert loss == 0 and not dz.any()


def test_row_that_sees_nothing_gives_zeros_and_finite_gradients():
    q, k, v, mask = CASES["attention: a row sees nothing"]
    [y], grads = run(functional.attention, q, k, v, mask)
    assert not y[1].any() and not y[0, :, :2].any() and y[0, :, 2:].all()
    assert all(np.isfinite(dx).all() and not dx[1].any() for dx in grads)


def test_same_seed_gives_the_same_mask_and_another_seed_another():
    x = Tensor(np.ones(1000))
    a, b, c = (functional.dropout(x, 0.5, seed).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert 400 < (a != c).sum() < 600  # 500 expected, the standard error is 16


def test_dropout_preserves_the_mean():
    y = functional.dropout(Tensor(np.ones(100_000)), 0.3, 5).data
    assert abs(y.mean() - 1) < 0.01  # five standard errors: sqrt(0.3 / 0.7 / 100000) = 0.002


@pytest.mark.parametrize("mode", [contextlib.nullcontext, plain])
def test_targets_of_another_shape_are_refused(mode):
    with mode(), pytest.raises(ValueError, match=r"expected shape \(2, 3\), got \(3, 2\)"):
        cross_entropy(Tensor(draw(2, 3, 5)), np.zeros((3, 2), int))
