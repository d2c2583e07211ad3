"""The GPU path without a GPU: kernels and pairs on the emulator, and the emulator's own watches."""

import re
from collections import Counter

import emulator
import numpy as np
import pages
import pytest
from gradcheck import draw, is_float, run
from strict import StrictArray, strict, syncs
from test_classifier import NAMES, SHAPES, examples, made
from test_edges import EDGES
from test_functional import CASES, LONG, cases_of, definition, forwards, heads, ids
from test_models import MODELS, gpt, ids_of
from test_models import scrambled as scrambled_model
from test_training import new_trainer

from minigpt.engine import fast_cupy, fast_elementwise, functional, recipe
from minigpt.engine.arrays import quiet, to_numpy
from minigpt.engine.autograd import Tensor, no_grad, plain
from minigpt.engine.functional import cross_entropy
from minigpt.nn.module import Flat
from minigpt.training import OPTIMIZERS, checkpoint, trainer
from minigpt.training.gpu import Queued
from minigpt.training.muon import Muon
from minigpt.training.optim import SGD, AdamW, clip

if not emulator.COMPILER:
    pytest.skip("the emulator needs g++", allow_module_level=True)

from emulator import cublas
from emulator.__main__ import main
from emulator.standin import emulated
from emulator.trials import TRIALS, tried, vectors

ORDERS = [0, 1, 5]  # of the threads: ascending, descending, shuffled
TOLERANCES = {"float64": 1e-12, "float32": 2e-5}
PAIRS = forwards(fast_cupy) + forwards(fast_elementwise)
SOURCE = fast_cupy.SOURCE.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def made_anew():
    """Tables and kernels of another test's library or text are not used again."""
    yield
    fast_cupy._kernels.clear()


# every pair against its definition


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", PAIRS)
def test_pair_equals_its_definition(name, dtype):
    for case in cases_of(name):
        with plain():
            expected = run(definition(case), *CASES[case], dtype=dtype)
        with emulated():
            got = run(definition(case), *CASES[case], dtype=dtype, put=StrictArray)
        for y, e in zip(sum(got, []), sum(expected, []), strict=True):
            assert y.shape == e.shape and y.dtype == e.dtype == dtype, case
            tolerance = TOLERANCES[dtype]
            np.testing.assert_allclose(y, e, rtol=tolerance, atol=tolerance, err_msg=case)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_waits_for_nothing_and_gives_the_same_bits_in_every_order_of_threads(name):
    for case in cases_of(name):
        runs = []
        for order in ORDERS:
            with emulated(order):
                runs.append(
                    sum(run(definition(case), *CASES[case], dtype="float32", put=StrictArray), [])
                )
                assert {*syncs} <= {"asnumpy"}, case  # of the results, which the test reads
        for first, *others in zip(*runs, strict=True):
            assert all(first.tobytes() == other.tobytes() for other in others), case


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", TRIALS)
def test_kernel_computes_what_the_definition_says_in_every_order(name, order):
    with emulated(order):
        assert tried(name) is None and tried(name, "float32") is None


def test_every_kernel_has_a_trial():
    kernels = {*re.findall(r"__global__ void (\w+)", SOURCE), *fast_elementwise.FORMULAS}
    assert kernels == {*TRIALS}


@pytest.mark.parametrize("scale", [1, 200])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("case", LONG)
def test_attention_of_every_kind_of_mask_equals_its_definition(case, past, scale):
    q, k, v = heads(2, 3, 7, 2)
    args = (scale * q[:, :, past:], k, v, *LONG[case])
    with plain():
        expected = run(functional.attention, *args)
    with emulated():
        got = run(functional.attention, *args, put=StrictArray)
    for y, e in zip(sum(got, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(y, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_what_hidden_keys_hold_does_not_reach_values_or_gradients_of_other_keys(hidden):
    q, k, v = (x.copy() for x in heads(2, 3, 5, 2))
    mask = ids([0, 1, 1, 1, 1], [1, 1, 1, 1, 1])
    with emulated(), quiet():
        y, clean = run(functional.attention, q, k, v, mask, put=StrictArray)
        k[0, :, 0] = hidden
        other_y, (_, dk, dv) = run(functional.attention, q, k, v, mask, put=StrictArray)
    np.testing.assert_array_equal(other_y[0], y[0])
    np.testing.assert_array_equal(dk, clean[1])
    np.testing.assert_array_equal(dv, clean[2])


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_strange_number_gives_in_a_pair_what_it_gives_in_its_definition(name, edge):
    case = cases_of(name)[0]
    for i in [i for i, x in enumerate(CASES[case]) if is_float(x)]:
        args = [*CASES[case]]
        args[i] = args[i].copy()
        args[i].flat[args[i].size // 2] = EDGES[edge]
        with quiet(), emulated():
            with plain():
                expected = run(definition(case), *args)[0]
            got = run(definition(case), *args, put=StrictArray)[0]
        for y, e in zip(got, expected, strict=True):
            if name == "attention" and edge in ("inf", "-inf"):  # all scores may be -inf
                y, e = (np.where(np.isnan(a), 0, a) for a in (y, e))
            np.testing.assert_allclose(y, e, rtol=1e-9, atol=1e-12, err_msg=f"{case}, {i}")


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-12)])
def test_a_row_of_equal_numbers_is_normalised_to_its_bias(dtype, tolerance):
    x, w, b = np.full((3, 70), 12345.678, dtype), np.ones(70, dtype), draw(70).astype(dtype)
    with emulated():
        y = to_numpy(functional.layer_norm(*map(StrictArray, (x, w, b))).data)
    np.testing.assert_allclose(y, np.tile(b, (3, 1)), rtol=tolerance)


def test_a_target_that_is_no_token_gives_a_loss_and_gradients_that_are_no_numbers():
    with emulated():
        z = Tensor(StrictArray(draw(3, 5)), True)
        loss = cross_entropy(z, StrictArray(ids(1, 5, 2)), 3)
        loss.backward(StrictArray(np.ones(())))
    assert np.isnan(loss.data._array) and np.isnan(z.grad._array[1]).all()
    assert np.isfinite(z.grad._array[[0, 2]]).all()


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_token_shift_behind_a_past_is_that_of_the_whole_text(cut):
    x = draw(2, 9, 20)
    past = np.pad(x, ((0, 0), (5, 0), (0, 0)))[:, cut : cut + 5]
    with emulated():
        got = recipe.token_shift(Tensor(StrictArray(x[:, cut:])), StrictArray(past)).data
    with plain():
        np.testing.assert_array_equal(got._array, recipe.token_shift(Tensor(x)).data[:, cut:])


# the optimizer


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n", [1, 31, 5000])
def test_squared_norm_is_the_sum_of_the_squares(n, dtype):
    g = draw(n).astype(dtype)
    with emulated():
        got = fast_cupy.squared_norm(StrictArray(g))
    assert got.shape == (1,) and got.dtype == dtype and not syncs
    np.testing.assert_allclose(got._array[0], (g.astype(float) ** 2).sum(), rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("kind", [AdamW, SGD, Muon])
@pytest.mark.parametrize("loss, bad", [
    (1.0, np.nan), (1.0, np.inf), (1.0, 1e30),  # the last overflows when it is squared
    (np.nan, 1.0), (np.inf, 1.0),
])  # fmt: skip
def test_from_a_step_on_that_is_not_finite_nothing_changes(kind, loss, bad):
    flat, one = vectors("float32"), StrictArray(np.ones((), np.float32))
    with emulated(), quiet():
        queued = Queued(kind(flat), 1.0)
        queued.step(one, 0.01, 1, 1.0, 1.0)
        arrays = [flat.data, *queued.optimizer.moments.values()]
        before = [a._array.copy() for a in arrays]
        flat.grad[170] = bad  # in the table, and not in the matrices
        queued.step(one * loss, 0.01, 2, 1.0, 1.0)
        flat.grad[170] = 1.0
        queued.step(one, 0.01, 3, 1.0, 1.0)  # another one that would be fine
        assert not syncs
        np.testing.assert_equal(queued.read(), (loss, 2))
    for got, expected in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(got._array, expected)


# whole steps


def three_steps(model, x, y, xp):
    """The weights after three steps with clipping, and what the CPU has waited for."""
    model.to(xp, np.float64)
    x, y = xp.asarray(x), xp.asarray(y)
    flat = Flat(model)
    optimizer = Muon(flat)
    queued = None if xp is np else Queued(optimizer, 1.0)
    for number in (1, 2, 3):
        loss = cross_entropy(model(x), y, count=y.size)
        loss.backward()
        if queued:
            queued.step(loss.data, 0.01, number, 1.0, 0.5)
        else:
            clip(flat.grad, 1.0)
            optimizer.step(0.01, number)
    return to_numpy(flat.data), syncs - Counter(asnumpy=1)


def same_steps(make, x, y):
    with plain():
        expected, _ = three_steps(make(), x, y, np)
    with emulated():
        got, waits = three_steps(make(), x, y, strict)
    # Where a gradient is nearly 0, AdamW divides its rounding error, 1e-17, by eps = 1e-8.
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    assert not waits
    assert emulator.launches


@pytest.mark.parametrize("name", MODELS)
def test_training_of_every_family_equals_numpys_and_waits_for_nothing(name):
    def make():
        return scrambled_model(gpt(form=MODELS[name], dropout=0.2))

    same_steps(make, ids_of(make(), 3, 8, seed=2), ids_of(make(), 3, 8, seed=3))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_training_of_every_classifier_equals_numpys_and_waits_for_nothing(name, kind):
    x, y = examples(kind, 3, dtype=np.float64)
    same_steps(lambda: made(kind, name, dtype=np.float64, n_layer=1), x, y)


# a whole run, whose CPU looks at the loss now and then


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_looks_now_and_then_ends_as_numpys(tmp_path, optimizer, monkeypatch):
    monkeypatch.setattr(trainer, "LOOK", 4)
    ends, options = [], {"dtype": np.float64, "optimizer": optimizer, "steps": 10, "eval_every": 7}
    for xp, setting in ((np, plain()), (strict, emulated())):
        with setting:
            run = new_trainer(tmp_path, xp=xp, **options)
            run.run()
            ends.append((checkpoint.load(run.out / "last.safetensors"), run.rows))
    (expected, about), rows = ends[0]
    (arrays, other), got = ends[1]
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-9, atol=1e-9)
    assert other["state"]["step"] == about["state"]["step"] == 10 and got == rows


def test_nothing_is_read_between_two_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOOK", 4)
    with emulated():
        run = new_trainer(tmp_path, xp=strict, steps=9, eval_every=100)
        looked = []
        for _ in range(9):
            run.train_step()
            assert not syncs
            looked.append(run.look())
            syncs.clear()
    assert looked == [False, False, False, True, False, False, False, True, True]


def test_a_stop_does_not_hide_a_step_that_failed_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOOK", 100)
    with emulated(), quiet():
        run = new_trainer(tmp_path, xp=strict, steps=20, eval_every=10)
        train_step = run.train_step

        def step():
            if run.step == 6:
                run.flat.grad[3] = np.nan
            train_step()
            run.stopped = run.step == 10  # where it would be validated and saved

        run.train_step = step
        with pytest.raises(FloatingPointError, match="step 7: "):
            run.run()
    assert not any(run.out.iterdir())


def test_an_id_that_is_no_token_is_refused_before_it_goes_to_the_gpu(tmp_path):
    with emulated():
        run = new_trainer(tmp_path, xp=strict)
        run.stream.ids = np.where(np.arange(220) == 100, 11, run.stream.ids)  # of 11 tokens
        with pytest.raises(IndexError, match="batch: expected ids from 0 to 10, got 11"):
            for _ in range(9):
                run.train_step()


def test_a_step_that_fails_is_named_at_the_next_look_and_weights_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOOK", 4)
    with emulated(), quiet():
        run = new_trainer(tmp_path, xp=strict, steps=9, eval_every=100)
        run.train_step()
        before = run.flat.data._array.copy()
        run.flat.grad[3] = np.nan
        run.train_step()
        run.train_step()
        with pytest.raises(FloatingPointError, match="step 2: .* the gradient of .* is not finite"):
            run.train_step()
            run.look()
    np.testing.assert_array_equal(run.flat.data._array, before)


# faults, planted in the kernels' text: the watches see them, whatever the order of the threads

# what was done: text, instead of it, kernel that stops, what is said
FAULTS = {
    "no barrier before warps' results are read": (
        "threadIdx.x / 32] = x;\n    __syncthreads();", "threadIdx.x / 32] = x;",
        "square_sum", r"race: thread \d+ .* part, .*:43.*; thread \d+ .*:44"),
    "no barrier before shared memory is used again": (
        "    __syncthreads();  // the slowest", "    // the slowest",
        "cross_entropy_forward", r"race: thread \d+ .* of part, .*; thread \d+"),
    "no barrier before the eight are added up": (
        "= sum;\n    __syncthreads();", "= sum;",
        "column_sum", "race: .* of part, which is shared"),
    "no barrier between two sums": (
        "    __syncthreads();\n    part[threadIdx.y]", "    part[threadIdx.y]",
        "layer_norm_weights", "race: .* of part, which is shared"),
    "no barrier before the next ids are fetched": (
        "start += 256) {\n        __syncthreads();", "start += 256) {",
        "sort_ids", "race: .* of tile, which is shared"),
    "no fence in a warp before writing in place": (
        "    __syncwarp();  // if", "    // if",
        "softmax_forward", r"race: thread \d+ of block (\d+) .* of z.*thread \d+ of block \1"),
    "a block for each place, not for each id": (
        " || (first > 0 && ids[first - 1] == id)", "",
        "embedding_backward", r"race: .* of block \d+ writes .* of dw"),
    "every thread writes the block's sum": (
        "if (threadIdx.x == 0) sums", "sums", "square_sum", r"race: .* writes number \d of sums"),
    "a logit too many": (
        "j < V; j += blockDim.x) {\n        real x", "j <= V; j += blockDim.x) {\n        real x",
        "cross_entropy_forward", "reads number 3600 of z, .*: outside of every array"),
    "a column too many": (
        "if (threadIdx.y > 0 || column >= C) return;", "if (threadIdx.y > 0) return;",
        "embedding_backward", "writes number .* of dw, .*: outside of every array"),
    "rows that do not exist": (
        "if (row >= N) return;\n    x +=", "x +=",
        "layer_norm_forward", "of x, .*: outside of every array"),
    "numbers read two at a time": (
        "sum += g[i] * g[i]", "{ struct alignas(16) Two { real a, b; } two = *(Two*)(g + i); "
        "sum += two.a * two.a; }", "square_sum", "of g, .*: at a misaligned address"),
    "a write to the input": (
        "y[i] = (x[i]", "(real&)x[i] = (x[i]",
        "layer_norm_forward", "writes .* of x, .*: it is const"),
    "only the first warp leaves its result": (
        "if (lane() == 0) part", "if (threadIdx.x == 0) part",
        "square_sum", "of part, .*: nobody has written it yet"),
    "a barrier that some threads miss": (
        "    __syncthreads();\n    part[threadIdx.y]",
        "    if (column < C) __syncthreads();\n    part[threadIdx.y]",
        "column_sum", r"waits at __syncthreads\(\) for threads that never come"),
    "half a warp leaves before an exchange": (
        "__device__ real warp_max(real x) {\n",
        "__device__ real warp_max(real x) {\n    if (lane() > 15) return x;\n",
        "softmax_forward", "waits at an exchange of its warp for threads that never come"),
    "an exchange with a lane outside of the mask": (
        "x += __shfl_xor_sync(~0u,", "x += __shfl_xor_sync(0xffffu,",
        "square_sum", "exchanges with a lane outside of the mask"),
    "an exchange too few": (
        "for (int far = 16; far > 0; far /= 2) x +=", "for (int far = 8; far > 0; far /= 2) x +=",
        "layer_norm_forward", "wrong numbers"),
    "padding that is seen": (
        "if (!mask || mask[j]) sum", "sum", "softmax_forward", "wrong numbers"),
    "a later key that is seen": (
        "causal ? query + 1 : S", "causal ? query + 2 : S", "softmax_forward", "wrong|outside"),
    "a variance that counts the mean": (
        "real c = x[i] - first - mean;", "real c = x[i] - first;",
        "layer_norm_forward", "wrong numbers"),
}  # fmt: skip


def with_text(monkeypatch, folder, text):
    """Let fast_cupy make its kernels of this text from now on."""
    path = folder / "kernels.cu"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(fast_cupy, "SOURCE", path)
    fast_cupy._kernels.clear()


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_seen_in_every_order(fault, monkeypatch, tmp_path):
    before, after, name, message = FAULTS[fault]
    assert SOURCE.count(before) == 1
    with_text(monkeypatch, tmp_path, SOURCE.replace(before, after))
    for order in ORDERS:
        with emulated(order), quiet():
            said = tried(name)
        assert said and re.search(message, said), said
        if "wrong numbers" not in message and "outside|" not in message:
            assert re.search(r"kernels\.cu:\d+", said)


def command(capsys, *names):
    """What `python -m tests.emulator` prints, and its exit status."""
    with pytest.raises(SystemExit) as end:
        main([*names])
    return capsys.readouterr().out.splitlines(), end.value.code


def test_the_command_says_that_the_kernels_are_right(capsys):
    lines, code = command(capsys)
    assert [line.split() for line in lines] == [[name, "ok"] for name in TRIALS] and not code


def test_the_command_says_which_kernel_is_wrong_and_where(capsys, monkeypatch, tmp_path):
    text, barrier = SOURCE, "= sum;\n    __syncthreads();"
    with_text(monkeypatch, tmp_path, text.replace(barrier, "= sum;"))
    write = text[: text.index(barrier)].count("\n") + 1
    lines, code = command(capsys, "column_sum", "gelu_forward")
    assert code and lines[1].split() == ["gelu_forward", "ok"]
    assert re.match(rf"column_sum +race: thread 32 .*:{write}; thread 0 .*:{write + 2};", lines[0])


@pytest.mark.parametrize("name, before, after", [
    ("column_sum", "threadIdx.x] = sum;\n    __syncthreads();\n", "threadIdx.x] = sum;\n"),
    ("layer_norm_forward", "i < C; i += 32) mean", "i <= C; i += 32) mean"),
])  # fmt: skip
def test_the_tours_exercises_print_what_it_says(capsys, monkeypatch, tmp_path, name, before, after):
    assert SOURCE.count(before) == 1
    with_text(monkeypatch, tmp_path, SOURCE.replace(before, after))
    [line], code = command(capsys, name)
    assert code
    for page in (pages.TOUR, pages.CHINESE):
        assert f"```\n{line}\n```" in page.read_text(encoding="utf-8")


# what a kernel is called with


def twice(x, *sizes):
    module = emulator.RawModule(
        code="""
extern "C" __global__ void twice(const float* x, float* y, long long n) {
    long long i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}
"""
    )
    y = np.zeros(4, np.float32)
    module.get_function("twice")((1,), (32,), (x, y, *sizes))
    return y


FOUR = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize("args, message", [
    ((FOUR, 4), "n is i8, got a Python int"),
    ((FOUR, np.int32(4)), "n is i8, got i4"),
    ((FOUR, np.float32(4)), "n is i8, got f4"),
    ((FOUR,), "takes 3 arguments, got 2"),
    ((FOUR, np.int64(4), np.int64(4)), "takes 3 arguments, got 4"),
    ((FOUR.astype(float), np.int64(4)), r"x is const f4\*, got f8\*"),
    ((FOUR[::2], np.int64(2)), "x has strides"),
    ((np.float32(1), np.int64(2)), r"x is const f4\*, got f4"),
    ((FOUR, np.int64(5)), "outside of every array"),
])  # fmt: skip
def test_wrong_argument_is_refused(args, message):
    assert twice(FOUR, np.int64(4)).tolist() == [0, 2, 4, 6]
    with pytest.raises(emulator.DeviceFault, match=message):
        twice(*args)


@pytest.mark.parametrize("grid, block", [
    ((0,), (32,)), ((1, 0), (32,)), ((1,), (1025,)), ((1, 1 << 16), (32,)), ((1,), (0,)),
])  # fmt: skip
def test_grid_that_no_gpu_launches_is_refused(grid, block):
    kernel = emulator.RawModule(code='extern "C" __global__ void none(float* x) {}')
    with pytest.raises(emulator.DeviceFault, match="no GPU launches"):
        kernel.get_function("none")(grid, block, (FOUR,))


@pytest.mark.parametrize("args, message", [
    ((StrictArray(FOUR), StrictArray(FOUR > 1), 2.0), "scale is T, got a Python float"),
    ((StrictArray(FOUR), StrictArray(FOUR > 1), np.float64(2)), "T is one type"),
    ((StrictArray(FOUR), StrictArray(FOUR), np.float32(2)), "keep is bool, got float32"),
    ((StrictArray(FOUR), StrictArray(FOUR > 1), np.float32(2), StrictArray(FOUR > 1)),
     "an output is float32, got bool"),
])  # fmt: skip
def test_wrong_argument_of_a_formula_is_refused(args, message):
    kernel = strict.ElementwiseKernel(*fast_elementwise.FORMULAS["dropout"], "dropout")
    with pytest.raises(emulator.DeviceFault, match=message):
        kernel(*args)


# products


LAYOUTS = {
    "plain": lambda x: x,
    "transposed in memory": lambda x: x.swapaxes(1, 2).copy().swapaxes(1, 2),  # copied
    "heads of a longer row": lambda x: np.concatenate([x, x, x], 3)[..., : x.shape[3]],
    "part of a cache": lambda x: np.concatenate([x, x], 2)[:, :, : x.shape[2]],
    "reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_product_equals_numpys_wherever_its_matrices_lie(ta, tb, layout, dtype):
    a, b = draw(2, 3, 5, 4).astype(dtype), draw(2, 3, 4, 7, seed=1).astype(dtype)
    stored = [x.swapaxes(2, 3).copy() if t else x for x, t in ((a, ta), (b, tb))]
    with emulated():
        y = fast_cupy.product(*(StrictArray(LAYOUTS[layout](x)) for x in stored), ta, tb)
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(y._array, a @ b, rtol=tolerance, atol=tolerance)
    assert cublas.calls[-1] == (7, 5, 4, 6, 68 if dtype == "float32" else 70)


@pytest.mark.parametrize(
    "shapes", [((0, 2, 3), (0, 3, 4)), ((2, 2, 0), (2, 0, 4)), ((2, 3), (3, 4))]
)
def test_product_of_nothing_or_of_two_matrices_equals_numpys(shapes):
    a, b = (draw(*shape) for shape in shapes)
    with emulated():
        y = fast_cupy.product(StrictArray(a), StrictArray(b))
    np.testing.assert_allclose(y._array, a @ b, rtol=1e-12)


@pytest.mark.parametrize("layout", ["part of a cache", "heads of a longer row"])
def test_product_reads_evenly_spaced_matrices_where_they_lie(layout):
    x = LAYOUTS[layout](draw(2, 3, 5, 4))
    with emulated():
        copy, *_ = fast_cupy._laid_out(StrictArray(x))
    assert np.shares_memory(copy._array, x)


def test_tf32_rounds_factors_to_ten_bits_of_fraction_and_changes_no_type():
    a, b = draw(2, 3, 5).astype("f"), draw(2, 5, 4, seed=1).astype("f")
    with emulated(precision="tf32"):
        y = fast_cupy.product(StrictArray(a), StrictArray(b))._array
    assert y.dtype == np.float32 and cublas.calls[-1][-1] == 77
    off = np.abs(y - a @ b).max()
    assert 1e-5 < off < 5 * 9 * 2**-10  # 5 terms of at most 9, each factor off by 2^-11 of itself
    assert np.array_equal(cublas.rounded(np.float32([1 + 2**-10, 1 + 2**-12])), [1 + 2**-10, 1])


@pytest.mark.parametrize("change, message", [
    ({"lda": 2}, "leading dimension"), ({"compute": 70}, "compute type"),
    ({"n": 9}, "lie in no array"), ({"batch": 3}, "lie in no array"),
])  # fmt: skip
def test_a_wrong_call_of_cublas_is_refused(change, message):
    a, one = draw(2, 3, 3).astype("f"), np.ones(1, "f")
    at = cublas.pointer(a)
    call = dict(
        handle=0, ta=0, tb=0, m=3, n=3, k=3, alpha=one.ctypes.data, A=at, a_kind=0, lda=3, a_far=9,
        B=at, b_kind=0, ldb=3, b_far=9, beta=one.ctypes.data, C=at, c_kind=0, ldc=3, c_far=9,
        batch=2, compute=68, algorithm=-1,
    )  # fmt: skip
    with pytest.raises(cublas.BadCall, match=message):
        cublas.gemmStridedBatchedEx(**call | change)


def test_sampling_with_a_cache_gives_the_logits_of_the_whole_text():
    model = scrambled_model(gpt(form=MODELS["gpt"]))
    text = ids_of(model, 2, 8)
    expected = model(text).data
    with emulated(), no_grad():
        model.to(strict, np.float64)
        state, parts = model.new_state(2), []
        for part in (text[:, :3], text[:, 3:4], text[:, 4:]):
            parts.append(to_numpy(model(StrictArray(part), None, state)[0].data))
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-9, atol=1e-11)
