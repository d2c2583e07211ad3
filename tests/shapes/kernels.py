"""Kernels of our own, and cuBLAS on raw pointers, as CuPy launches them; here they are counted.

Of a kernel its text says what it moves. An array passed as `const T*` is read. Any other array is
written, and read as well if the text does more than store to its elements: `y[i] = a` only writes,
`y[i] += a` and `b * y[i]` read. Each number counts once, because a kernel should fetch it once.
"""

import ctypes
import re
from types import SimpleNamespace

import numpy as np

from tests.shapes.arrays import BATCHED, PRODUCT, ShapeArray, fresh, ledger, stored


def keys_seen(T, S, rows, window, causal):
    """How many scores all queries of attention see; the kernels of softmax read no others."""
    last = [query if causal else S - 1 for query in range(S - T, S)]
    first = [max(0, query - window + 1) for query in range(S - T, S)]
    return int(rows // T * sum(j - i + 1 for i, j in zip(first, last, strict=True)))


def moved_forward(z, mask, H, *see):
    return z.itemsize * keys_seen(*see[:-1]), z.nbytes


def moved_backward(dp, p, *see):
    return 2 * dp.itemsize * keys_seen(*see[:-1]), dp.nbytes


# Kernels whose text does not say what they move, such as one that looks rows up in a table, or one
# that leaves out half of a triangle: {name: function of its arguments -> bytes read, written}.
MOVES = {"softmax_forward": moved_forward, "softmax_backward": moved_backward}

COMMENT = re.compile(r"//.*?$|/\*.*?\*/", re.S | re.M)


class RawModule:
    """cupy.RawModule: a text in CUDA C++, whose kernels are got by name."""

    def __init__(self, code, **options):
        self.code = COMMENT.sub("", code)

    def get_function(self, name):
        return Kernel(self.code, name)


class Kernel:
    """kernel(grid, block, arguments) notes one launch.

    Raises KeyError if the text has no kernel of this name (and MOVES neither), ValueError if an
    argument is missing or too many, or if an array is not in C order: a kernel ignores strides.
    """

    def __init__(self, code, name):
        self.name, self.parameters = name, None
        if name not in MOVES:
            head = re.search(
                rf"__global__\b[^;{{}}]*?\b{name.split('<')[0]}\s*\(([^)]*)\)\s*{{", code
            )
            if not head:
                raise KeyError(f"{name}: expected a __global__ function of this name in the text")
            body = within(code[head.end() - 1 :], "{}")
            self.parameters = [moved(parameter, body) for parameter in head[1].split(",")]

    def __call__(self, grid, block, arguments, **options):
        arrays = [x for x in arguments if isinstance(x, ShapeArray)]
        if not all(x.view.flags.c_contiguous for x in arrays):
            raise ValueError(f"{self.name}: expected arrays in C order")
        if self.parameters is None:
            read, written = MOVES[self.name](*arguments)
        else:
            marked = [*zip(arguments, self.parameters, strict=True)]
            read, written = (
                sum(x.nbytes for x, marks in marked if mark in marks and isinstance(x, ShapeArray))
                for mark in "rw"
            )
        ledger.launch(f"kernel {self.name}", 1, read, written)


def within(text, brackets):
    """What stands between the bracket with which the text begins and its partner."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == brackets[0]) - (letter == brackets[1])
        if not depth:
            return text[1:i]
    raise ValueError(f"expected a {brackets[1]} for every {brackets[0]}")


def moved(parameter, body):
    """What a kernel does to this parameter: "r" reads it, "w" writes, "rw" both, "" no array."""
    if "*" not in parameter:
        return ""
    if "const" in parameter.split("*")[0]:
        return "r"
    return "rw" if reads(parameter.split()[-1].lstrip("*&"), body) else "w"


def reads(name, body):
    """Whether the body does more than store to elements of this pointer, or of one made of it."""
    for found in re.finditer(rf"\b{name}\[", body):
        inside = within(body[found.end() - 1 :], "[]")
        if not re.match(r"\s*=(?!=)", body[found.end() + len(inside) + 1 :]):
            return True
    aliases = re.findall(rf"\*\s*(?:\w+\s+)?(\w+)\s*=\s*&?{name}\b\s*[+\[;]", body)
    return any(reads(alias, body) for alias in aliases if alias != name)


class ElementwiseKernel:
    """cupy.ElementwiseKernel: one launch for all numbers of the arrays, which are broadcast.

    in_params, out_params: "T x, raw int64 ids, float64 eps": a letter stands for any type, the same
    in all places. A raw array is not broadcast, and counts as a whole.
    """

    def __init__(self, in_params, out_params, operation, name="kernel", **options):
        self.inputs, self.outputs = (
            [parameter.split() for parameter in parameters.split(",") if parameter.strip()]
            for parameters in (in_params, out_params)
        )
        self.operation, self.name = COMMENT.sub("", operation), name

    def __call__(self, *arguments, size=None, **options):
        """-> the output, or a tuple of several; outputs that are not given are made."""
        inputs, given = arguments[: len(self.inputs)], arguments[len(self.inputs) :]
        types, sizes = {}, [x.shape for x in given]
        read = sum(map(self._read_of, given, self.outputs))
        for x, (*raw, kind, _) in zip(inputs, self.inputs, strict=True):
            if isinstance(x, ShapeArray):
                types[kind] = x.dtype
                sizes += [] if raw else [x.shape]
                read += stored(x)
        shape = np.broadcast_shapes(*sizes) if size is None else (size,)
        kinds = (kind for *_, kind, _ in self.outputs)
        outputs = given or [fresh(shape, types.get(kind) or np.dtype(kind)) for kind in kinds]
        ledger.launch(f"kernel {self.name}", 1, read, sum(y.nbytes for y in outputs))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _read_of(self, y, parameter):
        """The bytes that the operation reads of an output, which it may add to: y += x."""
        only_stored = all(
            re.match(r"\s*=(?!=)", self.operation[found.end() :])
            for found in re.finditer(rf"\b{parameter[-1]}\b(?!\[)", self.operation)
        )
        return 0 if only_stored else stored(y)


def gemmStridedBatchedEx(  # the name and the order of the arguments are cuBLAS's
    handle, transa, transb, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b,
    beta, c, c_type, ldc, stride_c, batch, compute, algorithm,
):  # fmt: skip
    """Many products c = alpha a b + beta c. A stride of 0: one matrix for all products."""
    sizes = {0: 4, 1: 8, 2: 2, 14: 2}  # bytes of CUDA_R_32F, 64F, 16F, 16BF
    number = ctypes.c_double if c_type == 1 else ctypes.c_float
    written = sizes[c_type] * m * n * batch
    read = sizes[a_type] * m * k * (batch if stride_a else 1)
    read += sizes[b_type] * k * n * (batch if stride_b else 1)
    read += written if number.from_address(beta).value else 0
    kind = BATCHED if batch > 1 else PRODUCT
    ledger.launch(kind, 1, read, written, 2 * m * n * k * batch)


def gemmEx(
    handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb,
    beta, c, c_type, ldc, compute, algorithm,
):  # fmt: skip
    """One product."""
    gemmStridedBatchedEx(
        handle, transa, transb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0,
        beta, c, c_type, ldc, 0, 1, compute, algorithm,
    )  # fmt: skip


cuda = SimpleNamespace(
    cublas=SimpleNamespace(gemmEx=gemmEx, gemmStridedBatchedEx=gemmStridedBatchedEx),
    device=SimpleNamespace(get_cublas_handle=lambda: 0),
)
