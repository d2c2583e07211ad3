"""Tensor (a value) and Node (its history): reverse-mode differentiation, first order only.

An op computes on arrays and calls `record`. While gradients are on, its result has a Node, which
knows the inputs and a rule from the output's gradient to theirs:

    a, b --op--> y        dy --rule--> da, db

Rules capture arrays and shapes, never Tensors: no cycles, so memory is freed as the walk goes.
"""

import itertools
import threading
from contextlib import contextmanager
from heapq import heappop, heappush

import numpy as np

from minigpt.engine.arrays import LIBRARIES, module_of

_order = itertools.count()


class _Mode(threading.local):
    grad, fast, bare = True, True, False  # record history? use the fast pairs? return arrays?


mode = _Mode()


@contextmanager
def _set(name, value):
    before = getattr(mode, name)
    setattr(mode, name, value)
    try:
        yield
    finally:
        setattr(mode, name, before)


def no_grad():
    """Within `with no_grad():` ops record no history: for validation and sampling."""
    return _set("grad", False)


def arrays():
    """Within `with arrays():` ops return arrays: no Tensor is made, a fifth of a sampled token."""
    return _set("bare", True)


def plain():
    """Within `with plain():` the definitions of functional.py run without their fast pairs."""
    return _set("fast", False)


class Node:
    """One step of history. inputs: for each (source, which of its outputs, shape), the source being
    a leaf Tensor or a Node; None if it needs no gradient. order counts creations: a node is younger
    than all it depends on, so from young to old is a topological order, without recursion."""

    __slots__ = ("order", "inputs", "backward", "outputs", "name")

    def __init__(self, inputs, backward, outputs, name):
        self.order, self.inputs, self.backward = next(_order), inputs, backward
        self.outputs, self.name = outputs, name


class Tensor:
    """An array that remembers how it was computed.

    `data` is the array, `grad` (an array) is where `backward` adds up d loss / d data. Numbers and
    lists become float32 NumPy arrays; float arrays stay as they are.
    """

    __slots__ = ("data", "grad", "requires_grad", "node", "output", "__weakref__")
    __array_ufunc__ = None  # so that ndarray * Tensor asks Tensor instead of looping over it

    def __init__(self, data, requires_grad=False):
        if type(data) not in LIBRARIES:
            data = np.asarray(data, dtype=getattr(data, "dtype", np.float32))
        self.data = data if data.dtype.kind == "f" else data.astype(np.float32)
        self.requires_grad = requires_grad
        self.grad, self.node, self.output = None, None, 0

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    device = property(lambda self: "cpu" if isinstance(self.data, np.ndarray) else "gpu")

    def detach(self):
        """The same array without history."""
        return Tensor(self.data)

    def item(self):
        """The value of a tensor of one element, as a Python number."""
        return self.data.item()

    def backward(self, grad=None):
        """Add d self / d leaf to `grad` of every leaf that requires it, and free the graph.

        A tensor of more than one element needs `grad`, the gradient that arrives at it.
        Raises ValueError if that is missing or of another shape, RuntimeError without a graph.
        """
        if grad is None and self.size == 1:
            grad = module_of(self.data).ones_like(self.data)
        if grad is None or grad.shape != self.shape:
            got = "none; sum() to a scalar, or pass it" if grad is None else grad.shape
            raise ValueError(f"backward: expected a gradient of shape {self.shape}, got {got}")
        if not self.requires_grad:
            hint = "create the inputs with requires_grad=True, outside no_grad()"
            raise RuntimeError(f"backward: expected a tensor with history, got one without; {hint}")
        _walk(self.node or self, self.output, grad)

    def _bare(self, what):
        if self.node is not None:
            raise RuntimeError(f"{what}: an array cannot carry a tensor's history; use t.detach()")
        return self.data

    def __array__(self, dtype=None, copy=None):
        return np.array(self._bare("numpy.asarray"), dtype=dtype, copy=copy)

    def __dlpack__(self, **options):
        return self._bare("__dlpack__").__dlpack__(**options)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()

    def __len__(self):
        return len(self.data)

    def __bool__(self):
        hint = "compare t.item(), or choose elementwise: where(t.data > 0, a, b)"
        raise TypeError(f"bool(Tensor): a branch has no gradient; {hint}")

    def __eq__(self, other):
        raise TypeError("Tensor == x: compare the arrays, t.data == x; or the objects, t is x")

    __hash__ = object.__hash__

    def __setitem__(self, index, value):
        if self.requires_grad:
            hint = "build a new one with where() or concatenate(), or write to t.data of a leaf"
            raise RuntimeError(f"t[i] = v: a tensor with gradient cannot change; {hint}")
        self.data[index] = value

    def __repr__(self):
        values, origin = "...", ", requires_grad=True" if self.requires_grad else ""
        if self.device == "cpu":
            values = np.array2string(self.data, separator=", ", threshold=20, prefix="Tensor(")
        origin = f", op={self.node.name}" if self.node else origin
        about = f"shape={self.shape}, dtype={self.dtype}, device={self.device}{origin}"
        return f"Tensor({values}, {about})"


def raw(x):
    """The array of a Tensor; anything else (arrays, numbers) as it is."""
    return x.data if isinstance(x, Tensor) else x


def record(y, inputs, backward, name=None):
    """The result of an op, array y (or a list of arrays), as Tensor (or tuple of Tensors).

    `backward(dy)` (one argument per output, None if that output was not used) returns one gradient
    per input, or None; it must not write to dy. Gradients may have the broadcast shape.
    """
    if mode.bare:
        return y
    several = isinstance(y, (list, tuple))
    outputs = tuple(map(Tensor, y)) if several else (Tensor(y),)
    traced = [isinstance(x, Tensor) and x.requires_grad for x in inputs] if mode.grad else ()
    if any(traced):
        pairs = zip(inputs, traced, strict=True)
        sources = [(x.node or x, x.output, x.data.shape) if t else None for x, t in pairs]
        name = name or backward.__qualname__.split(".")[0]  # exp.<locals>.<lambda> -> exp
        node = Node(sources, backward, len(outputs), name)
        for number, tensor in enumerate(outputs):
            tensor.requires_grad, tensor.node, tensor.output = True, node, number
    return outputs if several else outputs[0]


def _walk(root, output, grad):
    """Carry grad from an output of root back to all leaves, youngest node first."""
    waiting, arrived = [], {}  # a heap of nodes, and the gradients at the outputs of each
    _deliver(root, output, grad, waiting, arrived)
    while waiting:
        node = heappop(waiting)[1]
        if node.backward is None:
            hint = "compute it again, or add the losses and call backward() once"
            raise RuntimeError(f"backward: {node.name} was freed by an earlier backward(); {hint}")
        grads = node.backward(*arrived.pop(node))
        inputs, node.inputs, node.backward = node.inputs, None, None
        for source, dx in zip(inputs, grads, strict=True):
            if source is not None and dx is not None:
                target, number, shape = source
                _deliver(target, number, _unbroadcast(dx, shape), waiting, arrived)


def _deliver(target, number, dx, waiting, arrived):
    """Add dx to a leaf's own array, or to what waits at an output of a node."""
    if isinstance(target, Tensor):
        if target.grad is None:  # a copy: z = a + b hands the same dz to both
            target.grad = module_of(target.data).array(dx, dtype=target.dtype)
        else:
            target.grad += dx
        return
    if target not in arrived:
        arrived[target] = [None] * target.outputs
        heappush(waiting, (-target.order, target))
    before = arrived[target][number]
    arrived[target][number] = dx if before is None else before + dx


def _unbroadcast(dx, shape):
    """Sum dx over the axes along which an input of this shape was repeated."""
    if dx.shape == shape:
        return dx
    if dx.ndim > len(shape):
        dx = dx.sum(axis=tuple(range(dx.ndim - len(shape))))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and dx.shape[i] != 1)
    return dx.sum(axis=repeated, keepdims=True) if repeated else dx
