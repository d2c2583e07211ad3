"""Every primitive operation against NumPy, and its gradient against differences."""

import operator
from itertools import product

import numpy as np
import pytest
from gradcheck import draw, gradcheck, run

from minigpt.engine import ops
from minigpt.engine.autograd import Tensor, raw
from minigpt.engine.functional import linear


def positive(*shape, seed=0):
    return np.asarray(np.abs(draw(*shape, seed=seed)) + 0.3)


def odd(make):
    """Arrays of awkward shapes and layouts."""
    return {
        "0-d": make(),
        "one": make(1, 1),
        "prime": make(7),
        "empty": make(2, 0, 3),
        "transposed": make(2, 5, 3).transpose(2, 0, 1),
        "strided": make(7, 11)[::2, 1::3],
        "reversed": make(3, 5)[::-1, ::-1],
        "repeated": np.broadcast_to(make(5), (3, 5)),
    }


# A row: the operation on Tensors, the same on arrays, then the operands. Methods and operators
# are spelled alike on both sides, so one function serves as both.
ROWS = {}


def row(name, f, *operands, numpy=None):
    ROWS[name] = (f, numpy or f, *operands)


for layout, x in odd(draw).items():
    row(f"exp {layout}", ops.exp, x, numpy=np.exp)
    row(f"tanh {layout}", ops.tanh, x, numpy=np.tanh)
    row(f"-x {layout}", lambda x: -x, x)
    row(f"|x| {layout}", abs, x)
    row(f"x.abs() {layout}", lambda x: x.abs(), x, numpy=np.abs)
    row(f"x^2 {layout}", lambda x: x**2, x)
    row(f"2^x {layout}", lambda x: 2.0**x, x)
    row(f"2-x {layout}", lambda x: 2.0 - x, x)
    row(f"x-x/3 {layout}", lambda x: x - x / 3.0, x)
    row(f"clip {layout}", lambda x: x.clip(-0.4, 0.6), x)
    row(f"T {layout}", lambda x: x.T, x)
    row(f"flat {layout}", lambda x: x.reshape(x.size), x)
    row(f"sum {layout}", lambda x: x.sum(), x)
for layout, x in odd(positive).items():
    row(f"log {layout}", ops.log, x, numpy=np.log)
    row(f"sqrt {layout}", ops.sqrt, x, numpy=np.sqrt)
    row(f"x^-1.5 {layout}", lambda x: x**-1.5, x)
    row(f"2/x {layout}", lambda x: 2.0 / x, x)
row("clip low", lambda x: x.clip(0.1), draw(7))
row("clip high", lambda x: ops.clip(x, high=0.1), draw(7), numpy=lambda x: np.clip(x, None, 0.1))

BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": lambda a, b: a**b,
}
BROADCAST = [
    [(), ()], [(3,), ()], [(), (2, 3)], [(3, 5), (5,)], [(3, 1), (1, 5)], [(2, 3, 5), (3, 1)],
    [(1,), (0,)], [(0, 3), (3,)], [(1, 1), (7,)], [(2, 1, 3), (1, 5, 1)],
]  # fmt: skip
for s, t in BROADCAST:
    a, b = positive(*s), positive(*t, seed=1)
    for name, f in BINARY.items():
        row(f"{s} {name} {t}", f, a, b)
    condition = np.asarray(draw(*np.broadcast_shapes(s, t), seed=2) > 0)
    row(f"where {s} {t}", ops.where, condition, a, b, numpy=np.where)
row("* views", lambda a, b: a * b, draw(5, 3).T, draw(6, 10)[::-2, ::2])
row("where column", ops.where, draw(3, 1) > 0, draw(3, 5), draw(5, seed=1), numpy=np.where)
row("where number", lambda c, x: ops.where(c, x, 0.0), draw(5) > 0, draw(5, seed=1),
    numpy=lambda c, x: np.where(c, x, 0.0))  # fmt: skip

for axis, keep in product((None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2)), (False, True)):
    options = dict(axis=axis, keepdims=keep)
    for kind in ("sum", "mean", "max"):
        row(
            f"{kind} {options}",
            lambda x, kind=kind, o=options: getattr(x, kind)(**o),
            draw(2, 3, 5),
        )
for kind, axis in product(("sum", "mean", "max"), (1, -1, (0, 1))):
    x = draw(5, 7)[::-2, ::3].T
    row(f"{kind} view {axis}", lambda x, kind=kind, axis=axis: getattr(x, kind)(axis), x)
row("sum over nothing", lambda x: x.sum(1), draw(2, 0, 3))
row("sum of no rows", lambda x: x.sum(-1), draw(0, 3))
row("mean of no rows", lambda x: x.mean(-1, keepdims=True), draw(0, 3))
row("max of no rows", lambda x: x.max(-1), draw(0, 3))

MATMUL = [
    [(3,), (3,)], [(2, 3), (3,)], [(3,), (3, 5)], [(2, 3), (3, 5)], [(7, 2, 3), (3,)],
    [(7, 2, 3), (3, 5)], [(3,), (7, 3, 2)], [(2, 3), (7, 3, 5)], [(2, 1, 2, 3), (7, 3, 1)],
    [(0, 3), (3, 2)], [(2, 0), (0, 3)], [(2, 0, 3), (3, 5)], [(0, 2, 3), (0, 3, 2)],
    [(1, 1), (1, 1)],
]  # fmt: skip
for s, t in MATMUL:
    row(f"{s} @ {t}", lambda a, b: a @ b, draw(*s), draw(*t, seed=1))
row("matmul views", lambda a, b: a @ b, draw(3, 2, 5).transpose(1, 0, 2), draw(7, 5)[::-2].T)

INDEX = {
    "slices": lambda x: x[1:3, ::2],
    "backwards": lambda x: x[::-1, 4:0:-2],
    "integer": lambda x: x[-1, 2],
    "None": lambda x: x[None, :, None, 1],
    "ellipsis": lambda x: x[..., 0],
    "all three": lambda x: x[0, 1, 2],
    "nothing": lambda x: x[2:2],
}
for name, f in INDEX.items():
    row(f"getitem {name}", f, draw(4, 5, 3))
i, j = np.array([[0, 2], [0, -1]]), np.array([3, 3, 1, 1])
row("getitem repeated", lambda x, i: x[i], draw(4, 3), i)
row("getitem one id", lambda x, i: x[i], draw(4, 3), np.array(-3))
row("getitem no ids", lambda x, i: x[i], draw(4, 3), i[:0])
row("getitem pairs", lambda x, i, j: x[i, j], draw(4, 5, 3), np.array([0, 0, 2, 0]), j)
row("getitem mixed", lambda x, j: x[1:, j, ::-1], draw(4, 5, 3), j)
row("getitem column", lambda x, j: x[..., j], draw(4, 5), j)
row("mask of rows", lambda x, m: x[m], draw(4, 3), np.array([True, False, True, True]))
row("mask", lambda x, m: x[m], draw(4, 5), draw(4, 5, seed=1) > 0)

row("transpose", lambda x: x.transpose((1, -1, 0)), draw(2, 3, 5))
row("reshape", lambda x: x.reshape((5, -1)), draw(2, 3, 5).T)
for name, widths in [("around", [(1, 2), (0, 3)]), ("nothing", [(0, 0), (0, 0)])]:
    row(f"pad {name}", lambda x, w=widths: ops.pad(x, w, -0.5), draw(3, 5).T,
        numpy=lambda x, w=widths: np.pad(x, w, constant_values=-0.5))  # fmt: skip
row("pad with zeros", lambda x: ops.pad(x, [(1, 0), (2, 1), (0, 0)]), draw(2, 0, 3),
    numpy=lambda x: np.pad(x, [(1, 0), (2, 1), (0, 0)]))  # fmt: skip
for axis in (0, 1, -1):
    parts = [np.moveaxis(draw(n, 3, seed=n), 0, axis) for n in (2, 0, 5)]
    row(f"concatenate {axis}", lambda *xs, axis=axis: ops.concatenate(xs, axis), *parts,
        numpy=lambda *xs, axis=axis: np.concatenate(xs, axis))  # fmt: skip
for axis in (0, 1, 2, -1, -2):
    row(f"stack {axis}", lambda *xs, axis=axis: ops.stack(xs, axis), draw(2, 3), draw(3, 2).T,
        numpy=lambda *xs, axis=axis: np.stack(xs, axis))  # fmt: skip
for name, cuts, axis in [("3", 3, -1), ("[1, 4]", [1, 4], 1), ("[0, 2]", [0, 2], 0)]:
    row(f"split {name}", lambda x, c=cuts, axis=axis: ops.split(x, c, axis), draw(5, 6),
        numpy=lambda x, c=cuts, axis=axis: tuple(np.split(x, c, axis)))  # fmt: skip
row("split, one part used", lambda x: ops.split(x, [2, 3])[1] ** 2, draw(5, 2),
    numpy=lambda x: x[2:3] ** 2)  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_value_is_numpys(name):
    f, reference, *operands = ROWS[name]
    expected = reference(*operands)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for y, e in zip(run(f, *operands)[0], expected, strict=True):
        assert y.shape == e.shape and y.dtype == e.dtype
        np.testing.assert_allclose(y, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ROWS)
def test_gradient_matches_differences(name):
    f, _, *operands = ROWS[name]
    gradcheck(f, *operands)


@pytest.mark.parametrize("axis, expected", [
    (None, [[1 / 3, 0, 0], [1 / 3, 1 / 3, 0]]),
    (0, [[1 / 2, 0, 1], [1 / 2, 1, 0]]),
    (1, [[1, 0, 0], [1 / 2, 1 / 2, 0]]),
])  # fmt: skip
def test_max_shares_the_gradient_among_equal_largest_values(axis, expected):
    x = Tensor(np.array([[7.0, 1.0, 5.0], [7.0, 7.0, 3.0]]), requires_grad=True)
    x.max(axis).sum().backward()
    np.testing.assert_allclose(x.grad, expected, rtol=1e-15)


@pytest.mark.parametrize("exponent, slope", [(0, 0.0), (1, 1.0), (2, 0.0), (3.0, 0.0)])
def test_power_has_its_slope_at_zero(exponent, slope):
    x = Tensor(np.zeros(2), requires_grad=True)
    (x**exponent).sum().backward()
    assert x.grad.tolist() == [slope, slope]


def test_gradients_of_a_repeated_index_add_up():
    x = Tensor(np.zeros((3, 2)), requires_grad=True)
    x[np.array([2, 0, 2, 2])].sum().backward()
    assert x.grad.tolist() == [[1, 1], [0, 0], [3, 3]]


def test_split_gives_no_gradient_to_parts_nobody_used():
    x = Tensor(np.ones(6), requires_grad=True)
    a, _, c = ops.split(x, 3)
    (a.sum() + c.sum() * 2.0).backward()
    assert x.grad.tolist() == [1, 1, 0, 0, 2, 2]


@pytest.mark.parametrize("left", [np.ones(3), np.float64(2.0), 2, 2.0])
@pytest.mark.parametrize("op", BINARY)
def test_operator_with_anything_on_its_left_gives_a_tensor(op, left):
    right = positive(3)
    y = BINARY[op](left, Tensor(right, requires_grad=True))
    assert type(y) is Tensor and y.requires_grad
    np.testing.assert_allclose(y.data, BINARY[op](left, right), rtol=1e-15)


@pytest.mark.parametrize(
    "act, says",
    [
        (lambda x: x + np.ones(2), r"add: shapes \(4, 3\) and \(2,\) do not fit"),
        (lambda x: np.ones(2) * x, r"multiply: shapes \(2,\) and \(4, 3\) do not fit"),
        (lambda x: x + [1, 2], r"add: shapes \(4, 3\) and \(2,\) do not fit"),
        (lambda x: x @ np.ones((4, 3)), r"matmul: shapes \(4, 3\) and \(4, 3\) do not fit"),
        (lambda x: linear(x, np.ones((4, 2)), None), r"linear of shapes \(4, 3\), \(4, 2\): "),
    ],
)
def test_an_error_about_shapes_names_the_operation_and_the_shapes(act, says):
    with pytest.raises(ValueError, match=says):
        act(Tensor(np.ones((4, 3)), True))


def test_only_equal_shapes_can_be_stacked():
    with pytest.raises(ValueError, match="dimensions"):
        ops.stack([draw(2, 3), draw(3, 2)])


def test_the_absolute_value_of_zero_has_gradient_zero():
    x = Tensor(np.array([-2.0, 0.0, 3.0]), True)
    abs(x).sum().backward()
    assert x.grad.tolist() == [-1, 0, 1]


def test_comparisons_of_size_are_those_of_arrays_from_either_side():
    a, b = draw(3, 1), np.append(draw(1, seed=1), draw(3, 1)[:2, 0])
    x, y = Tensor(a, True), Tensor(b)
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        for got in (compare(x, y), compare(x, b), compare(a, y)):
            assert type(got) is np.ndarray and got.tolist() == compare(a, b).tolist()
        assert compare(x, 0.3).tolist() == compare(a, 0.3).tolist()
        assert compare(0.3, x).tolist() == compare(0.3, a).tolist()


FOREIGN = BINARY | {"@": operator.matmul, "<": operator.lt}
OTHERS = [[[1.0, 2.0], [3.0, 4.0]], [[1, 2], [3, 4]], [1, 2], (0.1, 2), [[True] * 2] * 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("op", FOREIGN)
def test_a_list_is_an_operand_of_the_tensors_type_on_either_side(op, other, dtype):
    f = FOREIGN[op]
    x, array = positive(2, 2).astype(dtype), np.array(other, dtype)
    for swap in (1, -1):
        a, b = [Tensor(x, True), other][::swap]
        y, z = f(a, b), f(*[x, array][::swap])
        assert raw(y).dtype == z.dtype
        np.testing.assert_allclose(raw(y), z, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("op", FOREIGN)
def test_a_tensor_of_pytorchs_is_an_operand_as_its_numpy_array_is(op, dtype):
    torch = pytest.importorskip("torch")
    f = FOREIGN[op]
    x, other = positive(2, 2).astype(np.float32), torch.ones(2, 2, dtype=getattr(torch, dtype))
    if op == "-" and dtype == "bool":
        return  # NumPy has no difference of truth values and floats
    for swap in (1, -1):
        y = f(*[Tensor(x, True), other][::swap])
        z = f(*[Tensor(x, True), other.numpy()][::swap])
        assert type(y) is type(z) and y.dtype == z.dtype
        np.testing.assert_array_equal(raw(y), raw(z))


def test_the_gradient_beside_a_list_and_a_tensor_of_pytorchs_is_that_beside_an_array():
    torch = pytest.importorskip("torch")
    a = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    for other in (a.tolist(), torch.from_numpy(a)):
        x, y = Tensor(draw(2, 2), True), Tensor(draw(2, 2), True)
        (other @ (x * other)).sum().backward()
        (a @ (y * a)).sum().backward()
        np.testing.assert_array_equal(x.grad, y.grad)


@pytest.mark.parametrize("other", [None, "3", [1, None], ["3", "4"], {1: 2}, 2j])
@pytest.mark.parametrize("op", FOREIGN)
def test_an_operand_that_is_no_number_is_refused_on_either_side(op, other):
    f = FOREIGN[op]
    for operands in ((Tensor(np.ones(2)), other), (other, Tensor(np.ones(2)))):
        with pytest.raises(TypeError, match="expected numbers"):
            f(*operands)


def test_a_tensor_of_pytorchs_with_a_gradient_is_refused_as_it_would_be_lost():
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError, match="requires grad"):
        Tensor(np.ones(2)) * torch.ones(2, requires_grad=True)


@pytest.mark.parametrize("other", [2, 2.0, np.float32(2)])
def test_a_number_is_no_operand_of_a_matrix_product(other):
    x = Tensor(np.ones((2, 2)))
    for f in (lambda: x @ other, lambda: other @ x):
        with pytest.raises(TypeError, match="matmul: expected tensors or arrays, got "):
            f()


def test_a_mistake_in_an_operation_of_a_readers_own_is_told_as_python_tells_it():
    @ops._operator
    def mine(a, b):
        return a.dtpye

    with pytest.raises(AttributeError, match="dtpye"):
        mine(Tensor(1.0), Tensor(2.0))


def test_a_tensor_refuses_to_be_compared_with_equals():
    x = Tensor(np.ones(2))
    with pytest.raises(TypeError, match=r"t\.data == x"):
        ops.where(x == 1, x, x)
