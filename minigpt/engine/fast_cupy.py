"""Fast pairs on CuPy arrays; fast_numpy.py says what a pair is.

What moves memory is a kernel of kernels.cu, what computes is cuBLAS, NVIDIA's library of matrix
products. Formulas in which each number is on its own are in fast_elementwise.py; recurrence and
convolution run by their definitions. Nothing waits for the GPU: the CPU puts work into its queue.
Written for CuPy 14.2, and never timed; tests/emulator runs all of it without a GPU.
"""

import math
from pathlib import Path

import numpy as np

from minigpt.engine.arrays import module_of

SOURCE = Path(__file__).with_name("kernels.cu")
IGNORED = -100
_kernels = {}  # (library, name, type) -> kernel, made when it is first used


def launch(name, blocks, threads, *args):
    """Run a kernel of kernels.cu on a grid of so many blocks, which have so many threads each.

    A kernel sees addresses, not arrays: all must be contiguous. The type of the first one is that
    of all floats.
    """
    xp, dtype = module_of(args[0]), args[0].dtype
    key = xp.__name__, name, dtype.name
    if key not in _kernels:
        real = "double" if dtype == np.float64 else "float"
        text, options = SOURCE.read_text(encoding="utf-8"), (f"-DREAL={real}", "-std=c++17")
        _kernels[key] = xp.RawModule(code=text, options=options).get_function(name)
    if math.prod(blocks):  # CUDA refuses an empty grid
        _kernels[key](blocks, threads, tuple(_exact(x, dtype) for x in args))


def _exact(x, dtype):
    """An argument in the type that kernels.cu declares; CuPy would pass every float as a double."""
    if x is None:
        return np.intp(0)  # the null pointer
    if isinstance(x, float):
        return dtype.type(x)
    return np.int64(x) if isinstance(x, int) else x


def new(x, *shape):
    """An array in the library and type of x, not yet filled."""
    return module_of(x).empty(shape, x.dtype)


def contiguous(x):
    """x itself, or a copy if its numbers do not follow each other in memory."""
    return module_of(x).ascontiguousarray(x)


# ---- products of many matrices -----------------------------------------------------------------

precision = "float32"  # or "tf32", set by device.py: factors then have 10 bits of fraction, not 23
COMPUTE = {"float32": 68, "tf32": 77}  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
KIND = {"float32": 0, "float64": 1}  # CUDA_R_32F, CUDA_R_64F
FACTORS = {name: (np.ones(1, name), np.zeros(1, name)) for name in KIND}  # cuBLAS reads them here


def product(a, b, ta=False, tb=False):
    """y = a b over the last two axes, with a or b transposed if ta or tb; the axes in front agree.

    CuPy's @ would copy a transposed matrix, but cuBLAS reads it where it lies. cuBLAS takes our
    rows for columns, so that it sees every matrix transposed; as y^T = b^T a^T, it is asked for the
    product of b and a, and what it writes is y to us.
    """
    xp, name = module_of(a), a.dtype.name
    m, k = a.shape[:-3:-1] if ta else a.shape[-2:]
    n = b.shape[-2] if tb else b.shape[-1]
    y = new(a, *a.shape[:-2], m, n)
    if not y.size or not k:
        y.fill(0)
        return y
    (a, *of_a), (b, *of_b), (_, *of_y) = _laid_out(a), _laid_out(b), _laid_out(y)
    one, zero = (factor.ctypes.data for factor in FACTORS[name])
    compute = COMPUTE[precision] if name == "float32" else 70  # CUBLAS_COMPUTE_64F
    xp.cuda.cublas.gemmStridedBatchedEx(
        xp.cuda.device.get_cublas_handle(), int(tb), int(ta), n, m, k, one, *of_b, *of_a, zero,
        *of_y, math.prod(y.shape[:-2]), compute, -1,
    )  # fmt: skip
    return y


def _laid_out(x):
    """x, or a copy if cuBLAS cannot read it; its address and type; how far apart are two rows and
    two matrices. The matrices must be evenly spaced: a part of a cache of keys is not copied."""
    *front, rows, columns = x.shape
    *far, row, number = (stride // x.itemsize for stride in x.strides)
    even = all(far[i] == front[i + 1] * far[i + 1] for i in range(len(front) - 1))
    if number != 1 or row < columns or min(far, default=0) < 0 or not even:
        x, row, far = contiguous(x), columns, [rows * columns]
    return x, x.data.ptr, KIND[x.dtype.name], row, far[-1] if far else 0


def attention_forward(q, k, v, mask=None, window=None, causal=True):
    """Keeps one array of the scores' size: p = softmax(q k^T / sqrt(D)) is written over them."""
    (B, H, T, D), S = q.shape, k.shape[2]
    p, mask = product(q, k, tb=True), None if mask is None else contiguous(mask != 0)
    see = T, S, B * H * T, S if window is None else window, bool(causal), D**-0.5
    launch("softmax_forward", *per_warp(B * H * T), p, mask, H, *see)
    return product(p, v), (q, k, v, p, see)


def attention_backward(dy, saved):
    """dv = p^T dy, dp = dy v^T, dq = dz k, dk = dz^T q; the kernel writes dz over dp."""
    q, k, v, p, see = saved
    dv, dz = product(p, dy, ta=True), product(dy, v, tb=True)
    launch("softmax_backward", *per_warp(see[2]), dz, p, *see)
    return product(dz, k), product(dz, q, ta=True), dv


# ---- rows and columns --------------------------------------------------------------------------


def per_warp(rows):
    """The grid and the block of a kernel that gives each row to a warp: four rows to a block."""
    return (-(-rows // 4),), (128,)


def column_sums(kernel, count, N, C, *args):
    """Sums over N rows by kernel(*args, *sums, N, C) -> a list of `count` arrays (C,)

    Many blocks add up a slab of rows each, and a second launch adds up the slabs.
    """
    slabs, tiles = max(1, min(128, N // 64)), -(-C // 32)
    parts = [new(args[0], slabs, C) for _ in range(count)]
    launch(kernel, (tiles, slabs), (32, 8), *args, *parts, N, C)
    if slabs == 1:
        return [part[0] for part in parts]
    sums = [new(args[0], C) for _ in range(count)]
    for part, total in zip(parts, sums, strict=True):
        launch("column_sum", (tiles, 1), (32, 8), part, total, slabs, C)
    return sums


def linear_forward(x, w, b):
    """One product, then b is added in place."""
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ w
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[1]), (rows, w, x.shape, b is not None)


def linear_backward(dy, saved):
    """As in fast_numpy.py."""
    rows, w, shape, biased = saved
    dy = contiguous(dy).reshape(len(rows), w.shape[1])
    db = column_sums("column_sum", 1, *dy.shape, dy)[0] if biased else None
    return (dy @ w.T).reshape(shape), rows.T @ dy, db


def embedding_forward(w, ids):
    """The definition; the pair is there for its backward."""
    return w[ids], (w.shape, ids)


def embedding_backward(dy, saved):
    """In sorted ids those of one row of w stand side by side: one block adds up their gradients.

    CuPy's argsort would do it, too, but waits for the GPU.
    """
    ((V, C), ids), xp = saved, module_of(dy)
    dw = xp.zeros((V, C), dy.dtype)
    if isinstance(ids, slice):  # of positions, which are all different
        dw[ids] = dy
        return dw, None
    ids = ids.reshape(-1).astype(np.int64)
    N, (ordered, order) = len(ids), (xp.empty_like(ids) for _ in range(2))
    launch("sort_ids", (-(-N // 256),), (256,), ids, ordered, order, N)
    grid = N, -(-C // 32)
    launch("embedding_backward", grid, (32, 8), contiguous(dy), ordered, order, dw, N, C, V)
    return dw, None


def layer_norm_forward(x, w, b, eps=1e-5):
    """Keeps x and two numbers per row."""
    x, w, b, C = contiguous(x), contiguous(w), contiguous(b), x.shape[-1]
    N, y = x.size // C, new(x, *x.shape)
    row = [new(x, N) for _ in range(2)]
    launch("layer_norm_forward", *per_warp(N), x, w, b, y, *row, N, C, float(eps))
    return y, (x, w, row)


def layer_norm_backward(dy, saved):
    """dx in one launch, dw and db in another one, which reads along columns."""
    x, w, row = saved
    dy, dx, N, C = contiguous(dy), new(x, *x.shape), len(row[0]), x.shape[-1]
    launch("layer_norm_backward", *per_warp(N), dy, x, w, *row, dx, N, C)
    return dx, *column_sums("layer_norm_weights", 2, N, C, dy, x, *row)


def cross_entropy_forward(z, targets, count=None):
    """Keeps z and a number per row. dz will be an array of its own: somebody may still hold z."""
    z, t, V = contiguous(z), targets.reshape(-1).astype(np.int64), z.shape[-1]
    losses, lse = new(z, t.size), new(z, t.size)
    launch("cross_entropy_forward", (t.size,), (256,), z, t, losses, lse, V)
    if count:
        count = float(count)
    else:  # how many are scored, which only the GPU knows
        count = module_of(z).maximum((t != IGNORED).astype(z.dtype).sum(), 1.0)
    return losses.sum() / count, (z, t, lse, count)


def cross_entropy_backward(dloss, saved):
    """dz = dloss (p - onehot(target)) / count, with p = e^(z - lse)"""
    z, t, lse, count = saved
    share, dz, V = dloss / count, new(z, *z.shape), z.shape[-1]
    launch("cross_entropy_backward", (t.size,), (256,), z, t, lse, share, dz, V)
    return dz, None


def squared_norm(g):
    """|g|^2 of a vector -> (1,), which stays on the GPU; two launches, one order of adding up"""
    blocks = max(1, min(1024, len(g) // 1024))
    sums, total = new(g, blocks), new(g, 1)
    launch("square_sum", (blocks,), (256,), g, sums, len(g))
    launch("column_sum", (1, 1), (32, 8), sums, total, blocks, 1)
    return total
