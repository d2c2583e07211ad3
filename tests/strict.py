"""A stand-in for CuPy on NumPy: arrays that mix with nothing else, and that count every read.

`strict` has only functions that CuPy has, with their meaning. `empty` is filled with NaN; an index
out of range raises, where a GPU would wrap it silently. `syncs` counts, by name, the calls for
which the CPU would wait for the GPU.
"""

import operator
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from minigpt.engine.arrays import LIBRARIES
from minigpt.engine.functional import PAIRS

syncs = Counter()
SCALARS = (int, float, bool)
PASSED = (*SCALARS, str, slice, type, type(None), type(...))


def _in(x):
    """The NumPy side of an argument; refuses NumPy arrays and NumPy scalars."""
    if isinstance(x, StrictArray):
        return x._array
    if isinstance(x, (tuple, list)):
        return type(x)(_in(part) for part in x)
    if isinstance(x, dict):
        return {key: _in(part) for key, part in x.items()}
    if type(x) in PASSED or isinstance(x, np.dtype):
        return x
    raise TypeError(f"strict: {type(x).__name__} is no StrictArray; move it with asarray")


def _out(y):
    if isinstance(y, (tuple, list)):
        return [_out(part) for part in y]
    return StrictArray(np.asarray(y)) if isinstance(y, (np.ndarray, np.generic)) else y


class StrictArray:
    """An array of the stand-in; only `strict.asarray` and `strict.asnumpy` cross the border."""

    __slots__ = ("_array", "__weakref__")
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, array):
        self._array = array

    shape = property(lambda self: self._array.shape)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    dtype = property(lambda self: self._array.dtype)
    itemsize = property(lambda self: self._array.itemsize)
    nbytes = property(lambda self: self._array.nbytes)
    T = property(lambda self: StrictArray(self._array.T))

    def __array__(self, dtype=None, copy=None):
        raise TypeError("strict: implicit conversion to NumPy; use asnumpy")

    def __len__(self):
        return len(self._array)

    def __getitem__(self, index):
        index = _in(index)
        keys = index if isinstance(index, tuple) else (index,)
        if any(isinstance(key, np.ndarray) and key.dtype == bool for key in keys):
            syncs["mask"] += 1  # the size of the result is known on the GPU only
        return _out(self._array[index])

    def __setitem__(self, index, value):
        self._array[_in(index)] = _in(value)

    def __repr__(self):
        return f"StrictArray({self._array})"


def _method(name):
    def call(self, *args, **options):
        return _out(getattr(self._array, name)(*_in(args), **_in(options)))

    return call


def _reading(name):
    def call(self):
        syncs[name.strip("_")] += 1
        return getattr(self._array, name)()

    return call


def _operator(op):
    def call(self, other):
        if getattr(other, "__array_ufunc__", 0) is None and not isinstance(other, StrictArray):
            return NotImplemented  # a Tensor knows what to do
        return _out(op(self._array, _in(other)))

    return call


def _inplace(op):
    def call(self, other):
        op(self._array, _in(other))
        return self

    return call


def _function(f):
    def call(*args, **options):
        return _out(f(*_in(args), **_in(options)))

    return call


def _poisoned(make):
    def call(*args, **options):
        y = make(*_in(args), **_in(options))
        y.fill(np.nan if y.dtype.kind == "f" else 85)
        return StrictArray(y)

    return call


def array(x, dtype=None):
    """A copy of x (a StrictArray, NumPy array, number or list) as StrictArray."""
    return StrictArray(np.array(x._array if isinstance(x, StrictArray) else x, dtype=dtype))


def asarray(x, dtype=None):
    """x itself if it is a StrictArray of this dtype, else a copy."""
    same = isinstance(x, StrictArray) and dtype in (None, x.dtype)
    return x if same else array(x, dtype)


def asnumpy(x):
    """A copy of the StrictArray x as NumPy array."""
    syncs["asnumpy"] += 1
    return x._array.copy()


class Generator:
    """Philox as a generator of StrictArrays."""

    def __init__(self, bits):
        self._numpy = np.random.Generator(bits)

    def random(self, size=None, dtype=np.float64):
        return _out(self._numpy.random(size, dtype))


for _name in "__bool__ __float__ __int__ __index__ item tolist".split():
    setattr(StrictArray, _name, _reading(_name))
StrictArray.get = asnumpy
for (
    _name
) in "__neg__ __abs__ __invert__ sum max min mean any all argmax argmin argsort cumsum".split():
    setattr(StrictArray, _name, _method(_name))
for _name in "dot copy astype fill reshape ravel transpose swapaxes squeeze".split():
    setattr(StrictArray, _name, _method(_name))
for _name in "add sub mul truediv floordiv mod pow matmul and_ or_ xor".split():
    _op, _bare = getattr(operator, _name), _name.strip("_")
    setattr(StrictArray, f"__{_bare}__", _operator(_op))
    setattr(StrictArray, f"__r{_bare}__", _operator(lambda x, other, op=_op: op(other, x)))
    if _bare != "matmul":
        setattr(StrictArray, f"__i{_bare}__", _inplace(getattr(operator, f"i{_bare}")))
for _name in "lt le gt ge eq ne".split():
    setattr(StrictArray, f"__{_name}__", _operator(getattr(operator, _name)))

_FUNCTIONS = """
    abs add all any arange argmax argsort broadcast_to clip concatenate copyto cos cumsum divide
    dot exp expand_dims eye full full_like isfinite isnan log matmul max maximum mean min
    minimum multiply ones ones_like outer pad repeat sign sin split sort sqrt square stack subtract
    sum take_along_axis tanh tril triu vdot where zeros zeros_like"""
strict = SimpleNamespace(
    **{name: _function(getattr(np, name)) for name in _FUNCTIONS.split()},
    **{name: getattr(np, name) for name in "float32 float64 int32 int64 bool_ inf nan pi".split()},
    __name__="strict",
    ndarray=StrictArray,
    array=array,
    asarray=asarray,
    asnumpy=asnumpy,
    finfo=np.finfo,
    empty=_poisoned(np.empty),
    empty_like=_poisoned(np.empty_like),
    random=SimpleNamespace(Generator=Generator, Philox4x3210=np.random.Philox),
)
strict.add.at = _function(np.add.at)


@contextmanager
def registered(*pairs):
    """Make the engine know StrictArray, and `pairs` (modules) as the files of its fast pairs."""
    LIBRARIES[StrictArray] = strict
    PAIRS["strict"] = list(pairs)
    syncs.clear()
    try:
        yield strict
    finally:
        del LIBRARIES[StrictArray], PAIRS["strict"]
