"""The primitive operations: each computes on arrays and records its derivative beside it.

Operands are Tensors or arrays, of arithmetic also numbers; shapes broadcast as in NumPy; the engine
sums each gradient back to its input's shape. The last lines give Tensor its operators.
"""

import math
from itertools import accumulate, pairwise

from minigpt.engine.arrays import module_of
from minigpt.engine.autograd import Tensor, raw, record


def add(a, b):
    """y = a + b"""
    return record(raw(a) + raw(b), (a, b), lambda dy: (dy, dy))


def subtract(a, b):
    """y = a - b"""
    return record(raw(a) - raw(b), (a, b), lambda dy: (dy, -dy))


def multiply(a, b):
    """y = a b, elementwise"""
    x, w = raw(a), raw(b)
    return record(x * w, (a, b), lambda dy: (dy * w, dy * x))


def divide(a, b):
    """y = a / b, elementwise"""
    w = raw(b)
    y = raw(a) / w
    return record(y, (a, b), lambda dy: (dy / w, -dy * y / w))  # dy/db = -a / b^2 = -y / b


def negative(x):
    """y = -x"""
    return record(-raw(x), (x,), lambda dy: (-dy,))


def power(a, b):
    """y = a^b, elementwise; a gradient for b only where b is a Tensor (it needs log a)"""
    x, p = raw(a), raw(b)
    y, traced = x**p, isinstance(b, Tensor)

    def backward(dy):
        db = dy * y * module_of(y).log(x, dtype=y.dtype) if traced else None
        return dy * p * x ** (p - (p != 0)), db  # x^0 has slope 0, at 0 as well

    return record(y, (a, b), backward)


def exp(x):
    """y = e^x"""
    a = raw(x)
    y = module_of(a).exp(a)
    return record(y, (x,), lambda dy: (dy * y,))  # dy/dx = y: keep y, let x go


def log(x):
    """y = ln x"""
    a = raw(x)
    return record(module_of(a).log(a), (x,), lambda dy: (dy / a,))


def tanh(x):
    """y = tanh x"""
    a = raw(x)
    y = module_of(a).tanh(a)
    return record(y, (x,), lambda dy: (dy * (1 - y * y),))


def sqrt(x):
    """y = x^(1/2)"""
    a = raw(x)
    y = module_of(a).sqrt(a)
    return record(y, (x,), lambda dy: (dy * 0.5 / y,))


def clip(x, low=None, high=None):
    """y = x held within [low, high]; no gradient where it was changed"""
    a = raw(x)
    y = module_of(a).clip(a, low, high)
    return record(y, (x,), lambda dy: (dy * (a == y),))


def where(condition, a, b):
    """y = a where the bool array condition holds, else b"""
    pick = module_of(condition).where
    y = pick(condition, raw(a), raw(b))
    return record(y, (a, b), lambda dy: (pick(condition, dy, 0.0), pick(condition, 0.0, dy)))


def _spread(dy, shape, axis, keepdims):
    """The gradient dy of a reduction over axis, repeated over the input's shape (a view)."""
    xp = module_of(dy)
    if axis is not None and not keepdims:
        dy = xp.expand_dims(dy, axis)
    return xp.broadcast_to(dy, shape)


def sum(x, axis=None, keepdims=False):
    """y = sum of x over axis (an int, a tuple, or None = all)"""
    shape = x.shape
    y = raw(x).sum(axis=axis, keepdims=keepdims)
    return record(y, (x,), lambda dy: (_spread(dy, shape, axis, keepdims),))


def mean(x, axis=None, keepdims=False):
    """y = mean of x over axis (an int, a tuple, or None = all)"""
    y = sum(x, axis, keepdims)
    return y * (y.size / x.size if x.size else math.nan)  # NaN as in NumPy


def max(x, axis=None, keepdims=False):
    """y = largest x along axis; equal largest values share the gradient equally"""
    a = raw(x)
    y = a.max(axis=axis, keepdims=keepdims)

    def backward(dy):
        largest = a == _spread(y, a.shape, axis, keepdims)
        share = largest / largest.sum(axis=axis, keepdims=True)
        return (_spread(dy, a.shape, axis, keepdims) * share.astype(a.dtype),)

    return record(y, (x,), backward)


def matmul(a, b):
    """y = a b over the last two axes, others broadcast.  (..., N, K), (..., K, M) -> (..., N, M)

    Vectors count as one row (a) or one column (b), as in NumPy.
    """
    x, w = raw(a), raw(b)
    if w.ndim == 1:
        y = matmul(a, reshape(b, (w.size, 1)))
        return reshape(y, y.shape[:-1])
    if x.ndim == 1:
        y = matmul(reshape(a, (1, x.size)), b)
        return reshape(y, y.shape[:-2] + y.shape[-1:])
    if x.ndim > 2 and w.ndim == 2:  # one flat product: the fastest path of BLAS and of cuBLAS
        rows = reshape(a, (math.prod(x.shape[:-1]), x.shape[-1]))
        return reshape(matmul(rows, b), x.shape[:-1] + w.shape[1:])
    return record(x @ w, (a, b), lambda dy: (dy @ w.swapaxes(-1, -2), x.swapaxes(-1, -2) @ dy))


def reshape(x, *shape):
    """y = the elements of x in the same order, in another shape (one size may be -1)"""
    before = x.shape
    return record(raw(x).reshape(*shape), (x,), lambda dy: (dy.reshape(before),))


def transpose(x, axes=None):
    """y = x with its axes permuted: axis i of y is axis axes[i] of x; None reverses them"""

    def backward(dy):
        order = range(dy.ndim)[::-1] if axes is None else [n % dy.ndim for n in axes]
        return (dy.transpose([order.index(i) for i in range(dy.ndim)]),)

    return record(raw(x).transpose(axes), (x,), backward)


def pad(x, widths, value=0.0):
    """y = x with rows of a value around: widths[i] = (how many before, after) along axis i"""
    a = raw(x)
    inner = tuple(slice(n, n + size) for (n, _), size in zip(widths, a.shape, strict=True))
    y = module_of(a).pad(a, widths, constant_values=value)
    return record(y, (x,), lambda dy: (dy[inner],))


def concatenate(xs, axis=0):
    """y = the tensors one after the other along axis"""
    arrays = [raw(x) for x in xs]
    xp, ends = module_of(arrays[0]), list(accumulate(x.shape[axis] for x in arrays[:-1]))
    return record(xp.concatenate(arrays, axis), xs, lambda dy: xp.split(dy, ends, axis))


def stack(xs, axis=0):
    """y = the tensors side by side along a new axis"""
    at = axis % (xs[0].ndim + 1)
    return concatenate([reshape(x, x.shape[:at] + (1,) + x.shape[at:]) for x in xs], at)


def split(x, parts, axis=0):
    """x cut along axis into equal parts (an int), or before given indices (a list) -> a tuple"""
    a = raw(x)
    xp, dtype, n = module_of(a), a.dtype, a.shape[axis]
    if isinstance(parts, int):
        if n % parts:
            raise ValueError(f"split: expected a size that {parts} divides, got {n}")
        parts = range(n // parts, n, n // parts)
    cuts = [(slice(None),) * (axis % a.ndim) + (slice(*ends),) for ends in pairwise((0, *parts, n))]
    ys = [a[cut] for cut in cuts]
    shapes = [y.shape for y in ys]

    def backward(*dys):  # parts that nobody used have no gradient
        pairs = zip(dys, shapes, strict=True)
        dys = [xp.zeros(shape, dtype) if dy is None else dy for dy, shape in pairs]
        return (xp.concatenate(dys, axis),)

    return record(ys, (x,), backward)


def getitem(x, index):
    """y = x[index]: slices, integers, None, ..., integer or bool arrays; repeated indices add up"""
    xp, shape, dtype = module_of(x.data), x.shape, x.dtype
    keys = index if isinstance(index, tuple) else (index,)
    basic = all(isinstance(key, (int, slice, type(None), type(...))) for key in keys)

    def backward(dy):
        dx = xp.zeros(shape, dtype)
        if basic:  # no element is read twice
            dx[index] = dy
        else:
            xp.add.at(dx, index, dy)
        return (dx,)

    return record(x.data[index], (x,), backward)


_names = "add sub mul truediv pow matmul".split()
for _name, _op in zip(_names, (add, subtract, multiply, divide, power, matmul), strict=True):
    setattr(Tensor, f"__{_name}__", _op)
    setattr(Tensor, f"__r{_name}__", lambda b, a, op=_op: op(a, b))
for _op in (exp, log, tanh, sqrt, clip, sum, mean, max, reshape, transpose, split):
    setattr(Tensor, _op.__name__, _op)
Tensor.__neg__, Tensor.__getitem__, Tensor.T = negative, getitem, property(transpose)
