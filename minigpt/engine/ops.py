"""The primitive operations: each computes on arrays and records its derivatives beside it.

Operands are Tensors or arrays; arithmetic takes numbers, lists and PyTorch's tensors, too. Integers
and lists are converted to the float type of the other operand. Shapes broadcast as in NumPy: where
one operand lacks an axis, or has size 1 there, its numbers are repeated. The engine sums each
gradient back to its input's shape. The last lines of this file give Tensor its operators.
"""

import math
import operator
from functools import partial, wraps
from itertools import pairwise

import numpy as np

from minigpt.engine.arrays import LIBRARIES, module_of, total
from minigpt.engine.autograd import Tensor, array_of, raw, record


def operands(a, b):
    """The arrays of two operands. NumPy would make float64 of float32 and integers, or of float32
    and a NumPy number; as in PyTorch, both take the type of the other operand instead."""
    x, w = raw(a), raw(b)
    if type(w) is float or (
        type(x) is type(w) and getattr(x, "dtype", 0) is getattr(w, "dtype", 1)
    ):
        return x, w  # the usual cases
    return _in_type_of(w, x), _in_type_of(x, w)


def _in_type_of(other, x):
    """x as an operand beside other: numbers stay numbers; integers, lists and arrays of other
    libraries get the float type of other."""
    if type(x) in LIBRARIES:
        if x.dtype.kind not in "iu":
            return x
    elif isinstance(x, np.generic):
        return x.item()
    elif type(x) in (int, float, bool):
        return x
    theirs = getattr(other, "dtype", None)
    theirs = theirs if getattr(theirs, "kind", None) == "f" else np.float32
    if type(x) not in LIBRARIES:  # a list, or an array of another library
        x = array_of(x, theirs)
    return x.astype(theirs) if x.dtype.kind in "iu" else x


def add(a, b):
    """y = a + b"""
    x, w = operands(a, b)
    return record(x + w, (a, lambda dy: dy), (b, lambda dy: dy))


def subtract(a, b):
    """y = a - b"""
    x, w = operands(a, b)
    return record(x - w, (a, lambda dy: dy), (b, lambda dy: -dy))


def multiply(a, b):
    """y = a b, elementwise.  If a grows by a little, y grows by b times as much: da = dy b."""
    x, w = operands(a, b)
    return record(x * w, (a, lambda dy: dy * w), (b, lambda dy: dy * x))


def divide(a, b):
    """y = a / b, elementwise; ∂y/∂b = -a / b^2 = -y / b, which needs no a"""
    x, w = operands(a, b)
    y = x / w
    return record(y, (a, lambda dy: dy / w), (b, lambda dy: -dy * y / w))


def negative(x):
    """y = -x"""
    return record(-raw(x), (x, lambda dy: -dy))


def abs(x):
    """y = |x|; ∂y/∂x is the sign of x, 0 where x is 0"""
    a = raw(x)
    xp = module_of(a)
    return record(xp.abs(a), (x, lambda dy: dy * xp.sign(a)))


def power(a, b):
    """y = a^b, elementwise; a gradient of b needs a >= 0"""
    x, p = operands(a, b)
    y = x**p

    def rule_of_a(dy):
        return dy * p * x ** (p - (p != 0))  # b a^(b-1), but 0 and not 0 / 0 where a and b are 0

    def rule_of_b(dy):
        xp = module_of(y)
        never = (x == 0) & (p >= 0)  # 0^b stays as it is if b moves
        ln = xp.log(xp.where(never, 1.0, x), dtype=y.dtype)
        return dy * y * ln  # a^b = e^(b ln a)

    return record(y, (a, rule_of_a), (b, rule_of_b))


def exp(x):
    """y = e^x"""
    a = raw(x)
    y = module_of(a).exp(a)
    return record(y, (x, lambda dy: dy * y))  # ∂y/∂x = y: keep y, let x go


def log(x):
    """y = ln x"""
    a = raw(x)
    return record(module_of(a).log(a), (x, lambda dy: dy / a))


def tanh(x):
    """y = tanh x"""
    a = raw(x)
    y = module_of(a).tanh(a)
    return record(y, (x, lambda dy: dy * (1 - y * y)))


def sqrt(x):
    """y = x^(1/2)"""
    a = raw(x)
    y = module_of(a).sqrt(a)
    return record(y, (x, lambda dy: dy * 0.5 / y))


def clip(x, low=None, high=None):
    """y = x held within [low, high]; no gradient where it was changed"""
    a = raw(x)
    y = module_of(a).clip(a, low, high)
    return record(y, (x, lambda dy: dy * (a == y)))


def where(condition, a, b):
    """y = a where the bool array condition holds, else b"""
    pick = partial(module_of(condition).where, condition)
    y = pick(*operands(a, b))
    return record(y, (a, lambda dy: pick(dy, 0.0)), (b, lambda dy: pick(0.0, dy)))


def sum(x, axis=None, keepdims=False):
    """y = sum of x over axis (an int, a tuple, or None = all)

    Each element of x counts once in its sum, so it gets the gradient of that sum.
    """
    shape = x.shape
    y = total(raw(x), axis, keepdims)
    return record(y, (x, lambda dy: _spread(dy, shape, axis, keepdims)))


def _spread(dy, shape, axis, keepdims):
    """dy of a reduction of an array of this shape over axis, repeated for each reduced element.

    Example: (2, 3, 5) was reduced over axis 1 to (2, 5). The lost axis returns with size 1, which
    gives (2, 1, 5), and broadcasting repeats that to (2, 3, 5) as a view, without a copy.
    """
    if shape and axis is not None and not keepdims:  # a number, of shape (), lost no axis
        dy = module_of(dy).expand_dims(dy, axis)
    return module_of(dy).broadcast_to(dy, shape)


def mean(x, axis=None, keepdims=False):
    """y = mean of x over axis (an int, a tuple, or None = all)"""
    y = sum(x, axis, keepdims)
    return y * (y.size / x.size if x.size else math.nan)  # NaN as in NumPy


def max(x, axis=None, keepdims=False):
    """y = largest x along axis

    Only the largest element moves y, so it alone gets dy. If n elements are equally large, each
    gets dy / n.
    """
    a = raw(x)
    y = a.max(axis=axis, keepdims=keepdims)

    def rule(dy):
        is_largest = a == _spread(y, a.shape, axis, keepdims)
        share = is_largest / is_largest.sum(axis=axis, keepdims=True)
        return _spread(dy, a.shape, axis, keepdims) * share.astype(a.dtype)

    return record(y, (x, rule))


def matmul(a, b):
    """y = a b, the matrix product: y_nm = sum over k of a_nk b_km

    (..., N, K), (..., K, M) -> (..., N, M); the axes in front count matrices and broadcast.

    Backward: a_nk stands in y_nm for every m, there times b_km. So its gradient is the sum over m
    of dy_nm b_km, which is the product da = dy b^T. Likewise b_km stands in y_nm for every n, times
    a_nk, so its gradient is the sum over n of a_nk dy_nm, which is db = a^T dy.
    """
    x, w = operands(a, b)
    a = a if isinstance(a, Tensor) else x  # from a list, which has no axes
    b = b if isinstance(b, Tensor) else w
    if x.ndim == 1 or w.ndim == 1:
        return _vector_matmul(a, b)
    if x.ndim > 2 and w.ndim == 2:
        # All matrices of a meet the same b, so their rows can stand in one tall matrix. One product
        # is the fastest path of BLAS and of cuBLAS, and db comes out summed.
        rows = reshape(a, (math.prod(x.shape[:-1]), x.shape[-1]))
        return reshape(matmul(rows, b), x.shape[:-1] + w.shape[1:])
    xt, wt = x.swapaxes(-1, -2), w.swapaxes(-1, -2)
    return record(x @ w, (a, lambda dy: dy @ wt), (b, lambda dy: xt @ dy))


def _vector_matmul(a, b):
    """matmul with a vector: a counts as one row, b as one column, and y lacks that axis of size 1.

    (K,), (..., K, M) -> (..., M);  (..., N, K), (K,) -> (..., N);  (K,), (K,) -> ()
    """
    if raw(b).ndim == 1:
        y = matmul(a, reshape(b, (-1, 1)))
        return reshape(y, y.shape[:-1])
    y = matmul(reshape(a, (1, -1)), b)
    return reshape(y, y.shape[:-2] + y.shape[-1:])


def reshape(x, *shape):
    """y = the elements of x in the same order, in another shape (one size may be -1)"""
    before = x.shape
    return record(raw(x).reshape(*shape), (x, lambda dy: dy.reshape(before)))


def transpose(x, *axes):
    """y = x with its axes permuted: axis i of y is axis axes[i] of x; without axes, reversed

    axes: integers, or one tuple of them.
    """
    y = raw(x).transpose(*axes)
    n = y.ndim
    if len(axes) == 1 and not isinstance(axes[0], (int, np.integer)):
        axes = axes[0]  # all in one tuple, or None

    def rule(dy):
        order = [axis % n for axis in axes] if axes else range(n)[::-1]
        went_to = [order.index(i) for i in range(n)]  # axis i of x is axis went_to[i] of y
        return dy.transpose(went_to)

    return record(y, (x, rule))


def pad(x, widths, value=0.0):
    """y = x with rows of a value around: widths[i] = (how many before, after) along axis i"""
    a = raw(x)
    inner = tuple(slice(n, n + size) for (n, _), size in zip(widths, a.shape, strict=True))
    y = module_of(a).pad(a, widths, constant_values=value)
    return record(y, (x, lambda dy: dy[inner]))


def _part(axis, start, end):
    """The index of what stands from start to end along axis: y[_part(1, 2, 5)] is y[:, 2:5]."""
    return (*[slice(None)] * axis, slice(start, end))


def concatenate(xs, axis=0):
    """y = the tensors one after the other along axis; dy is cut back into their parts"""
    xs = [*xs]  # they may come from a generator, and are read twice
    arrays = [raw(x) for x in xs]
    axis = axis % arrays[0].ndim
    inputs, start = [], 0
    for x, a in zip(xs, arrays, strict=True):
        part = _part(axis, start, start + a.shape[axis])
        inputs.append((x, lambda dy, part=part: dy[part]))
        start += a.shape[axis]
    return record(module_of(arrays[0]).concatenate(arrays, axis), *inputs)


def stack(xs, axis=0):
    """y = the tensors side by side along a new axis"""
    xs = [*xs]
    n = xs[0].ndim + 1
    if not -n <= axis < n:
        raise ValueError(f"stack: expected an axis from {-n} to {n - 1}, got {axis}")
    at = axis % n
    return concatenate([reshape(x, x.shape[:at] + (1,) + x.shape[at:]) for x in xs], at)


def split(x, parts, axis=0):
    """x cut along axis into equal parts (an int), or before given indices (a list) -> a tuple

    Backward is the concatenation of the parts' gradients. A part that nobody used has gradient 0.
    """
    a = raw(x)
    axis, size = axis % a.ndim, a.shape[axis]
    if isinstance(parts, (int, np.integer)):
        if parts < 1 or size % parts:
            raise ValueError(f"split: expected a size that {parts} divides, got {size}")
        starts = [part * size // parts for part in range(1, parts)]
    else:
        starts = [start + size if start < 0 else start for start in parts]
        starts = [min(start, size) if start > 0 else 0 for start in starts]
        if starts != sorted(starts):
            raise ValueError(f"split: expected indices in rising order, got {parts}")
    ys = [a[_part(axis, start, end)] for start, end in pairwise([0, *starts, size])]
    xp, dtype, shapes = module_of(a), a.dtype, [y.shape for y in ys]

    def rule(*dys):
        whole = []
        for dy, shape in zip(dys, shapes, strict=True):
            whole.append(xp.zeros(shape, dtype) if dy is None else dy)
        return xp.concatenate(whole, axis)

    return record(ys, (x, rule))


def getitem(x, index):
    """y = x[index]: slices, integers, None, ..., integer or bool arrays

    Backward: elements that were not read have gradient 0. One that an integer array reads several
    times gets the sum of their gradients.
    """
    xp, shape, dtype = module_of(x.data), x.shape, x.dtype
    keys = index if isinstance(index, tuple) else (index,)
    reads_once = all(isinstance(key, (int, slice, type(None), type(...))) for key in keys)

    def rule(dy):
        dx = xp.zeros(shape, dtype)
        if reads_once:
            dx[index] = dy
        else:
            xp.add.at(dx, index, dy)  # unlike dx[index] += dy, this counts repeated indices
        return dx

    return record(x.data[index], (x, rule))


def _operator(op):
    """The op, but if the shapes of its operands do not fit, the error names it and both."""

    @wraps(op)
    def call(a, b):
        try:
            return op(a, b)
        except AttributeError:
            if all(isinstance(x, Tensor) or type(x) in LIBRARIES for x in (a, b)):
                raise  # a mistake in op
            got = f"{type(a).__name__} and {type(b).__name__}; convert it first"
            raise TypeError(f"{op.__name__}: expected tensors or arrays, got {got}") from None
        except ValueError as error:
            shapes = f"{np.shape(a)} and {np.shape(b)}"
            raise ValueError(f"{op.__name__}: shapes {shapes} do not fit; {error}") from None

    return call


_names = "add sub mul truediv pow matmul".split()
for _name, _op in zip(_names, (add, subtract, multiply, divide, power, matmul), strict=True):
    _op = _operator(_op)
    setattr(Tensor, f"__{_name}__", _op)
    setattr(Tensor, f"__r{_name}__", lambda b, a, op=_op: op(a, b))
for _op in (exp, log, tanh, sqrt, abs, clip, sum, mean, max, reshape, transpose, split):
    setattr(Tensor, _op.__name__, _op)
Tensor.__neg__, Tensor.__abs__, Tensor.__getitem__ = negative, abs, getitem
Tensor.T = property(transpose)
for _op in (operator.lt, operator.le, operator.gt, operator.ge):  # truth values have no gradient:
    setattr(Tensor, f"__{_op.__name__}__", lambda a, b, op=_op: op(*operands(a, b)))  # an array
