"""`shapes`, a library like CuPy for arrays without contents: its functions, and how it is used."""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np

from minigpt.engine.arrays import LIBRARIES
from minigpt.engine.functional import PAIRS
from tests.shapes import kernels
from tests.shapes.arrays import (
    COPY,
    ELEMENTWISE,
    ShapeArray,
    copied,
    elementwise,
    fresh,
    in_order,
    keeping_order,
    ledger,
    matmul,
    scatter,
    stored,
)


def asarray(x, dtype=None):
    """x itself if it is a ShapeArray of this dtype; what is in NumPy goes up to the GPU."""
    if isinstance(x, ShapeArray):
        return x.astype(dtype or x.dtype, copy=False)
    x = np.asarray(x, dtype)
    ledger.uploads.append(x.nbytes)
    return fresh(x.shape, x.dtype)


def array(x, dtype=None):
    """As asarray, but always a copy."""
    if not isinstance(x, ShapeArray):
        return asarray(x, dtype)
    return copied(x, keeping_order(x), dtype)


def asnumpy(x):
    """An array of NumPy, without memory of its own; the CPU has to wait for the numbers."""
    ledger.waits["asnumpy"] += 1
    return np.broadcast_to(np.ones((), x.dtype), x.shape)


def ascontiguousarray(x):
    return x if in_order(x, "C") else x.copy()


def empty(shape, dtype=float):
    return fresh(shape, dtype)


def filled(shape, value, dtype=None):
    """np.full: a new array, and a launch that writes it."""
    y = fresh(shape, dtype or np.asarray(value).dtype)
    y.fill(value)
    return y


def like(make, x, *value, dtype=None):
    return make(x.shape, *value, dtype=dtype or x.dtype)


def arange(*limits, dtype=None):
    y = fresh(len(range(*limits)), dtype or int)
    ledger.launch(ELEMENTWISE, 1, 0, y.nbytes)
    return y


def concatenate(arrays, axis=0):
    """One copy of each array.  Raises NotImplementedError beyond 8, which CuPy joins otherwise."""
    arrays = [*arrays]
    if len(arrays) > 8:
        raise NotImplementedError("concatenate of more than 8 arrays: not counted")
    views = [x.view for x in arrays]
    axis = axis % arrays[0].ndim
    others = {v.shape[:axis] + v.shape[axis + 1 :] for v in views}
    if len(others) > 1:
        raise ValueError(f"concatenate: expected shapes that differ along {axis} alone")
    shape = [*arrays[0].shape]
    shape[axis] = sum(x.shape[axis] for x in arrays)
    y = fresh(shape, np.result_type(*(x.dtype for x in arrays)))
    for x in arrays:
        ledger.launch(COPY, 1, stored(x), x.size * y.itemsize)
    return y


def stack(arrays, axis=0):
    return concatenate([expand_dims(x, axis) for x in arrays], axis)


def pad(x, widths, constant_values=0.0):
    y = fresh(
        [before + n + after for n, (before, after) in zip(x.shape, widths, strict=True)], x.dtype
    )
    y.fill(constant_values)
    ledger.launch(COPY, 1, stored(x), x.nbytes)
    return y


def split(x, parts, axis=0):
    return [x.seen_as(view) for view in np.split(x.view, parts, axis)]


def expand_dims(x, axis):
    return x.seen_as(np.expand_dims(x.view, axis))


def broadcast_to(x, shape):
    return x.seen_as(np.broadcast_to(x.view, shape))


def add_at(x, index, value):
    scatter(x, index if isinstance(index, tuple) else (index,), value, adding=True)


_ELEMENTWISE = """
    abs add clip cos divide exp isfinite isnan log maximum minimum multiply sign sin sqrt square
    subtract tanh where"""
shapes = SimpleNamespace(
    **{name: partial(elementwise, getattr(np, name)) for name in _ELEMENTWISE.split()},
    **{name: getattr(np, name) for name in "float32 float64 int32 int64 bool_ inf nan pi".split()},
    __name__="shapes",
    ndarray=ShapeArray,
    array=array,
    asarray=asarray,
    asnumpy=asnumpy,
    ascontiguousarray=ascontiguousarray,
    finfo=np.finfo,
    arange=arange,
    concatenate=concatenate,
    stack=stack,
    pad=pad,
    split=split,
    expand_dims=expand_dims,
    broadcast_to=broadcast_to,
    matmul=matmul,
    dot=matmul,
    empty=empty,
    zeros=lambda shape, dtype=float: filled(shape, 0, dtype),
    ones=lambda shape, dtype=float: filled(shape, 1, dtype),
    full=filled,
    RawModule=kernels.RawModule,
    ElementwiseKernel=kernels.ElementwiseKernel,
    cuda=kernels.cuda,
)
for _name in "empty zeros ones full".split():
    setattr(shapes, f"{_name}_like", partial(like, getattr(shapes, _name)))
shapes.add.at = add_at
ShapeArray.get = asnumpy


@contextmanager
def registered(pairs=None):
    """Make the engine know ShapeArray, with the fast pairs of CuPy or the given files of pairs."""
    LIBRARIES[ShapeArray] = shapes
    PAIRS["shapes"] = PAIRS["cupy"] if pairs is None else [*pairs]
    ledger.reset()
    try:
        yield shapes
    finally:
        del LIBRARIES[ShapeArray], PAIRS["shapes"]
