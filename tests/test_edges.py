"""What the engine refuses, and what it computes at the edges: the values are PyTorch's, where it is
installed and has an opinion; every fast pair does what its definition does."""

import contextlib
import itertools

import numpy as np
import pytest
from gradcheck import is_float, run
from test_functional import CASES, NUMPY, cases_of, definition, forwards

from minigpt import Tensor, no_grad
from minigpt.engine import convolution, functional, ops, recipe
from minigpt.engine.autograd import plain
from minigpt.nn.layers import Dropout, LayerNorm, Linear
from minigpt.nn.module import Flat, Module
from minigpt.training.muon import Muon
from minigpt.training.optim import SGD, AdamW

BOTH = pytest.mark.parametrize("how", [plain, contextlib.nullcontext])
ROW = np.array([5.0, 0.0, 0.0])


# ids


@BOTH
@pytest.mark.parametrize("wrong", [-1, 3, -101, 1 << 40])
def test_targets_out_of_range_are_refused(wrong, how):
    with how(), pytest.raises(IndexError, match=f"from 0 to 2, got {wrong}$"):
        functional.cross_entropy(Tensor([ROW, ROW]), np.array([0, wrong]))


@BOTH
@pytest.mark.parametrize("wrong", [-1, 4, -100])
def test_ids_out_of_range_are_refused(wrong, how):
    with how(), pytest.raises(IndexError, match=f"from 0 to 3, got {wrong}$"):
        functional.embedding(Tensor(np.eye(4)), np.array([[0, wrong]]))


@BOTH
@pytest.mark.parametrize("ids", [np.array([True, False]), np.array([0.0, 1.0])])
def test_ids_that_are_no_integers_are_refused(ids, how):
    with how(), pytest.raises(TypeError, match="expected an array of ids that are integers"):
        functional.embedding(Tensor(np.eye(2)), ids)
    with how(), pytest.raises(TypeError, match="expected an array of ids that are integers"):
        functional.cross_entropy(Tensor(np.eye(2)), ids)
    with how(), pytest.raises(TypeError, match="expected an array of ids"):
        functional.embedding(Tensor(np.eye(2)), [0, 1])
    with how(), pytest.raises(TypeError, match="targets: expected an array of ids.*got list"):
        functional.cross_entropy(Tensor(np.eye(2)), [0, 1])


@BOTH
def test_ids_of_pytorchs_are_refused_by_name(how):
    ids = pytest.importorskip("torch").tensor([0, 1])
    for f in (functional.embedding, functional.cross_entropy):
        with how(), pytest.raises(TypeError, match="expected an array of ids.*torch.int64"):
            f(Tensor(np.eye(2)), ids)


# what changes between forward and backward


class Net(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.a, self.b = Linear(2, 2, rng, std=1.0), Linear(2, 2, rng, std=1.0)
        self.scale = Tensor(np.full((2, 2), 3.0, np.float32))

    def forward(self, x):
        return self.b(self.a(x)) @ self.scale


X = np.ones((1, 2), np.float32)


@pytest.mark.parametrize("optimizer", [SGD, AdamW, Muon])
def test_a_graph_from_before_a_step_is_refused(optimizer):
    net = Net()
    optimizer = optimizer(Flat(net))
    first, second = net(X).sum(), net(X).sum()
    first.backward()
    optimizer.step(0.1, 1)
    with pytest.raises(RuntimeError, match="weights have changed"):
        second.backward()
    net(X).sum().backward()


def test_a_step_of_another_model_leaves_a_graph_true():
    net, other = Net(), Net()
    optimizer, loss = AdamW(Flat(other)), net(X).sum()
    other(X).sum().backward()
    optimizer.step(0.1, 1)
    loss.backward()


@pytest.mark.parametrize("optimizer", [SGD, AdamW, Muon])
@pytest.mark.parametrize("how", [plain, contextlib.nullcontext])
def test_what_is_frozen_or_constant_does_not_move_and_is_saved(optimizer, how):
    net = Net()
    net.a.weight.requires_grad = False
    names = {*net.state_dict()}
    before = {name: array.copy() for name, array in net.state_dict().items()}
    optimizer = optimizer(Flat(net), weight_decay=0.5)
    for step in range(3):
        net(X).sum().backward()
        with how():
            optimizer.step(0.1, step + 1)
    moved = {name for name, array in net.state_dict().items() if (array != before[name]).any()}
    assert moved == {"a.bias", "b.weight", "b.bias"} and "scale" in names


def break_data(p):
    p.data = p.data.copy()


def break_grad(p):
    p.grad = None


def freeze(p):
    p.requires_grad = False


@pytest.mark.parametrize("breaking", [break_data, break_grad, freeze])
def test_a_parameter_that_left_its_vector_is_named_at_the_step(breaking):
    net = Net()
    optimizer = AdamW(Flat(net))
    breaking(net.b.weight)
    with pytest.raises(RuntimeError, match=r"b\.weight: .*freeze before Flat"):
        optimizer.step(0.1, 1)


def test_a_model_without_anything_to_train_is_refused():
    layer = LayerNorm(3)
    for p in layer.named_parameters().values():
        p.requires_grad = False
    with pytest.raises(ValueError, match="parameter to train"):
        Flat(layer)


# history


@pytest.mark.parametrize("f", [
    lambda w: np.concatenate([w, w]), lambda w: np.where(True, w, 0.0), lambda w: np.asarray(w),
    lambda w: np.from_dlpack(w), lambda w: np.clip(w, 0, 1), lambda w: np.stack([w]),
])  # fmt: skip
def test_a_numpy_function_of_a_leaf_is_refused_as_it_would_drop_the_gradient(f):
    with pytest.raises(RuntimeError, match=r"t\.detach\(\)"):
        f(Tensor(np.ones(3), True))
    f(Tensor(np.ones(3)))


def test_a_node_whose_rule_has_raised_is_spent():
    z = Tensor(np.zeros((1, 3)), True)
    loss = functional.cross_entropy(z, np.array([0])) * 1.0
    rule, loss.node.inputs[0][0].backward = loss.node.inputs[0][0].backward, lambda dy: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    with pytest.raises(RuntimeError, match="freed by an earlier"):
        loss.backward()
    assert z.grad is None and rule


@pytest.mark.parametrize("f", [functional.gelu, recipe.relu2, lambda x: x * x])
def test_a_gradient_may_come_as_a_tensor_or_in_another_float_type(f):
    expected, got = Tensor(np.ones(3), True), Tensor(np.ones(3), True)
    f(expected).backward(np.arange(3.0))
    f(got).backward(Tensor(np.arange(3, dtype=np.float32)))
    np.testing.assert_array_equal(got.grad, expected.grad)
    assert got.grad.dtype == np.float64


def test_a_rule_whose_gradient_has_another_shape_is_named():
    from minigpt.engine.autograd import record

    def wrong(x):
        return record(x.data * 2, (x, lambda dy: dy[:1]))

    with pytest.raises(RuntimeError, match=r"shape \(3,\), got \(1,\)"):
        wrong(Tensor(np.ones(3), True)).sum().backward()


@BOTH
def test_a_float32_gradient_of_a_float64_rotary_is_no_wider(how):
    x = Tensor(np.arange(4.0).reshape(1, 1, 1, 4), True)
    with how():
        y = recipe.rotary(x, slice(1, 2))
    y.backward(np.ones(y.shape, np.float32))
    assert x.grad.shape == x.shape and x.grad.dtype == np.float64


# kinds of numbers


@pytest.mark.parametrize("dtype", [np.float16, ">f4", ">f8", np.complex64, np.longdouble, "S1"])
def test_numbers_of_another_kind_are_refused(dtype):
    a = np.zeros(3, dtype)
    if a.dtype == np.float64:
        pytest.skip("long double is double here")
    with pytest.raises(TypeError, match=r"expected float32, float64 or integers.*astype"):
        Tensor(a)
    with pytest.raises(TypeError):
        LayerNorm(3).to(dtype=dtype)


@pytest.mark.parametrize("name", sum(map(forwards, NUMPY), []))
def test_no_pair_computes_with_half_precision(name):
    case = cases_of(name)[0]
    args = [x.astype(np.float16) if is_float(x) else x for x in CASES[case]]
    with pytest.raises(TypeError, match="expected float32, float64"):
        definition(case)(*args)


@pytest.mark.parametrize("op", [ops.add, ops.subtract, ops.multiply, ops.divide, ops.power])
@pytest.mark.parametrize(
    "other", [np.arange(1, 4), np.float64(2), np.int64(2), np.uint8(3), 2, 2.0]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_integers_and_numbers_take_the_type_of_the_floats(op, other, dtype):
    x = Tensor(np.ones(3, dtype), True)
    for y in (op(x, other), op(other, x)):
        assert y.dtype == dtype
        y.sum().backward()
        assert x.grad.dtype == dtype


def test_an_integer_matrix_and_integer_rows_are_floats_of_the_other_operand():
    x, w = Tensor(np.ones((2, 3), np.float32)), np.ones((3, 4), int)
    assert (x @ w).dtype == np.float32
    assert functional.linear(np.ones((2, 3), int), Tensor(np.ones((3, 4))), None).dtype == float
    assert functional.linear(x, w, None).dtype == np.float32
    assert ops.where(np.array([True, False]), x[0, :2], np.arange(2)).dtype == np.float32


# attention: what is hidden does not reach the values


@BOTH
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 2e30, -2e30])
@pytest.mark.parametrize("mask", [None, "right"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_hidden_key_does_not_reach_the_values(hidden, mask, dtype, how):
    q, v = np.ones((1, 1, 3, 1), dtype), np.arange(3, dtype=dtype).reshape(1, 1, 3, 1)
    k = np.array([0, 1, hidden], dtype).reshape(1, 1, 3, 1)
    q, mask = (q[:, :, :2], None) if mask is None else (q, np.array([[1, 1, 0]]))
    with how(), np.errstate(invalid="ignore"):
        if mask is None:  # the last of three keys comes after two queries that see two
            q = np.ones((1, 1, 3, 1), dtype)
            y = functional.attention(Tensor(q), Tensor(k), Tensor(v)).data[:, :, :2]
            expected = functional.attention(
                Tensor(q[:, :, :2]), Tensor(k[:, :, :2]), Tensor(v[:, :, :2])
            )
        else:
            y = functional.attention(Tensor(q), Tensor(k), Tensor(v), mask).data
            clean = np.where(np.isin(k, [0, 1]), k, 0)
            expected = functional.attention(Tensor(q), Tensor(clean), Tensor(v), mask)
    np.testing.assert_allclose(y, expected.data, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 2e30, -2e30, 0.0])
def test_a_query_that_sees_only_hidden_keys_gets_zeros(hidden, how):
    q, v = np.ones((1, 1, 2, 1), np.float32), np.ones((1, 1, 2, 1), np.float32)
    k = np.array([hidden, 0], np.float32).reshape(1, 1, 2, 1)
    with how(), np.errstate(invalid="ignore"):
        y = functional.attention(Tensor(q), Tensor(k), Tensor(v), np.array([[0, 1]]))
    assert y.data.ravel().tolist() == [0, 1]


@BOTH
@pytest.mark.parametrize("shapes, match", [
    (((1, 2, 3, 4), (1, 1, 3, 4), (1, 2, 3, 4)), "expected q"),
    (((1, 2, 3, 4), (1, 2, 3, 4), (1, 1, 3, 4)), "expected q"),
    (((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4)), "expected q"),
    (((1, 2, 3, 4), (1, 2, 2, 4), (1, 2, 2, 4)), "as many queries as keys"),
])  # fmt: skip
def test_attention_of_shapes_that_do_not_fit_is_refused(shapes, match, how):
    q, k, v = (Tensor(np.ones(shape)) for shape in shapes)
    with how(), pytest.raises(ValueError, match=match):
        functional.attention(q, k, v)


def test_attention_of_wide_values_is_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 5, n)) for n in (4, 4, 7))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.tensor, (q, k, v)), is_causal=True
    )
    y = functional.attention(Tensor(q), Tensor(k), Tensor(v))
    np.testing.assert_allclose(y.data, expected.numpy(), rtol=1e-12)


# values


def torch_gradients(f, *arrays):
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    f(*leaves).sum().backward()
    return [leaf.grad.numpy() for leaf in leaves]


def our_gradients(f, *arrays):
    leaves = [Tensor(a, True) for a in arrays]
    f(*leaves).sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("a, b", [*itertools.product([0.0, 2.0, -2.0], [0.0, 2.0, 0.5, 1.0])])
def test_gradients_of_a_power_are_pytorchs(a, b):
    arrays = np.array([a]), np.array([b])
    with np.errstate(all="ignore"):
        got = our_gradients(lambda x, p: x**p, *arrays)
    for ours, theirs in zip(got, torch_gradients(lambda x, p: x**p, *arrays), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@BOTH
@pytest.mark.parametrize("x", [np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-310])
def test_relu_and_pooling_at_the_edges_are_pytorchs(x, how):
    torch = pytest.importorskip("torch")
    with how():
        got = our_gradients(convolution.relu, np.array([x]))
        pooled = our_gradients(
            lambda x: convolution.max_pool2d(x.reshape((1, 1, 1, 1)), 1), np.array([x])
        )
    np.testing.assert_array_equal(got, torch_gradients(torch.relu, np.array([x])))
    assert pooled == [1]


@BOTH
def test_the_first_nan_of_a_window_gets_its_gradient(how):
    x = np.array([1.0, np.nan, 3.0, np.nan]).reshape(1, 2, 2, 1)
    with how():
        [dx] = our_gradients(lambda x: convolution.max_pool2d(x, 2), x)
    assert dx.ravel().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("f", [
    lambda x: x.sum(0), lambda x: x.sum(-1), lambda x: x.mean(0), lambda x: x.max(0),
    lambda x: x.sum(0, keepdims=True),
])  # fmt: skip
def test_a_number_may_be_reduced_over_its_axis(f):
    x = Tensor(3.0, True)
    f(x).backward()
    assert x.grad == 1


@pytest.mark.parametrize("axes", [(0, 2, 1), ((0, 2, 1),), ([0, 2, 1],), (None,), (), (-3, -1, 1)])
def test_transpose_takes_its_axes_one_by_one_or_together(axes):
    x = Tensor(np.arange(24.0).reshape(2, 3, 4), True)
    y = x.transpose(*axes)
    np.testing.assert_array_equal(y.data, x.data.transpose(*axes))
    y.backward(y.data)
    np.testing.assert_array_equal(x.grad, x.data)
    line = Tensor(np.arange(3.0), True)
    line.transpose(0).sum().backward()
    assert line.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("cuts", [[2, 1], [-1, 1], [3, 0]])
def test_cuts_out_of_order_are_refused(cuts):
    with pytest.raises(ValueError, match="rising order"):
        ops.split(Tensor(np.arange(4.0)), cuts)


@pytest.mark.parametrize("cuts", [[1, 1], [0, 4], [-1], [1, -1], [9], [-9], []])
def test_cuts_in_order_are_numpys(cuts):
    x = Tensor(np.arange(4.0), True)
    parts = ops.split(x, cuts)
    expected = np.split(x.data, cuts)
    assert [p.data.tolist() for p in parts] == [e.tolist() for e in expected]
    sum((p.sum() for p in parts), Tensor(0.0)).backward()
    assert x.grad.tolist() == [1, 1, 1, 1]


def test_parts_may_come_from_a_generator_and_a_new_axis_must_exist():
    x = Tensor(np.ones(2), True)
    for f in (ops.concatenate, ops.stack):
        f(t for t in (x, x)).sum().backward()
    assert x.grad.tolist() == [4, 4]
    with pytest.raises(ValueError, match="expected an axis from -3 to 2, got 4"):
        ops.stack([Tensor(np.zeros((2, 3)))] * 4, 4)


@BOTH
@pytest.mark.parametrize("p", [-0.1, 1, 1.5, np.nan])
def test_a_probability_out_of_range_is_refused(p, how):
    with how(), pytest.raises(ValueError, match="0 <= p < 1"):
        functional.dropout(Tensor(np.ones(2)), p, 0)
    with pytest.raises(ValueError, match="0 <= p < 1"):
        Dropout(p, np.random.default_rng(0))


@pytest.mark.parametrize("make", [
    lambda flat: AdamW(flat, weight_decay=-0.1), lambda flat: AdamW(flat, betas=(0.9, 1.0)),
    lambda flat: AdamW(flat, betas=(-0.1, 0.9)), lambda flat: AdamW(flat, eps=-1),
    lambda flat: SGD(flat, momentum=1.0), lambda flat: SGD(flat, weight_decay=np.nan),
    lambda flat: Muon(flat, momentum=-1), lambda flat: Muon(flat, weight_decay=-1),
])  # fmt: skip
def test_an_optimizers_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make(Flat(Net()))


@BOTH
@pytest.mark.parametrize("options", [
    {"stride": 0}, {"stride": -1}, {"stride": 1.5}, {"padding": -1}, {"dilation": 0},
    {"stride": (1, 0)}, {"padding": (1, 2, 3)},
])  # fmt: skip
def test_windows_of_impossible_steps_are_refused(options, how):
    x, w = Tensor(np.ones((1, 4, 4, 1))), Tensor(np.ones((2, 2, 1, 1)))
    with how(), pytest.raises(ValueError, match="expected a whole number >= "):
        convolution.conv2d(x, w, None, **options)
    if "dilation" not in options:
        with how(), pytest.raises(ValueError, match="expected a whole number >= "):
            convolution.max_pool2d(x, 2, **options)


@BOTH
@pytest.mark.parametrize("value", [0.0, 123.4, -1e4, 3e6])
def test_layer_norm_of_a_row_of_equal_numbers_is_zero(value, how):
    x, one, zero = (
        np.full(shape, v, np.float32) for shape, v in (((1, 768), value), (768, 1), (768, 0))
    )
    with how():
        y = functional.layer_norm(Tensor(x), one, zero)
    assert np.abs(y.data).max() < 1e-6


@BOTH
def test_layer_norm_far_from_zero_is_as_exact_as_near_it(how):
    rng = np.random.default_rng(0)
    near = rng.standard_normal((4, 768))
    x = (near + 1000).astype(np.float32)
    one, zero = np.ones(768, np.float32), np.zeros(768, np.float32)
    with how():
        y = functional.layer_norm(Tensor(x), one, zero)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.data, exact, atol=2e-6)


def test_a_sum_over_a_million_rows_keeps_its_digits():
    x = np.random.default_rng(0).random((1_000_000, 4)).astype(np.float32)
    exact = x.sum(0, dtype=np.float64)
    np.testing.assert_allclose(Tensor(x).sum(0).data, exact, rtol=1e-6)
    bias = Tensor(np.zeros(4, np.float32), True)
    (Tensor(x) + bias).backward(x)
    np.testing.assert_allclose(bias.grad, exact, rtol=1e-6)
    for how in (plain, contextlib.nullcontext):
        w, b, norm = (Tensor(np.ones(s, np.float32), True) for s in ((4, 4), 4, 4))
        with how():
            functional.linear(Tensor(x), w, b).backward(x)
            functional.layer_norm(Tensor(x), norm, np.zeros(4, np.float32)).backward(x)
        np.testing.assert_allclose(b.grad, exact, rtol=2e-6)


# every pair at the edges


EDGES = {
    "NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "-0.0": -0.0, "huge": 1e300, "-huge": -1e300,
    "denormal": 5e-324, "zero": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", sum(map(forwards, NUMPY), []))
@pytest.mark.parametrize("edge", EDGES)
def test_a_strange_number_gives_in_a_pair_what_it_gives_in_its_definition(name, edge):
    for case in cases_of(name)[:4]:
        places = [i for i, x in enumerate(CASES[case]) if is_float(x)]
        for i in places:
            if not CASES[case][i].size:
                continue
            args = [*CASES[case]]
            args[i] = args[i].copy()
            args[i].flat[args[i].size // 2] = EDGES[edge]
            with np.errstate(all="ignore"):
                with plain():
                    expected = run(definition(case), *args)[0]
                got = run(definition(case), *args)[0]
            for y, e in zip(got, expected, strict=True):
                if name == "attention" and edge in ("inf", "-inf"):  # all scores may be -inf
                    y, e = (np.where(np.isnan(a), 0, a) for a in (y, e))
                np.testing.assert_allclose(y, e, rtol=1e-9, atol=1e-12, err_msg=f"{case}, {i}")


@pytest.mark.parametrize("name", sum(map(forwards, NUMPY), []))
def test_a_pair_takes_arrays_that_are_repeated_or_reversed_in_memory(name):
    for case in cases_of(name):
        args = [*CASES[case]]
        for i, x in enumerate(args):
            if is_float(x) and x.ndim:
                args[i] = np.broadcast_to(x[:1], x.shape)[::-1]
        with plain():
            expected = run(definition(case), *args)
        got = run(definition(case), *args)
        for y, e in zip(sum(got, []), sum(expected, []), strict=True):
            np.testing.assert_allclose(y, e, rtol=1e-10, atol=1e-12, err_msg=case)


def test_no_guard_asks_for_a_formula_that_does_not_exist():
    from minigpt.engine.guards import GUARDS

    for name in GUARDS:
        assert cases_of(name)


def test_a_model_still_writes_within_no_grad():
    with no_grad():
        assert not Net()(X).requires_grad
