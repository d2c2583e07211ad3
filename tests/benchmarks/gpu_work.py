"""What a GPU is given to do: products, kernels and formulas at the sizes of a training step.

A row of KERNELS or FORMULAS makes the arguments of one launch: `a.new(*shape)` is an array with
numbers in it, `a.put(x)` one with those of the NumPy array x. So the same row runs on a GPU, and on
the arrays of tests/shapes, which count the bytes that it must move.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np

from minigpt.engine.fast_cupy import per_warp, product
from minigpt.hub import hub_name
from minigpt.nn import model_class
from minigpt.nn.gpt import GPTConfig
from tests.benchmarks import competitor
from tests.shapes.arrays import fresh, ledger
from tests.shapes.library import registered, shapes


def counted(name, make, call):
    """The bytes that a launch must read and write, by the rules of tests/shapes."""
    with registered():
        args = make(SimpleNamespace(new=lambda *shape: fresh(shape, "f"), put=shapes.asarray))
        ledger.reset()
        call(name, *args)
        [launch] = ledger.launches
    return launch.read + launch.written


def rows(shape, batch):
    return batch * shape["block_size"]


def sizes(shape, batch):
    """B, T, H, D, C, V, N"""
    T, H, C, V = (shape[key] for key in ("block_size", "n_head", "n_embd", "vocab_size"))
    return SimpleNamespace(B=batch, T=T, H=H, D=C // H, C=C, V=V, N=batch * T)


# ---- models and texts, which every competitor has ----------------------------------------------


def model(shape, form):
    """minigpt's model on the CPU, with the weights of competitor.py if it is GPT-2's form."""
    made = model_class(form)(GPTConfig(**shape), np.random.default_rng(0))
    if form == "gpt2":
        for name, p in made.named_parameters().items():
            p.data[...] = competitor.array(hub_name(name), p.shape)
    return made


def batches(shape, batch, count=4):
    """Texts and what follows: ids of a skewed distribution, so that there is something to learn."""
    rng, V, T = np.random.default_rng(1), shape["vocab_size"], shape["block_size"]
    p = 1 / np.arange(1, V + 1)
    ids = rng.choice(V, (count, batch, T + 1), p=p / p.sum()).astype(np.int32)
    return [(part[:, :-1], part[:, 1:]) for part in ids]


# ---- products: name -> function of `new` -> what to call, FLOP ---------------------------------


def products(shape, batch):
    s = sizes(shape, batch)
    matrices = {
        "q k v": (s.C, 3 * s.C),
        "attention's output": (s.C, s.C),
        "up": (s.C, 4 * s.C),
        "down": (4 * s.C, s.C),
        "head": (s.C, s.V),
    }
    made = {}
    for name, (n_in, n_out) in matrices.items():
        size = f"{s.N} x {n_in} x {n_out}"
        made[f"{name}: x w, {size}"] = partial(forward, s.N, n_in, n_out)
        made[f"{name}: dy w^T, {size}"] = partial(of_input, s.N, n_in, n_out)
        made[f"{name}: x^T dy, {size}"] = partial(of_weight, s.N, n_in, n_out)
    wide, narrow = (s.B, s.H, s.T, s.T), (s.B, s.H, s.T, s.D)
    flops = 2 * s.N * s.T * s.C
    many = f"{s.B * s.H} of {s.T} x {s.D} x {s.T}"
    made |= {
        f"q k^T, {many}": partial(batched, narrow, narrow, {"tb": True}, flops),
        f"p v, {many}": partial(batched, wide, narrow, {}, flops),
        f"p^T dy, {many}": partial(batched, wide, narrow, {"ta": True}, flops),
    }
    return made


def forward(N, n_in, n_out, new):
    x, w = new(N, n_in), new(n_in, n_out)
    return lambda: x @ w, 2 * N * n_in * n_out


def of_input(N, n_in, n_out, new):
    dy, w = new(N, n_out), new(n_in, n_out)
    return lambda: dy @ w.T, 2 * N * n_in * n_out


def of_weight(N, n_in, n_out, new):
    x, dy = new(N, n_in), new(N, n_out)
    return lambda: x.T @ dy, 2 * N * n_in * n_out


def batched(a, b, how, flops, new):
    a, b = new(*a), new(*b)
    return lambda: product(a, b, **how), flops


# ---- kernels: name -> function of shape, batch and a -> grid, block, arguments -----------------


def see(s):
    """The whole causal triangle: T, S, rows, window, causal, scale."""
    return s.T, s.T, s.B * s.H * s.T, s.T, True, s.D**-0.5


def softmax_forward(shape, batch, a):
    s = sizes(shape, batch)
    scores = a.new(s.B, s.H, s.T, s.T)
    return *per_warp(s.B * s.H * s.T), scores, None, s.H, *see(s)


def softmax_backward(shape, batch, a):
    s = sizes(shape, batch)
    dp, p = (a.new(s.B, s.H, s.T, s.T) for _ in range(2))
    return *per_warp(s.B * s.H * s.T), dp, p, *see(s)


def targets(s, a):
    return a.put(np.arange(s.N) * 7 % s.V)


def cross_entropy_forward(shape, batch, a):
    s = sizes(shape, batch)
    return (s.N,), (256,), a.new(s.N, s.V), targets(s, a), a.new(s.N), a.new(s.N), s.V


def cross_entropy_backward(shape, batch, a):
    s = sizes(shape, batch)
    z, dz = (a.new(s.N, s.V) for _ in range(2))
    return (s.N,), (256,), z, targets(s, a), a.new(s.N), a.new(1), dz, s.V


def layer_norm_forward(shape, batch, a):
    s = sizes(shape, batch)
    x, w, b, y = (a.new(*shape) for shape in ((s.N, s.C), (s.C,), (s.C,), (s.N, s.C)))
    return *per_warp(s.N), x, w, b, y, a.new(s.N), a.new(s.N), s.N, s.C, 1e-5


def layer_norm_backward(shape, batch, a):
    s = sizes(shape, batch)
    dy, x, dx = (a.new(s.N, s.C) for _ in range(3))
    return *per_warp(s.N), dy, x, a.new(s.C), a.new(s.N), a.new(s.N), dx, s.N, s.C


def slabs(s):
    """As fast_cupy.column_sums has it."""
    return max(1, min(128, s.N // 64))


def column_sum(shape, batch, a):
    s = sizes(shape, batch)
    C = 4 * s.C  # the widest bias
    grid = -(-C // 32), slabs(s)
    return grid, (32, 8), a.new(s.N, C), a.new(slabs(s), C), s.N, C


def layer_norm_weights(shape, batch, a):
    s = sizes(shape, batch)
    dy, x = (a.new(s.N, s.C) for _ in range(2))
    sums = (a.new(slabs(s), s.C) for _ in range(2))
    grid = -(-s.C // 32), slabs(s)
    return grid, (32, 8), dy, x, a.new(s.N), a.new(s.N), *sums, s.N, s.C


def sort_ids(shape, batch, a):
    s = sizes(shape, batch)
    ids, ordered, order = (a.put(np.arange(s.N) * 7 % s.V) for _ in range(3))
    return (-(-s.N // 256),), (256,), ids, ordered, order, s.N


def embedding_backward(shape, batch, a):
    s = sizes(shape, batch)
    [(x, _)] = batches(shape, batch, 1)
    ids = x.reshape(-1).astype(np.int64)
    order = ids.argsort(kind="stable")
    arrays = a.new(s.N, s.C), a.put(ids[order]), a.put(order), a.new(s.V, s.C)
    return (s.N, -(-s.C // 32)), (32, 8), *arrays, s.N, s.C, s.V


def weights(shape):
    """About as many as the model has."""
    return shape["vocab_size"] * shape["n_embd"] + 12 * shape["n_layer"] * shape["n_embd"] ** 2


def square_sum(shape, batch, a):
    n = weights(shape)
    blocks = max(1, min(1024, n // 1024))
    return (blocks,), (256,), a.new(n), a.new(blocks), n


KERNELS = {
    f.__name__: f
    for f in (
        softmax_forward, softmax_backward, cross_entropy_forward, cross_entropy_backward,
        layer_norm_forward, layer_norm_backward, layer_norm_weights, column_sum, sort_ids,
        embedding_backward, square_sum,
    )
}  # fmt: skip


# ---- elementwise formulas: name -> function of shape, batch and a -> arguments -----------------


def wide(count, shape, batch, a):
    """Arrays of the width between the two layers of an MLP."""
    return [a.new(rows(shape, batch), 4 * shape["n_embd"]) for _ in range(count)]


def dropout(shape, batch, a):
    [x] = wide(1, shape, batch, a)
    return x, a.put(np.arange(x.size).reshape(x.shape) % 5 > 0), np.float32(1.25)


def rotary(shape, batch, a):
    """Turns pairs that lie side by side, as views with strides."""
    s = sizes(shape, batch)
    x, y = (a.new(s.B, s.T, s.H, s.D) for _ in range(2))
    angles = (a.new(s.T, 1, s.D // 2) for _ in range(2))
    return x[..., 0::2], x[..., 1::2], *angles, y[..., 0::2], y[..., 1::2]


def token_shift(shape, batch, a):
    s = sizes(shape, batch)
    x, y = (a.new(s.B, s.T, s.C) for _ in range(2))
    return x, s.T, s.C, 5, 1, y


def norm(a):
    """|g|^2 on the GPU: were it no number, the formulas would change nothing."""
    return a.put(np.ones(1, np.float32))


def vectors(scalars, count, decays, shape, batch, a):
    """An optimizer's arguments: the norm, numbers, and vectors as long as the model."""
    n = weights(shape)
    ahead = (n // 2,) if decays else ()
    numbers = [np.float32(0.5)] * scalars
    return norm(a), *ahead, *numbers, *(a.new(n) for _ in range(count))


def judged(shape, batch, a):
    numbers = 1, np.float32(1), np.float32(0.1)
    return norm(a), a.new(1), *numbers, a.new(1), a.new(1), a.put(np.zeros(1, np.int64))


def muon_apply(shape, batch, a):
    n = weights(shape)
    return norm(a), a.new(n), np.float32(0.1), np.float32(0.9), a.new(n), a.new(n)


FORMULAS = {
    **{f"{name}_forward": partial(wide, 1) for name in ("gelu", "relu2", "relu")},
    **{f"{name}_backward": partial(wide, 2) for name in ("gelu", "relu2", "relu")},
    "rotary": rotary,
    "dropout": dropout,
    "token_shift": token_shift,
    "adamw": partial(vectors, 8, 4, True),
    "judged": judged,
    "sgd": partial(vectors, 4, 3, True),
    "muon_ahead": partial(vectors, 2, 2, False),
    "muon_apply": muon_apply,
}
