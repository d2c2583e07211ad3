"""Arrays without contents: they know shape, dtype, strides and how long they live, and no numbers.

With them a training step of any size takes milliseconds, and the ledger says what CuPy 14.2 would
ask of a GPU for it: launches, bytes read and written, waits, the peak of the memory. The rules are
those of CuPy's source, cupy/_core and cupy/cuda at v14.2.0, with its default accelerator, CUB:

    f(x, y), elementwise  one launch; the result is in C order, whatever the operands' order
    x.sum(axis)           one launch, but two for a sum of everything: parts, then their sum
    x @ y, two matrices   one product; a matrix that is neither in C nor in F order is copied first
    x @ y, more than two  one product; what is not in C order is copied first: each transposed one
    x @ y, one number     x * y, written to memory, its sum in two launches, and a copy of that
    x[ids]                one launch; x[i, j] a memset, one launch per index, and one more
    x[part] = y           one copy; none after x[part] += y, which has worked in place

A kernel reads each number of its operands once: what is repeated (stride 0) counts once, and so
does an array that stands twice in one formula. Caches, and workspaces of libraries, do not count.
"""

import math
import operator
from collections import Counter, namedtuple
from functools import partialmethod
from types import SimpleNamespace

import numpy as np
from numpy.lib.stride_tricks import as_strided

Launch = namedtuple("Launch", "kind count read written flops", defaults=(0,))  # bytes

ELEMENTWISE, COPY, MEMSET, GATHER, SCATTER = "elementwise copy memset gather scatter".split()
ROWS, COLUMNS = "reduction of rows", "reduction of columns"
PRODUCT, BATCHED = "product of two matrices", "products, batched"
VALUE = 2  # what every number read from an array is: a norm of 2 is one that is clipped


class Ledger:
    """What has been asked of the GPU since reset(), and the bytes that live on it.

    launches: Launch objects; waits: how often the CPU waited for the GPU, by the name of the call;
    uploads: bytes of each array that came from NumPy; peak: the most bytes that lived at once.
    """

    def __init__(self):
        self.live = 0
        self.reset()

    def reset(self):
        self.launches, self.waits, self.uploads, self.peak = [], Counter(), [], self.live

    def launch(self, kind, count, read, written, flops=0):
        self.launches.append(Launch(kind, count, read, written, flops))

    def hold(self, nbytes):
        self.live += nbytes
        self.peak = max(self.peak, self.live)


ledger = Ledger()


class Block:
    """The memory of one array, which all its views share. CuPy's pool rounds up to 512 bytes.

    address: where it would lie on the GPU; start: where the views of NumPy believe that they begin.
    """

    next_address = 512

    def __init__(self, nbytes, start):
        self.nbytes, self.start, self.address = -(-nbytes // 512) * 512, start, Block.next_address
        Block.next_address += self.nbytes
        ledger.hold(self.nbytes)

    def __del__(self):
        ledger.hold(-self.nbytes)


def fresh(shape, dtype, order=None):
    """A new array. Its axes lie in memory in this order, the slowest first; None: C order."""
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    strides, step = [0] * len(shape), dtype.itemsize
    for axis in reversed(order or range(len(shape))):
        strides[axis] = step
        step *= max(shape[axis], 1)
    base = np.empty(1, dtype)
    view = as_strided(base, shape, strides)  # nobody reads or writes through it
    return ShapeArray(view, Block(math.prod(shape) * dtype.itemsize, address_of(base)))


def address_of(array):
    return array.__array_interface__["data"][0]


def keeping_order(x):
    """The order of x's axes in memory, for the copies that keep it: astype and array."""
    if in_order(x, "C"):
        return None
    return sorted(range(x.ndim), key=lambda axis: -abs(x.view.strides[axis]))


def in_order(x, orders):
    """Whether the numbers of x lie side by side in C or in F order: orders is "C", "F" or "CF"."""
    flags = x.view.flags
    return ("C" in orders and flags.c_contiguous) or ("F" in orders and flags.f_contiguous)


def stored(x):
    """The bytes that x has in memory, where an axis of stride 0 stands once; 0 for a number."""
    if not isinstance(x, ShapeArray):
        return 0
    axes = zip(x.shape, x.view.strides, strict=True)
    return x.itemsize * math.prod(n for n, stride in axes if stride)


def copied(x, order=None, dtype=None):
    y = fresh(x.shape, dtype or x.dtype, order)
    ledger.launch(COPY, 1, stored(x), y.nbytes)
    return y


def sample(x):
    """For an array one number of its type, with which NumPy can say what a result's type is."""
    return np.ones(1, x.dtype) if isinstance(x, ShapeArray) else x


def elementwise(f, *args, out=None, **options):
    """The result of NumPy's function f of arrays and numbers, or of broadcasting it into out.

    Raises ValueError if the shapes do not fit, TypeError for a NumPy array among the operands.
    """
    for x in args:
        if isinstance(x, np.ndarray):
            raise TypeError("shapes: expected no NumPy array; move it with asarray")
    given = [x for x in (*args, out) if isinstance(x, ShapeArray)]
    shape = np.broadcast_shapes(*(x.shape for x in given))
    if out is None:
        with np.errstate(all="ignore"):
            out = fresh(shape, f(*map(sample, args), **options).dtype)
    elif out.shape != shape:
        raise ValueError(f"shapes: expected an output of shape {shape}, got {out.shape}")
    if out.size:
        read = {x.place: stored(x) for x in args if isinstance(x, ShapeArray)}
        ledger.launch(ELEMENTWISE, 1, sum(read.values()), out.nbytes)
    return out


def reduction(name, x, axis=None, dtype=None, keepdims=False):
    """x.sum() and its like, over an axis, several, or all."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = sorted(operator.index(i) % x.ndim for i in axes)
    kept = enumerate(x.shape)
    shape = [1 if i in axes else n for i, n in kept if keepdims or i not in axes]
    options = {} if dtype is None else {"dtype": dtype}
    y = fresh(shape, getattr(sample(x), name)(**options).dtype)
    last = in_order(x, "C") and axes == [*range(x.ndim - len(axes), x.ndim)]
    first = in_order(x, "F") and axes == [*range(len(axes))]
    cub = (last or first) and y.dtype == x.dtype and name in ("sum", "max", "min")
    count = 2 if cub and len(axes) == x.ndim else 1
    ledger.launch(ROWS if last or first else COLUMNS, count, stored(x), y.nbytes)
    return y


def matmul(a, b):
    """a @ b.  Raises ValueError if the shapes do not fit."""
    if not (a.ndim and b.ndim) or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit")
    dtype = np.result_type(a.dtype, b.dtype)
    a, b = (x.astype(dtype, copy=False) for x in (a, b))
    if a.ndim > 2 or b.ndim > 2:
        return _batched(a, b)
    shape = a.shape[:-1] + b.shape[1:]
    if math.prod(shape) == 1:
        return _one_number(a, b, shape)
    a, b = (x if in_order(x, "CF") else x.copy() for x in (a, b))
    y = fresh(shape, dtype)
    flops = 2 * y.size * a.shape[-1]
    ledger.launch(PRODUCT, 1, stored(a) + stored(b), y.nbytes, flops)
    return y


def _one_number(a, b, shape):
    products = a.ravel() * b.ravel()
    total = products.sum()
    y = fresh(shape, total.dtype)
    ledger.launch(COPY, 1, total.nbytes, y.nbytes)
    return y


def _batched(a, b):
    if min(a.ndim, b.ndim) < 2:
        raise NotImplementedError("matmul of a vector and many matrices: not counted")
    front = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (x if in_order(x, "C") else x.copy() for x in (a, b))
    y = fresh((*front, a.shape[-2], b.shape[-1]), a.dtype)
    if not a.shape[:-2] == b.shape[:-2] == front:  # arrays of pointers to the matrices of a, b, y
        ledger.launch(ELEMENTWISE, 3 * len(front), 0, 3 * 8 * math.prod(front))
    flops = 2 * y.size * a.shape[-1]
    ledger.launch(BATCHED, 1, stored(a) + stored(b), y.nbytes, flops)
    return y


def _ids(ids):
    """Bytes of the ids; several arrays of them become one first: a memset, and each is added."""
    if len(ids) == 1:
        return stored(ids[0])
    places = math.prod(np.broadcast_shapes(*(i.shape for i in ids))) * 8
    ledger.launch(MEMSET, 1, 0, places)
    for i in ids:
        ledger.launch(ELEMENTWISE, 1, stored(i) + places, places)
    return places


def _rows(x, keys):
    """The arrays among the keys of x[keys], and the shape of what they choose. A mask is taken to
    choose everything, as its numbers are not known.  Raises NotImplementedError for other mixes."""
    if not all(isinstance(key, ShapeArray) for key in keys):
        raise NotImplementedError("arrays of ids beside slices: not counted")
    if keys[0].dtype == bool:
        return (keys[0].size,) + x.shape[keys[0].ndim :]
    return np.broadcast_shapes(*(i.shape for i in keys)) + x.shape[len(keys) :]


def gather(x, keys):
    y = fresh(_rows(x, keys), x.dtype)
    if keys[0].dtype == bool:
        ledger.waits["mask"] += 1  # the size of the result is known on the GPU only
        ledger.launch(GATHER, 2, keys[0].nbytes, 4 * keys[0].size)  # a running count
    ledger.launch(GATHER, 1, y.nbytes + _ids(keys), y.nbytes)
    return y


def scatter(x, keys, value, adding=False):
    """x[keys] = value, or += by atomic additions, which read each target, too."""
    written = math.prod(_rows(x, keys)) * x.itemsize
    read = stored(value) + _ids(keys) + (written if adding else 0)
    ledger.launch(SCATTER, 1, read, written)


class ShapeArray:
    """An array without contents; only `asarray` and `asnumpy` of library.py cross the border."""

    __slots__ = ("view", "block", "__weakref__")
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, view, block):
        self.view, self.block = view, block

    shape = property(lambda self: self.view.shape)
    ndim = property(lambda self: self.view.ndim)
    size = property(lambda self: self.view.size)
    dtype = property(lambda self: self.view.dtype)
    itemsize = property(lambda self: self.view.itemsize)
    nbytes = property(lambda self: self.view.nbytes)
    strides = property(lambda self: self.view.strides)
    T = property(lambda self: self.seen_as(self.view.T))
    data = property(lambda self: SimpleNamespace(ptr=self.pointer))

    @property
    def pointer(self):
        return self.block.address + address_of(self.view) - self.block.start

    @property
    def place(self):
        return self.pointer, self.shape, self.view.strides

    def __array__(self, dtype=None, copy=None):
        raise TypeError("shapes: implicit conversion to NumPy; use asnumpy")

    def __len__(self):
        return len(self.view)

    def __repr__(self):
        return f"ShapeArray(shape={self.shape}, dtype={self.dtype})"

    def seen_as(self, view):
        return ShapeArray(view, self.block)

    def __getitem__(self, index):
        keys = index if isinstance(index, tuple) else (index,)
        if any(isinstance(key, ShapeArray) for key in keys):
            return gather(self, keys)
        keys = keys if any(key is ... for key in keys) else (*keys, ...)
        return self.seen_as(self.view[keys])  # with ... NumPy makes a view of a single number, too

    def __setitem__(self, index, value):
        keys = index if isinstance(index, tuple) else (index,)
        if any(isinstance(key, ShapeArray) for key in keys):
            return scatter(self, keys, value)
        part = self[index]
        if not isinstance(value, ShapeArray):
            return part.fill(value)
        np.broadcast_to(value.view, part.shape)  # raises ValueError if it does not fit
        if part.place != value.place:  # as they are after x[index] += y
            ledger.launch(COPY, 1, stored(value), part.nbytes)

    def fill(self, value):
        ledger.launch(MEMSET, 1, 0, self.nbytes)

    def reshape(self, *shape):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        try:
            return self.seen_as(self.view.reshape(shape, copy=False))
        except ValueError:
            whole = self.copy()
            return whole.seen_as(whole.view.reshape(shape, copy=False))

    def ravel(self):
        return self.reshape(-1)

    def transpose(self, *axes):
        return self.seen_as(self.view.transpose(*axes))

    def swapaxes(self, i, j):
        return self.seen_as(self.view.swapaxes(i, j))

    def copy(self):
        return copied(self)

    def astype(self, dtype, copy=True):
        if not copy and self.dtype == dtype:
            return self
        return copied(self, keeping_order(self), dtype)

    def dot(self, other):
        return matmul(self, other)

    def __matmul__(self, other):
        return matmul(self, other) if isinstance(other, ShapeArray) else NotImplemented

    def item(self):
        """Raises ValueError unless it is an array of one number."""
        return self.read("item")

    def read(self, name):
        ledger.waits[name] += 1
        if self.size != 1:
            raise ValueError(f"{name}: expected an array of one number, got shape {self.shape}")
        kind = {"bool": bool, "float": float, "int": int, "index": int}.get(name)
        return kind(VALUE) if kind else self.dtype.type(VALUE).item()


def _operator(f):
    def call(self, other):
        if getattr(other, "__array_ufunc__", 0) is None and not isinstance(other, ShapeArray):
            return NotImplemented  # a Tensor knows what to do
        return elementwise(f, self, other)

    return call


def _methods():
    """Give ShapeArray the operators and reductions of NumPy, and the reads that wait."""
    for name in "add sub mul truediv floordiv mod pow and_ or_ xor".split():
        f, bare = getattr(operator, name), name.strip("_")
        setattr(ShapeArray, f"__{bare}__", _operator(f))
        setattr(ShapeArray, f"__r{bare}__", lambda x, y, f=f: elementwise(f, y, x))
        setattr(ShapeArray, f"__i{bare}__", lambda x, y, f=f: elementwise(f, x, y, out=x))
    for name in "lt le gt ge eq ne".split():
        setattr(ShapeArray, f"__{name}__", _operator(getattr(operator, name)))
    for name in "neg abs invert".split():
        setattr(ShapeArray, f"__{name}__", partialmethod(_unary, getattr(operator, name)))
    for name in "sum max min any all".split():
        setattr(ShapeArray, name, partialmethod(_reduced, name))
    for name in "bool float int index".split():
        setattr(ShapeArray, f"__{name}__", partialmethod(ShapeArray.read, name))


def _unary(x, f):
    return elementwise(f, x)


def _reduced(x, name, axis=None, dtype=None, keepdims=False):
    return reduction(name, x, axis, dtype, keepdims)


_methods()
