"""Tensor (a value) and Node (its history): how the derivatives of a loss are found.

Training changes each weight a little so that one number, the loss, becomes smaller. For that it
needs the gradient: the derivatives of the loss with respect to all weights. Here dx is short for
∂loss/∂x, an array of the shape of x. Two facts of calculus are enough:

    If x acts on the loss through y alone, dx = dy * ∂y/∂x: the chain rule.
    If x acts through several values, their contributions add up.

So an op that computes y from inputs calls `record`, with a rule for each input that turns the
gradient of y into its own:

    a, b --op--> y        dy --rule of a--> da        dy --rule of b--> db

`Tensor.backward` begins at the loss, where d loss / d loss = 1, and applies the rules of one op
after the other, the last op first, until it reaches the leaves: tensors that no op has made, such
as weights. One such walk finds all derivatives, however many weights there are.

Rules capture arrays and shapes, never Tensors. So there are no reference cycles, and Python frees
each array as soon as the walk has passed it. A gradient has no history: there are no second
derivatives. Nor does a rule notice if somebody has written to its arrays since (`t.data[0] = 1`);
but backward() refuses if an optimizer has moved the weights.
"""

import itertools
import threading
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from minigpt.engine.arrays import LIBRARIES, module_of, to_numpy, total

_order = itertools.count()
FLOATS = np.dtype(np.float32), np.dtype(np.float64)
NEVER = (-1,)  # `changed` of a tensor to which no optimizer has written: earlier than every order


def now():
    """The next number in the order in which nodes are made: a moment between two ops."""
    return next(_order)


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

    inputs: (source, output, shape, dtype) of each input that needs a gradient: the source is a
    leaf, or the Node that made the input. backward(*dys): a gradient per output, None for
    one that was not used -> a gradient per entry of inputs.
    """

    __slots__ = ("order", "inputs", "backward", "outputs", "name")

    def __init__(self, inputs, backward, outputs, name):
        self.order, self.inputs, self.backward = next(_order), inputs, backward
        self.outputs, self.name = outputs, name


class Tensor:
    """An array that remembers how it was computed.

    `data` is the array, `grad` (an array) is where `backward` adds up d loss / d data. `node` is
    the op that made it, `output` tells which of that op's outputs it is; a leaf has no node.
    `changed[0]` is the moment, counted like Node.order, when an optimizer last wrote to the array.
    Numbers, lists and integers become float32 NumPy arrays; float32 and float64 stay as they are,
    in PyTorch's tensors, too. Raises TypeError for other types of numbers, and what is no number.
    """

    __slots__ = ("data", "grad", "requires_grad", "node", "output", "changed", "__weakref__")
    __array_ufunc__ = None  # so that ndarray * Tensor asks Tensor instead of looping over it

    def __init__(self, data, requires_grad=False):
        if type(data) not in LIBRARIES:
            data = array_of(data)
        self.data = data if data.dtype in FLOATS else _as_float32(data)
        self.requires_grad = requires_grad
        self.grad, self.node, self.output, self.changed = None, None, 0, NEVER

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

    __float__ = item

    def numpy(self):
        """The values as a NumPy array, which shares their memory unless they are on a GPU.

        Raises RuntimeError for a tensor that requires a gradient.
        """
        return to_numpy(self._without_history("t.numpy()"))

    def backward(self, grad=None):
        """Add d self / d leaf to `grad` of every leaf that requires it, and free the history.

        A tensor of more than one element is no loss: for it the caller passes `grad`, its gradient
        with respect to a loss that is computed from it.
        Raises ValueError if that is missing or of another shape, RuntimeError without history.
        """
        if grad is None and self.size == 1:
            grad = module_of(self.data).ones_like(self.data)
        if grad is not None:
            grad = self._own_kind(grad)
        if grad is None or grad.shape != self.shape:
            got = "none; sum() to a scalar, or pass it" if grad is None else grad.shape
            raise ValueError(f"backward: expected a gradient of shape {self.shape}, got {got}")
        if not self.requires_grad:
            hint = "create the inputs with requires_grad=True, outside no_grad()"
            raise RuntimeError(f"backward: expected a tensor with history, got one without; {hint}")
        _walk(self.node or self, self.output, grad)

    def _own_kind(self, x):
        """A tensor, array, number or list as an array of this tensor's library and type."""
        x = raw(x)
        if type(x) not in LIBRARIES or x.dtype.kind not in "iubf":
            x = array_of(x, self.dtype)
        return module_of(self.data).asarray(x, dtype=self.dtype)

    def _without_history(self, what):
        if self.requires_grad:
            hint = "use the functions of minigpt.engine.ops, or t.detach() if none is needed"
            raise RuntimeError(f"{what}: an array cannot carry a tensor's gradient; {hint}")
        return self.data

    def __array__(self, dtype=None, copy=None):
        return np.array(self._without_history("numpy.asarray"), dtype=dtype, copy=copy)

    def __dlpack__(self, **options):
        return self._without_history("__dlpack__").__dlpack__(**options)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()

    def __len__(self):
        try:
            return len(self.data)
        except TypeError:
            raise TypeError("len(t): a number has no rows; t.item() is its value") from None

    def __iter__(self):
        return (self[i] for i in range(len(self)))  # TypeError for a number, which has no length

    def __bool__(self):
        hint = "compare t.item(), or choose elementwise: where(t > 0, a, b)"
        raise TypeError(f"bool(Tensor): a branch has no gradient; {hint}")

    def __eq__(self, other):
        raise TypeError("Tensor == x: compare the arrays, t.data == x; or the objects, t is x")

    __hash__ = object.__hash__

    def __setitem__(self, index, value):
        if self.requires_grad:
            hint = "build a new one with where() or concatenate(), or write to t.data of a leaf"
            raise RuntimeError(f"t[i] = v: a tensor with gradient cannot change; {hint}")
        self.data[index] = self._own_kind(value)

    def __repr__(self):
        values, about = "...", f"shape={self.shape}, dtype={self.dtype}, device={self.device}"
        if self.device == "cpu":
            values = np.array2string(self.data, separator=", ", threshold=20, prefix="Tensor(")
        if self.requires_grad:
            about += f", op={self.node.name}" if self.node else ", requires_grad=True"
        return f"Tensor({values}, {about})"

    def __format__(self, spec):
        if spec and self.size == 1:
            return format(self.item(), spec)
        try:
            return format(str(self), spec)
        except ValueError as error:
            need = f"expected one element for the format {spec!r}, got shape {self.shape}"
            raise ValueError(f"Tensor: {need}; format its elements one by one") from error

    if TYPE_CHECKING:  # for editors: what the attributes hold, and what ops.py adds to Tensor
        data: np.ndarray
        grad: Any
        node: Any
        T: "Tensor"

        def _op(self, *operands, **options) -> "Tensor": ...
        def _compare(self, other) -> np.ndarray: ...
        def split(self, parts, axis=0) -> "tuple[Tensor, ...]": ...

        __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __matmul__ = _op
        __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __rmatmul__ = _op
        __neg__ = __abs__ = __getitem__ = _op
        exp = log = tanh = sqrt = abs = clip = sum = mean = max = reshape = transpose = _op
        __lt__ = __le__ = __gt__ = __ge__ = _compare


def array_of(data, dtype=np.float32):
    """Numbers, or lists of them, as an array of this type; an array of another library as NumPy's.

    Raises TypeError for all else: of None NumPy would make NaN, and 3.0 of "3".
    """
    try:
        a = np.asarray(data)
        if a.dtype.kind not in "iubf":
            raise TypeError(a.dtype)
    except (TypeError, ValueError) as error:  # also rows of unlike lengths, types that NumPy lacks
        need = "numbers, in rows of equal length, or an array of float32, float64 or integers"
        why, _, _ = str(error).partition("\n")
        got = f"{type(data).__name__} ({why})"
        raise TypeError(f"Tensor: expected {need}, got {got}; convert it first") from None
    return a if hasattr(data, "__array__") else a.astype(dtype)


def _as_float32(a):
    """An array of integers or truth values as float32.  Raises TypeError for any other."""
    if a.dtype.kind in "iub":
        return a.astype(np.float32)
    need = "float32, float64 or integers, in this machine's byte order"
    raise TypeError(f"Tensor: expected {need}, got {a.dtype.str}; use a.astype(numpy.float32)")


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
        sources = [(x.node or x, x.output, x.data.shape, x.data.dtype) for x in inputs]
        node = Node(sources, backward, len(outputs), name)
        for number, tensor in enumerate(outputs):
            tensor.requires_grad, tensor.node, tensor.output = True, node, number
    return outputs if several else outputs[0]


def _walk(root, output, grad):
    """Carry grad from an output of root back to all leaves, the youngest node first.

    Whatever uses a node is younger than it. So once it is the youngest that waits, all its users
    have run: its gradient is complete. No recursion is needed; a long history would be too deep.
    """
    waiting = []  # a heap of (-order, node): the youngest comes out first
    arrived = {}  # node -> the gradients that have arrived at its outputs so far
    _deliver(root, output, grad, waiting, arrived)
    while waiting:
        _, node = heappop(waiting)
        if node.backward is None:
            hint = "compute it again, or add the losses and call backward() once"
            raise RuntimeError(f"backward: {node.name} was freed by an earlier backward(); {hint}")
        inputs, backward = node.inputs, node.backward
        node.inputs = node.backward = None  # the node is spent: what its rules captured is freed
        gradients = backward(*arrived.pop(node))
        del backward
        for (source, number, shape, dtype), dx in zip(inputs, gradients, strict=True):
            if dx is not None:
                dx = _fitting(_unbroadcast(dx, shape), shape, dtype, source, node)
                _deliver(source, number, dx, waiting, arrived)


def _fitting(dx, shape, dtype, source, node):
    """dx in the type of its input. Raises RuntimeError if it is no gradient of that input."""
    if dx.shape != shape:
        need = f"expected its rule to give a gradient of shape {shape}"
        raise RuntimeError(f"{node.name}: {need}, got {dx.shape}")
    if isinstance(source, Tensor) and source.changed[0] > node.order:
        hint = "call backward() before optimizer.step(), or compute the loss again"
        raise RuntimeError(f"{node.name}: its weights have changed since it was computed; {hint}")
    return dx if dx.dtype == dtype else dx.astype(dtype)


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
        dx = total(dx, tuple(range(new_axes)))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and dx.shape[i] != 1)
    return total(dx, repeated, keepdims=True) if repeated else dx
