"""Fast pairs on CuPy arrays; fast_numpy.py says what a pair is.

What mostly moves memory is one kernel: of kernels.cu where threads work together, of ELEMENTWISE
where each number is on its own. Matrix products are cuBLAS's. Recurrence, convolution and the
softmax of other formulas run by their definitions. Nothing here waits for the GPU: the CPU only
puts work into its queue. Written for CuPy 14.2; tests/emulator runs it without a GPU.
"""

import math
from pathlib import Path

import numpy as np

from minigpt.engine.arrays import module_of, uniform

SOURCE = Path(__file__).with_name("kernels.cu")

# name -> inputs, outputs, and the formula for one number of each. T is float or double. A raw input
# is the whole array, and i the place of this number in the output, counted in C's order.
ELEMENTWISE = {
    "gelu_forward": ("T x", "T y", """
        T u = (T)0.7978845608028654 * (x + (T)0.044715 * x * x * x);
        y = x / 2 * (1 + tanh(u))"""),
    "gelu_backward": ("T dy, T x", "T dx", """
        T u = (T)0.7978845608028654 * (x + (T)0.044715 * x * x * x), t = tanh(u);
        T du = (T)0.7978845608028654 * (1 + 3 * (T)0.044715 * x * x);  // ∂u/∂x
        dx = dy * ((1 + t) / 2 + x / 2 * (1 - t * t) * du)"""),
    "relu2_forward": ("T x", "T y", "y = x <= 0 ? T(0) : x * x"),
    "relu2_backward": ("T dy, T x", "T dx", "dx = x <= 0 ? T(0) : 2 * x * dy"),
    "turn": ("T a, T b, T cos, T sin", "T c, T d", "c = a * cos - b * sin; d = a * sin + b * cos"),
    "dropout": ("T x, bool keep, T scale", "T y", "y = x * (keep * scale)"),
    "token_shift": ("raw T x, int64 times, int64 width, int64 lags, int64 forward", "T y", """
        long long c = i % width, t = i / width % times, n = width / (2 * lags);
        long long back = c < lags * n ? forward * (c / n + 1) : 0;  // how many tokens
        y = t >= back && t - back < times ? x[i - back * width] : T(0)"""),
}  # fmt: skip

_made = {}  # (library, name, type) -> kernel or table, made when it is first used


def launch(name, blocks, threads, *args):
    """Run a kernel of kernels.cu on a grid of blocks, which have so many threads each.

    CuPy passes scalars on as they are: here integers become 64 bits wide, numbers with a fraction
    get the type of the arrays, and None becomes the null pointer. Arrays must be contiguous.
    """
    xp, dtype = module_of(args[0]), args[0].dtype
    key = xp.__name__, name, dtype.name
    if key not in _made:
        real = {"float32": "float", "float64": "double"}[dtype.name]
        options = (f"-DREAL={real}", "-std=c++17")
        module = xp.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=options)
        _made[key] = module.get_function(name)
    if math.prod(blocks):  # CUDA refuses an empty grid
        kinds = {int: np.int64, bool: np.int64, float: dtype.type, type(None): lambda _: np.intp(0)}
        _made[key](blocks, threads, tuple(kinds.get(type(a), lambda a: a)(a) for a in args))


def elementwise(name, *args):
    """Run a kernel of ELEMENTWISE; its outputs are new, unless they are given behind the inputs."""
    xp = module_of(args[0])
    key = xp.__name__, name, ""
    if key not in _made:
        _made[key] = xp.ElementwiseKernel(*ELEMENTWISE[name], name)
    return _made[key](*args)


def contiguous(x):
    return module_of(x).ascontiguousarray(x)


def new(x, *shape):
    """An array of x's type whose numbers are not yet set."""
    return module_of(x).empty(shape, x.dtype)


# ---- products of many matrices ------------------------------------------------------------------

precision = (
    "float32"  # or "tf32", set by device.py: then factors are rounded to 10 bits of fraction
)
COMPUTE = {"float32": 68, "tf32": 77}  # CUBLAS_COMPUTE_32F and _32F_FAST_TF32
KIND = {"float32": 0, "float64": 1}  # CUDA_R_32F and CUDA_R_64F
NUMBERS = {name: (np.ones(1, name), np.zeros(1, name)) for name in KIND}  # cuBLAS reads them here


def product(a, b, ta=False, tb=False):
    """y = a b over the last two axes, a or b transposed if ta or tb; axes in front are equal.

    NumPy's @ would copy transposed matrices on CuPy. cuBLAS reads them where they lie, but it takes
    our rows for columns. So in its eyes a and b are transposed, and so is the y that it writes:
    y^T = b^T a^T asks it for the product of b and a.
    """
    xp, name = module_of(a), a.dtype.name
    m, k = a.shape[:-3:-1] if ta else a.shape[-2:]
    n = b.shape[-2] if tb else b.shape[-1]
    y = new(a, *a.shape[:-2], m, n)
    if not y.size or not k:
        y.fill(0)
        return y
    (a, *of_a), (b, *of_b), (_, *of_y) = _laid_out(a), _laid_out(b), _laid_out(y)
    compute = 70 if name == "float64" else COMPUTE[precision]
    one, zero = (number.ctypes.data for number in NUMBERS[name])
    xp.cuda.cublas.gemmStridedBatchedEx(
        xp.cuda.device.get_cublas_handle(), int(tb), int(ta), n, m, k, one, *of_b, *of_a, zero,
        *of_y, math.prod(y.shape[:-2]), compute, -1,
    )  # fmt: skip
    return y


def _laid_out(x):
    """x, or a copy if cuBLAS cannot read it, and for cuBLAS: where it lies, its type, and how far
    apart its rows and its matrices are."""
    *front, rows, columns = x.shape
    *far, row, number = (stride // x.itemsize for stride in x.strides)
    even = all(far[i] == front[i + 1] * far[i + 1] for i in range(len(front) - 1))
    if number != 1 or row < columns or not even or any(apart < 0 for apart in far):
        x, row, far = contiguous(x), columns, [rows * columns]
    return x, x.data.ptr, KIND[x.dtype.name], row, far[-1] if far else 0


def attention_forward(q, k, v, mask=None, window=None, causal=True):
    """One array as large as the scores, p, where the definition keeps four."""
    (B, H, T, _), S = q.shape, k.shape[2]
    p = product(q, k, tb=True)
    mask = None if mask is None else contiguous(mask != 0)
    see = T, S, B * H * T, S if window is None else window, bool(causal), q.shape[3] ** -0.5
    launch("softmax_forward", *per_warp(B * H * T), p, mask, H, *see)
    return product(p, v), (q, k, v, p, see)


def attention_backward(dy, saved):
    """dv = p^T dy, dp = dy v^T, dq = ds k, dk = ds^T q, with ds of the kernel, written over dp."""
    q, k, v, p, see = saved
    dv, ds = product(p, dy, ta=True), product(dy, v, tb=True)
    launch("softmax_backward", *per_warp(see[2]), ds, p, *see)
    return product(ds, k), product(ds, q, ta=True), dv


# ---- rows and columns ---------------------------------------------------------------------------


def per_warp(rows):
    """The grid and block of a kernel that gives each row to a warp, four to a block."""
    return (-(-rows // 4),), (128,)


def column_sums(kernel, N, C, count, *args):
    """Sums over N rows by a kernel (*args, *sums, N, C) -> count arrays (C,)

    Slabs of rows are added up at the same time, and in a second launch their sums: always in this
    order, so the bits do not depend on which was ready first.
    """
    slabs, grid = max(1, min(128, N // 64)), -(-C // 32)
    parts = [new(args[0], slabs, C) for _ in range(count)]
    launch(kernel, (grid, slabs), (32, 8), *args, *parts, N, C)
    sums = parts if slabs == 1 else [new(args[0], 1, C) for _ in range(count)]
    for part, total in zip(parts, sums, strict=True):
        if part is not total:
            launch("column_sum", (grid, 1), (32, 8), part, total, slabs, C)
    return [total.reshape(C) for total in sums]


def linear_forward(x, w, b):
    """One product, then b is added in place."""
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ w
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[1]), (rows, w, x.shape, b is not None)


def linear_backward(dy, saved):
    rows, w, shape, biased = saved
    dy = contiguous(dy).reshape(len(rows), w.shape[1])
    db = column_sums("column_sum", *dy.shape, 1, dy)[0] if biased else None
    return (dy @ w.T).reshape(shape), rows.T @ dy, db


def embedding_forward(w, ids):
    return w[ids], (w.shape, ids)


def embedding_backward(dy, saved):
    """Sorted by id, the rows that belong to one row of w follow each other: a block adds them up."""
    (V, C), ids = saved
    if isinstance(ids, slice):
        ids = module_of(dy).arange(*ids.indices(V))
    ids, dw = ids.reshape(-1).astype(np.int64), module_of(dy).zeros((V, C), dy.dtype)
    order = ids.argsort(kind="stable")
    grid = len(ids), -(-C // 32)
    launch(
        "embedding_backward", grid, (32, 8), contiguous(dy), ids[order], order, dw, len(ids), C, V
    )
    return dw, None


def layer_norm_forward(x, w, b, eps=1e-5):
    """Keeps x and three numbers per row."""
    x, w, b, C = contiguous(x).reshape(x.shape), contiguous(w), contiguous(b), x.shape[-1]
    N = x.size // C
    y, *row = new(x, *x.shape), new(x, N), new(x, N), new(x, N)
    launch("layer_norm_forward", *per_warp(N), x, w, b, y, *row, N, C, float(eps))
    return y, (x, w, row)


def layer_norm_backward(dy, saved):
    x, w, row = saved
    dy, dx, N, C = contiguous(dy), new(x, *x.shape), len(row[0]), x.shape[-1]
    launch("layer_norm_backward", *per_warp(N), dy, x, w, *row, dx, N, C)
    return dx, *column_sums("layer_norm_weights", N, C, 2, dy, x, *row)


def cross_entropy_forward(z, targets, count=None):
    """Keeps z and a number per target. dz is an array of its own, as somebody may still hold z."""
    z, t = contiguous(z), contiguous(targets).reshape(-1).astype(np.int64)
    losses, lse = new(z, t.size), new(z, t.size)
    launch("cross_entropy_forward", (t.size,), threads_for(z), z, t, losses, lse, z.shape[-1])
    if not count:  # stays on the GPU
        count = module_of(z).maximum((t != -100).sum(), 1).astype(z.dtype)
    return losses.sum() / count, (z, t, lse, count)


def cross_entropy_backward(dloss, saved):
    z, t, lse, count = saved
    share, dz = dloss / count, new(z, *z.shape)
    launch("cross_entropy_backward", (t.size,), threads_for(z), z, t, lse, share, dz, z.shape[-1])
    return dz, None


def threads_for(z):
    return (1024,) if z.shape[-1] > 1024 else (128,)


# ---- each number on its own ---------------------------------------------------------------------


def gelu_forward(x):
    return elementwise("gelu_forward", x), x


def gelu_backward(dy, saved):
    """dx = dy ∂y/∂x with y = x s, s = (1 + tanh u) / 2; ∂s/∂u = (1 - tanh^2 u) / 2"""
    return (elementwise("gelu_backward", dy, saved),)


def relu2_forward(x):
    return elementwise("relu2_forward", x), x


def relu2_backward(dy, saved):
    return (elementwise("relu2_backward", dy, saved),)


def dropout_forward(x, p, seed):
    """Keeps a byte per number."""
    keep, scale = uniform(module_of(x), x.shape, seed) >= p, x.dtype.type(1 / (1 - p))
    return elementwise("dropout", x, keep, scale), (keep, scale)


def dropout_backward(dy, saved):
    return (elementwise("dropout", dy, *saved),)


def rotary_forward(x, positions, base=1e4):
    """Turns the pairs where they lie, as two views of x, with a table of cosines and sines."""
    turns = _turns(x, positions, base)
    return _turned(x, *turns), turns


def rotary_backward(dy, saved):
    """The turn back: by the angle with the other sign."""
    cos, sin = saved
    return (_turned(dy, cos, -sin),)


def _turned(x, cos, sin):
    y = new(x, *x.shape)
    pairs = [part for whole in (x, y) for part in (whole[..., 0::2], whole[..., 1::2])]
    elementwise("turn", *pairs[:2], cos, sin, *pairs[2:])
    return y


def _turns(x, positions, base):
    """cos and sin of the angles (.., T, 1, D / 2); those of a slice come from a table, kept for all
    layers and steps, of 2, 4, 8, ... positions"""
    xp, D = module_of(x), x.shape[3]

    def table(positions):
        angle = positions[..., None, None] * base ** (xp.arange(0, D, 2) / -D)
        return xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype)

    if not isinstance(positions, slice):
        return table(positions)
    end = 1 << int(positions.stop).bit_length()
    key = xp.__name__, ("turns", end, D, base), x.dtype.name
    if key not in _made:
        _made[key] = table(xp.arange(end))
    return [part[positions] for part in _made[key]]


def token_shift_forward(x, past=None, lags=5):
    """Every channel comes from the token `back` before its own, or is 0 if there is none."""
    if past is None:
        return _shifted(x, lags, 1), lags
    return _shifted(module_of(x).concatenate([past, x], 1), lags, 1)[:, lags:], lags


def token_shift_backward(dy, saved):
    """Each channel's gradient returns to the token it came from: the shift the other way."""
    return (_shifted(dy, saved, -1),)


def _shifted(x, lags, forward):
    size = (np.int64(n) for n in (*x.shape[1:], lags, forward))
    return elementwise("token_shift", x, *size, new(x, *x.shape))


# ---- the optimizer ------------------------------------------------------------------------------


def squared_norm(g):
    """|g|^2 of a vector, as an array (1,) that stays on the GPU; two launches, a fixed order"""
    blocks = max(1, min(1024, len(g) // 1024))
    sums, total = new(g, blocks), new(g, 1)
    launch("square_sum", (blocks,), (256,), g, sums, len(g))
    launch("column_sum", (1, 1), (32, 8), sums, total, blocks, 1)
    return total


def adamw(w, g, m, v, decayed, rate, number, betas, eps, weight_decay, norm2, limit):
    """A step of AdamW (optim.py) over vectors, in place, as one pass; g is zero afterwards.

    decayed: how many weights, from the first on, decay; number counts the steps from 1. norm2, an
    array (1,) on the GPU, is |g|^2 of the whole gradient: if |g| > limit, g is shortened to it, and
    if |g| is not finite, nothing changes, not even g.
    """
    left = (1 - beta**number for beta in betas)
    args = (limit, rate, *betas, *left, eps, 1 - rate * weight_decay)
    grid = (-(-len(w) // 256),)
    launch("adamw", grid, (256,), w, g, m, v, norm2, len(w), decayed, *map(float, args))
