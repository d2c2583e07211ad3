"""Tensor (a value) and Node (its history): how the derivatives of a loss are found.

Training changes each weight a little so that one number, the loss, becomes smaller. For that it
needs the gradient: the derivatives of the loss with respect to all weights. Here dx is short for
d loss / d x, an array of the shape of x. Two facts of calculus are enough:

    If x acts on the loss through y alone, dx = dy * (dy / dx): the chain rule.
    If x acts through several values, their contributions add up.

So an op that computes y from inputs calls `record`, with a rule for each input that turns the
gradient of y into its own:

    a, b --op--> y        dy --rule of a--> da        dy --rule of b--> db

`Tensor.backward` begins at the loss, where d loss / d loss = 1, and applies the rules of one op
after the other, the last op first, until it reaches the leaves: tensors that no op has made, such
as weights. One such walk finds all derivatives, however many weights there are.

Rules capture arrays and shapes, never Tensors. So there are no reference cycles, and Python frees
each array as soon as the walk has passed it. A gradient has no history: there are no second
derivatives.
"""

import itertools
import threading
from contextlib import contextmanager
from heapq import heappop, heappush

import numpy as np

from minigpt.engine.arrays import LIBRARIES, module_of

_order = itertools.count()


class _Mode(threading.local):
    """Three switches that every op reads. Each thread has its own."""

    grad = True  # ops record history; off within no_grad()
    fast = True  # formulas run by their fast pairs; off within plain()
    bare = False  # ops return arrays, which have no history, instead of Tensors; on within bare()


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
    """Within `with no_grad():` ops record no history. Validation needs none."""
    return _set("grad", False)


def plain():
    """Within `with plain():` formulas and optimizers run by definition, without fast forms."""
    return _set("fast", False)


def bare():
    """Within `with bare():` ops return arrays, which saves sampling a fifth of its time."""
    return _set("bare", True)


class Node:
    """One step of history: an op that has run, the order-th of the program.

    inputs: (source, output, shape) of each input that needs a gradient: the source is a leaf, or
    the Node one of whose outputs it is. backward(*dys): a gradient per output, None for one that
    was not used -> a gradient per entry of inputs.
    """

    __slots__ = ("order", "inputs", "backward", "outputs", "name")

    def __init__(self, inputs, backward, outputs, name):
        self.order, self.inputs, self.backward = next(_order), inputs, backward
        self.outputs, self.name = outputs, name


class Tensor:
    """An array that remembers how it was computed.

    `data` is the array, `grad` (an array) is where `backward` adds up d loss / d data. `node` is
    the op that made it, `output` tells which of that op's outputs it is; a leaf has no node.
    Numbers, lists and integers become float32 NumPy arrays; float arrays stay as they are.
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
        """Add d self / d leaf to `grad` of every leaf that requires it, and free the history.

        A tensor of more than one element is no loss: for it the caller passes `grad`, its gradient
        with respect to a loss that is computed from it.
        Raises ValueError if that is missing or of another shape, RuntimeError without history.
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

    def _without_history(self, what):
        if self.node is not None:
            raise RuntimeError(f"{what}: an array cannot carry a tensor's history; use t.detach()")
        return self.data

    def __array__(self, dtype=None, copy=None):
        return np.array(self._without_history("numpy.asarray"), dtype=dtype, copy=copy)

    def __dlpack__(self, **options):
        return self._without_history("__dlpack__").__dlpack__(**options)

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
        values, about = "...", f"shape={self.shape}, dtype={self.dtype}, device={self.device}"
        if self.device == "cpu":
            values = np.array2string(self.data, separator=", ", threshold=20, prefix="Tensor(")
        if self.requires_grad:
            about += f", op={self.node.name}" if self.node else ", requires_grad=True"
        return f"Tensor({values}, {about})"


def raw(x):
    """The array of a Tensor; anything else (an array, a number) as it is."""
    return x.data if isinstance(x, Tensor) else x


def record(y, *inputs):
    """The result of an op, array y, as a Tensor that knows its history; a list as a tuple of them.

    inputs: each input of the op beside its rule, (x, rule). `rule(dy)` returns dx and must not
    write to dy; dx may have the shape of y, if x was broadcast to it. With several outputs the rule
    gets a gradient for each, None for those that were not used. The rule of an input that needs no
    gradient is dropped here, and with it the arrays that only this rule would have used.
    """
    if mode.bare:
        return y
    traced = []
    if mode.grad:
        traced = [(x, rule) for x, rule in inputs if isinstance(x, Tensor) and x.requires_grad]
    if not traced:
        return _tensors(y)
    rules = [rule for _, rule in traced]
    name = rules[0].__qualname__.split(".")[0]  # exp.<locals>.<lambda> -> exp

    def backward(*dys):
        return (rule(*dys) for rule in rules)  # one by one: each dx is delivered before the next

    return _tensors(y, [x for x, _ in traced], backward, name)


def record_joint(y, inputs, rule, name):
    """As record, but one rule finds all gradients together, as fast pairs do.

    `rule(dy)` returns their gradients in order; it may leave out options, which stand at the end.
    """
    if mode.bare:
        return y
    places = []
    if mode.grad:
        places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if not places:
        return _tensors(y)

    def backward(*dys):
        gradients = rule(*dys)
        return [gradients[i] for i in places]

    return _tensors(y, [inputs[i] for i in places], backward, name)


def _tensors(y, inputs=(), backward=None, name=None):
    """y as a Tensor (a list as a tuple of Tensors), with a Node if inputs need a gradient."""
    several = isinstance(y, (list, tuple))
    outputs = tuple(map(Tensor, y)) if several else (Tensor(y),)
    if inputs:
        sources = [(x.node or x, x.output, x.data.shape) for x in inputs]
        node = Node(sources, backward, len(outputs), name)
        for number, tensor in enumerate(outputs):
            tensor.requires_grad, tensor.node, tensor.output = True, node, number
    return outputs if several else outputs[0]


def _walk(root, output, grad):
    """Carry grad from an output of root back to all leaves, the youngest node first.

    Whatever uses a node is younger than it. So once it is the youngest that waits, all its users
    have run: its gradient is complete. No recursion is needed, which a long history would exhaust.
    """
    waiting = []  # a heap of (-order, node): the youngest comes out first
    arrived = {}  # node -> the gradients that have arrived at its outputs so far
    _deliver(root, output, grad, waiting, arrived)
    while waiting:
        _, node = heappop(waiting)
        if node.backward is None:
            hint = "compute it again, or add the losses and call backward() once"
            raise RuntimeError(f"backward: {node.name} was freed by an earlier backward(); {hint}")
        gradients = node.backward(*arrived.pop(node))
        inputs = node.inputs
        node.inputs = node.backward = None  # the node is spent: what its rules captured is freed
        for (source, number, shape), dx in zip(inputs, gradients, strict=True):
            if dx is not None:
                _deliver(source, number, _unbroadcast(dx, shape), waiting, arrived)


def _deliver(target, number, dx, waiting, arrived):
    """Add dx to a leaf's own array, or to what waits at an output of a node.

    Contributions add: if x acts on the loss through y and through z, a small change of x changes
    the loss by the sum of what it changes through either.
    """
    if isinstance(target, Tensor):
        if target.grad is None:  # a copy, because z = a + b hands the same dz to both
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
    """Sum dx over the axes along which an input of this shape was repeated.

    Broadcasting lets (3,) or (1, 3) act as (2, 3) by repeating its numbers. Each number then acts
    through all its copies, and the gradients of the copies add up.
    """
    if dx.shape == shape:
        return dx
    new_axes = dx.ndim - len(shape)
    if new_axes > 0:  # those that broadcasting puts in front
        dx = dx.sum(axis=tuple(range(new_axes)))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and dx.shape[i] != 1)
    return dx.sum(axis=repeated, keepdims=True) if repeated else dx
