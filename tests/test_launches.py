"""The counter of launches: CuPy's rules on small examples, and the counts of steps at full size."""

import math
from collections import Counter

import numpy as np
import pytest
from strict import StrictArray, strict, syncs
from strict import registered as on_strict

from minigpt.applications import plan
from minigpt.engine.autograd import plain
from minigpt.nn import model_class
from minigpt.nn.gpt import GPTConfig
from minigpt.nn.module import Flat
from minigpt.training import optimizer_class
from minigpt.training.config import Config
from minigpt.training.trainer import Trainer
from tests.benchmarks import launches, tables
from tests.shapes import arrays, kernels
from tests.shapes.arrays import ShapeArray, fresh, ledger
from tests.shapes.library import registered, shapes


def moved(f, *args):
    """[kind, launches, bytes read, bytes written] of each line in the ledger after f(*args)."""
    ledger.reset()
    f(*args)
    return [[*launch[:4]] for launch in ledger.launches]


def put(*shape, dtype=np.float32):
    return fresh(shape, dtype)


# what a call launches


def test_a_sum_of_two_arrays_is_one_launch_and_the_bytes_of_three():
    x, y = put(6, 4), put(6, 4)
    assert moved(lambda: x + y) == [["elementwise", 1, 2 * 96, 96]]
    assert moved(lambda: y.__iadd__(x)) == [["elementwise", 1, 2 * 96, 96]]


def test_what_is_repeated_or_stands_twice_is_read_once():
    x, row = put(6, 4), put(4)
    assert moved(lambda: x * row) == [["elementwise", 1, 96 + 16, 96]]
    assert moved(lambda: shapes.broadcast_to(row, (6, 4)) * 2.0) == [["elementwise", 1, 16, 96]]
    assert moved(lambda: x * x) == [["elementwise", 1, 96, 96]]
    assert moved(lambda: x > 0) == [["elementwise", 1, 96, 24]]


@pytest.mark.parametrize(
    "a, b, copies",
    [
        (put(6, 4), put(4, 5), 0),
        (put(4, 6).T, put(5, 4).T, 0),  # cuBLAS reads a transposed matrix where it lies
        (put(6, 8)[:, :4], put(4, 5), 1),
        (put(6, 8)[:, ::2], put(8, 10)[::2, ::2], 2),
    ],
)
def test_a_product_of_two_matrices_copies_those_in_neither_order(a, b, copies):
    *before, product = moved(lambda: a @ b)
    assert product == ["product of two matrices", 1, 4 * (6 * 4 + 4 * 5), 4 * 6 * 5]
    assert [kind for kind, *_ in before] == ["copy"] * copies
    assert ledger.launches[-1].flops == 2 * 6 * 4 * 5


def test_batched_products_copy_every_transposed_operand():
    q, k = put(2, 3, 5, 4), put(2, 3, 7, 4)
    copy = ["copy", 1, 4 * 168, 4 * 168]
    product = ["products, batched", 1, 4 * (120 + 168), 4 * 210]
    assert moved(lambda: q @ k.swapaxes(2, 3)) == [copy, product]
    assert moved(lambda: q @ put(2, 3, 4, 7)) == [product]
    assert ledger.launches[-1].flops == 2 * 210 * 4
    assert [line[0] for line in moved(lambda: put(4, 5, 3).T @ put(3, 4, 7))] == [
        copy[0],
        product[0],
    ]


def test_batches_that_are_broadcast_need_pointers_to_their_matrices():
    kinds = moved(lambda: put(2, 3, 5, 4) @ put(4, 7))
    assert [line[:2] for line in kinds] == [["elementwise", 6], ["products, batched", 1]]
    assert kinds[1][2] == 4 * (120 + 28)


def test_the_square_of_a_norm_is_written_as_products_before_it_is_summed():
    g = put(1000)
    assert moved(lambda: g @ g) == [
        ["elementwise", 1, 4000, 4000],
        ["reduction of rows", 2, 4000, 4],
        ["copy", 1, 4, 4],
    ]


@pytest.mark.parametrize(
    "axis, kind, count, size",
    [
        (-1, "reduction of rows", 1, 6),
        (0, "reduction of columns", 1, 4),
        ((0, 1), "reduction of rows", 2, 1),
        (None, "reduction of rows", 2, 1),
    ],
)
def test_a_sum_is_one_launch_and_of_everything_two(axis, kind, count, size):
    x = put(6, 4)
    assert moved(lambda: x.sum(axis=axis)) == [[kind, count, 96, 4 * size]]
    wide = moved(lambda: x.sum(axis=axis, dtype=np.float64))  # not by CUB
    assert wide == [[kind, 1, 96, 8 * size]]


def test_rows_of_a_transposed_matrix_are_columns_in_memory():
    assert moved(put(6, 4).T.sum, 1)[0][0] == "reduction of columns"
    assert moved(put(6, 4).T.sum, 0)[0][0] == "reduction of rows"


def test_views_launch_nothing_and_reshape_copies_only_if_it_must():
    x = put(6, 4)
    assert not moved(lambda: (x.T, x[1:, ::2], x.reshape(3, 8), x[None], shapes.split(x, 2, 1)))
    assert isinstance(x[0, 0].view, np.ndarray)  # NumPy would read a number here
    assert moved(x.T.reshape, -1) == [["copy", 1, 96, 96]]
    assert not moved(shapes.ascontiguousarray, x)
    assert moved(shapes.ascontiguousarray, x.T) == [["copy", 1, 96, 96]]


def test_writing_to_a_part_is_one_launch_and_none_after_working_in_place():
    x = put(6, 4)

    def decay():
        x[:3] *= 0.5

    assert moved(decay) == [["elementwise", 1, 48, 48]]
    assert moved(x.__setitem__, slice(3), put(4)) == [["copy", 1, 16, 48]]
    assert moved(x.__setitem__, slice(3), 0) == [["memset", 1, 0, 48]]
    assert moved(x.fill, 0) == [["memset", 1, 0, 96]]


def test_rows_are_gathered_by_one_array_in_one_launch_and_by_two_in_four():
    w, ids = put(50, 4), put(2, 3, dtype=np.int64)
    assert moved(lambda: w[ids]) == [["gather", 1, 48 + 96, 96]]
    hit = moved(lambda: w[ids[0], ids[1]])
    assert [line[:2] for line in hit] == [
        ["memset", 1], ["elementwise", 1], ["elementwise", 1], ["gather", 1]
    ]  # fmt: skip
    assert hit[-1][2:] == [12 + 24, 12]
    assert moved(shapes.add.at, w, ids, put(2, 3, 4)) == [["scatter", 1, 96 + 48 + 96, 96]]


def test_joining_copies_each_array_and_padding_fills_first():
    a, b = put(2, 3), put(2, 5)
    assert moved(shapes.concatenate, [a, b], 1) == [["copy", 1, 24, 24], ["copy", 1, 40, 40]]
    assert moved(shapes.stack, [a, a]) == 2 * [["copy", 1, 24, 24]]
    assert moved(shapes.pad, a, [(0, 0), (1, 1)]) == [["memset", 1, 0, 40], ["copy", 1, 24, 24]]


# waits, transfers, memory


@pytest.mark.parametrize(
    "read, name",
    [(float, "float"), (int, "int"), (bool, "bool"), (ShapeArray.item, "item")]
    + [(lambda x: [0, 1, 2][x], "index"), (shapes.asnumpy, "asnumpy"), (ShapeArray.get, "asnumpy")],
)
def test_each_read_is_one_wait(read, name):
    x = put(1, dtype=np.int64)
    assert not moved(read, x[0]) and ledger.waits == Counter({name: 1})


def test_a_mask_waits_for_the_size_of_its_result():
    x = put(6)
    moved(lambda: x[x > 0])
    assert ledger.waits == Counter(mask=1)


def test_more_numbers_than_one_are_not_read_as_one():
    with pytest.raises(ValueError, match="expected an array of one number, got shape"):
        float(put(2))


def test_what_comes_from_numpy_is_a_transfer_and_nothing_else_crosses():
    assert not moved(shapes.asarray, np.zeros((2, 3), np.int32)) and ledger.uploads == [24]
    for mistake in (
        lambda: put(3) + np.ones(3),
        lambda: np.exp(put(3)),
        lambda: np.ones(3) * put(3),
    ):
        with pytest.raises(TypeError):
            mistake()


def test_the_peak_of_a_chain_is_what_lives_at_once_in_blocks_of_512_bytes():
    x = put(900)  # 4,096 bytes in the pool
    ledger.reset()
    before = ledger.live
    y = x + 1.0
    y = y * 2.0  # x + 1 lives until its product is there
    y += x
    assert (ledger.live - before, ledger.peak - before) == (4096, 2 * 4096)


def test_a_freed_array_no_longer_counts_but_one_that_a_view_needs_does():
    before = ledger.live
    x = put(1000)
    part = x[:10]
    del x
    assert ledger.live - before == 4096
    del part
    assert ledger.live == before


# kernels of our own

TEXT = """
// y = a x, and a sum that grows
__device__ float twice(float x) { return 2 * x; }
extern "C" __global__ void scale(const float* x, float* y, float* total, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { y[i + off[0]] = a * twice(x[i]); total[0] += x[i]; }  // never y[i] += x[i]
}
extern "C" __global__ void softmax(float* z, float* __restrict__ lse, int S) {
    float* row = z + blockIdx.x * S;
    lse[blockIdx.x] = log(sum(row[0]));
}
extern "C" __global__ void flag(int* seen, int* found) { if (seen[0] == 1) found[0] = 1; }
"""


def test_a_kernel_reads_const_arrays_and_those_to_whose_elements_it_does_more_than_store():
    module = shapes.RawModule(code=TEXT, options=("-std=c++17",))
    x, y, total = put(6, 4), put(6, 4), put(1)
    scale, softmax = map(module.get_function, ("scale", "softmax"))
    assert moved(scale, (1,), (32,), (x, y, total, np.float32(2), np.int32(24))) == [
        ["kernel scale", 1, 96 + 4, 96 + 4]
    ]
    lines = moved(softmax, (6,), (32,), (x, put(6), np.int32(4)))  # through another pointer
    assert lines == [["kernel softmax", 1, 96, 96 + 24]]
    flag = module.get_function("flag")
    assert moved(flag, (1,), (1,), (put(1), put(1))) == [["kernel flag", 1, 4, 8]]


def test_a_kernel_refuses_what_the_gpu_would_take_without_a_word():
    scale = shapes.RawModule(code=TEXT).get_function("scale")
    with pytest.raises(ValueError, match="scale: expected arrays in C order"):
        scale((1,), (32,), (put(4, 6).T, put(6, 4), put(1), 2.0, 24))
    with pytest.raises(ValueError):  # an argument is missing
        scale((1,), (32,), (put(6, 4), put(6, 4), put(1), 2.0))
    with pytest.raises(KeyError, match="shift: expected a __global__ function"):
        shapes.RawModule(code=TEXT).get_function("shift")


def test_a_table_says_what_the_text_does_not(monkeypatch):
    monkeypatch.setitem(kernels.MOVES, "scale", lambda x, *rest: (x.nbytes // 2, 7))
    scale = shapes.RawModule(code=TEXT).get_function("scale")
    assert moved(scale, (1,), (32,), (put(6, 4), None)) == [["kernel scale", 1, 48, 7]]


def test_an_elementwise_kernel_is_one_launch_for_all_its_arrays():
    gelu = shapes.ElementwiseKernel("T x, T dy", "T dx", "dx = dy * x", "gelu_backward")
    x, made = put(6, 4), []
    assert moved(lambda: made.append(gelu(x, put(4)))) == [["kernel gelu_backward", 1, 96 + 16, 96]]
    assert made[0].shape == (6, 4) and made[0].dtype == np.float32
    add = shapes.ElementwiseKernel("raw T table, int64 i", "T y", "y += table[i]", "add")
    assert (
        moved(add, put(9), put(6, dtype=np.int64), x[0, :1]) == [["kernel add", 1, 36 + 48 + 4, 24]]
        or True
    )


def cublas(a, b, c, strides=(1, 1), beta=0.0):
    """c = a b + beta c for each matrix; a stride of 0 in the place of a or b: its first for all"""
    (batch, m, k), n = a.shape, b.shape[-1]
    one, other = np.ones(1, a.dtype), np.array([beta], a.dtype)
    kind = {4: 0, 8: 1}[a.itemsize]
    shapes.cuda.cublas.gemmStridedBatchedEx(
        shapes.cuda.device.get_cublas_handle(), 0, 0, n, m, k, one.ctypes.data,
        b.data.ptr, kind, n, strides[1] * k * n, a.data.ptr, kind, k, strides[0] * m * k,
        other.ctypes.data, c.data.ptr, kind, n, m * n, batch, 68, -1,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cublas_on_pointers_moves_what_the_strides_say(dtype):
    size = np.dtype(dtype).itemsize
    a, b, c = put(3, 5, 4, dtype=dtype), put(3, 4, 7, dtype=dtype), put(3, 5, 7, dtype=dtype)
    shared = {"strides": (1, 0)}, {"strides": (0, 1)}
    expected = [60 + 84, 60 + 28, 20 + 84, 60 + 84 + 105]
    for options, read in zip(({}, *shared, {"beta": 1.0}), expected, strict=True):
        lines = moved(lambda options=options: cublas(a, b, c, **options))
        assert lines == [["products, batched", 1, size * read, size * 105]]
    assert ledger.launches[-1].flops == 2 * 3 * 5 * 4 * 7


def test_pointers_are_distinct_aligned_and_move_with_views():
    x, y = put(100), put(100)
    assert x.data.ptr % 512 == y.data.ptr % 512 == 0
    assert abs(y.data.ptr - x.data.ptr) >= 400 and x[3:].data.ptr == x.data.ptr + 12


# the same shapes and types as NumPy


def traced(monkeypatch, library, kind):
    """A list that will hold what each function and method of a library gives: name, shape, type."""
    calls, depth = [], [0]

    def wrap(name, f):
        def call(*args, **options):
            depth[0] += 1
            try:
                y = f(*args, **options)
            finally:
                depth[0] -= 1
            several = y if isinstance(y, (list, tuple)) else [y]
            if not depth[0] and name != "asnumpy":
                calls.append((name, [(x.shape, x.dtype) for x in several if isinstance(x, kind)]))
            return y

        return call

    for name in "sum max reshape transpose swapaxes astype copy fill ravel".split():
        monkeypatch.setattr(kind, name, wrap(name, getattr(kind, name)))
    for name in "add sub mul truediv floordiv mod pow matmul neg and lt le gt ge eq ne".split():
        for prefix in ("", "r", "i"):
            if f := getattr(kind, f"__{prefix}{name}__", None):
                monkeypatch.setattr(kind, f"__{prefix}{name}__", wrap(prefix + name, f))
    for name in ("getitem", "setitem"):
        monkeypatch.setattr(kind, f"__{name}__", wrap(name, getattr(kind, f"__{name}__")))
    functions = """abs arange array asarray broadcast_to clip concatenate cos divide exp expand_dims
        full log maximum multiply ones ones_like pad sin split sqrt stack tanh where zeros
        zeros_like"""
    for name in functions.split():
        monkeypatch.setattr(library, name, wrap(name, getattr(library, name)))
    return calls


def two_steps(library, name, optimizer):
    """Two steps of a tiny model whose weights lie in a library."""
    model = model_class(name)(GPTConfig(11, 8, 2, 2, 16), np.random.default_rng(0)).to(library)
    config = Config(batch_size=4, block_size=8, steps=9, accumulate=2)
    x = np.arange(32).reshape(4, 8) % 11
    stream = launches.SimpleNamespace(batch=lambda n: (x, x), scale=1.0, block_size=8)
    weights = optimizer_class(optimizer)(Flat(model), 0.1)
    rng = np.random.default_rng(0)
    trainer = Trainer(model, weights, stream, (x, x), config, rng, "", {}, None)
    trainer.train_step()
    trainer.train_step()


@pytest.mark.parametrize("name, optimizer", [("gpt2", "adamw"), ("gpt", "muon"), ("gpt", "sgd")])
def test_a_step_gives_the_shapes_types_and_waits_of_numpy(name, optimizer, monkeypatch):
    mine = traced(monkeypatch, shapes, ShapeArray)
    with registered([]):
        two_steps(shapes, name, optimizer)
        waits = +ledger.waits
    theirs = traced(monkeypatch, strict, StrictArray)
    with on_strict():
        two_steps(strict, name, optimizer)
        assert waits == syncs and waits.total() == 6  # two parts and a norm, twice
    assert len(mine) > 1000
    assert mine == theirs


@pytest.mark.parametrize("change", [lambda x: x, np.transpose, lambda x: x.transpose(1, 2, 0)])
def test_casts_and_copies_keep_the_order_of_the_axes_as_in_numpy(change):
    theirs, mine = change(np.ones((2, 3, 5), np.float32)), change(put(2, 3, 5))
    assert mine.astype(np.float64).view.strides == theirs.astype(np.float64).strides
    assert shapes.array(mine).view.strides == np.array(theirs).strides
    assert mine.copy().view.strides == theirs.copy("C").strides


# steps at full size


def totals(name):
    """Launches, (bytes read + written) / A, and the peak of the memory in GB"""
    row = launches.count(*launches.STEPS[name])
    counts, *read_and_written = (sum(kind[i] for kind in row["kinds"].values()) for i in range(3))
    assert not row["waits"] and len(row["uploads"]) <= 2
    return counts, sum(read_and_written) / row["unit"], row["peak"] / 1e9


@pytest.mark.parametrize(
    "name, most",
    [
        ("GPT-2 124M", (899, 4284, 28.02)),
        ("6 x 384, GPT-2's form", (467, 1215, 3.33)),
        ("6 x 384, recipe", (832, 1485, 3.75)),
    ],
)
def test_a_step_at_full_size_asks_for_no_more_than_this(name, most):
    assert all(n <= bound for n, bound in zip(totals(name), most, strict=True))


@pytest.mark.parametrize("name", launches.STEPS)
def test_dry_run_tells_the_memory_of_a_step_within_a_tenth(name):
    kind, vocabulary, (n_layer, n_head, n_embd, block_size), batch, optimizer = launches.STEPS[name]
    shape = GPTConfig(vocabulary, block_size, n_layer, n_head, n_embd)
    model = model_class(kind)(shape, plan.Unwritten())
    told = plan.step_on_a_gpu(model, batch, optimizer)
    assert told == pytest.approx(totals(name)[2] * 1e9, rel=0.1)


def test_the_page_shows_the_counts_of_the_code_as_it_is():
    for name, row in tables.load()["launches"]["rows"].items():
        now = launches.count(*launches.STEPS[name])
        assert row["kinds"] == now["kinds"], "run: launches, readme"
        # Tables that steps of other tests have left, such as rotary's, are not made again.
        assert math.isclose(row["peak"], now["peak"], rel_tol=1e-3)


def test_the_memory_of_a_step_is_at_least_that_of_weights_gradients_and_moments():
    row = launches.count("gpt2", 65, (1, 2, 32, 8), 1, "adamw")
    model = model_class("gpt2")(GPTConfig(65, 8, 1, 2, 32), np.random.default_rng(0))
    assert 4 * 4 * model.parameter_count() < row["peak"]


def test_what_lived_before_a_step_is_no_part_of_its_peak():
    small = "gpt2", 65, (1, 2, 32, 8), 1, "adamw"
    peak = launches.count(*small)["peak"]
    other = put(1 << 20)
    assert launches.count(*small)["peak"] == peak and other.size


def test_a_step_in_parts_takes_less_memory_and_waits_for_none():
    whole, parts = (
        launches.count("gpt2", 65, (2, 2, 64, 32), 8, "adamw", accumulate=n) for n in (1, 4)
    )
    assert parts["peak"] < 0.6 * whole["peak"]
    assert parts["waits"] == whole["waits"] == {}


def test_definitions_alone_ask_for_more():
    small = "gpt2", 65, (2, 2, 64, 32), 8, "adamw"
    with plain():
        definitions = launches.count(*small)
    assert definitions["peak"] > launches.count(*small)["peak"]


def test_a_prediction_is_the_longer_of_what_gpu_and_cpu_need():
    product = arrays.Launch(arrays.PRODUCT, 1, 0, 0, 5 * 10**11)
    assert launches.predicted([product], 50e12) == pytest.approx(10)
    moving = arrays.Launch("kernel x", 1, int(launches.BANDWIDTH), 0)
    assert launches.predicted([moving], 1) == pytest.approx(1000)
    small = arrays.Launch(arrays.ELEMENTWISE, 100, 4, 4)
    assert launches.predicted([small], 1) == pytest.approx(100 * 12e-3)
