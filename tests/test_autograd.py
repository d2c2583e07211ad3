"""The engine: graphs, memory, modes, and what a Tensor refuses."""

import gc
import threading
import tracemalloc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
from gradcheck import draw, gradcheck, is_float, run
from test_functional import CASES, definition
from test_ops import ROWS

from minigpt.engine.autograd import Tensor, mode, no_grad, plain, record


def leaf(*shape, seed=0):
    return Tensor(draw(*shape, seed=seed), requires_grad=True)


def counted(x, calls):
    """x, with an op that notes the gradient each time its rule runs."""
    return record(x.data * 1.0, (x, lambda dy: calls.append(dy) or dy))


def test_gradcheck_catches_a_wrong_rule():
    for wrong in (lambda dy: dy, lambda dy: dy * 1.00001):
        with pytest.raises(AssertionError):
            gradcheck(lambda x, rule=wrong: record(x.data + x.data**2, (x, rule)), draw(3))
    with pytest.raises(ValueError, match="read-only"):
        gradcheck(lambda x: record(x.data * 1.0, (x, lambda dy: dy.__imul__(1.0))), draw(3))


STEPS = [
    lambda a, b, w: a + b,
    lambda a, b, w: a - b * 0.5,
    lambda a, b, w: a * b.tanh(),
    lambda a, b, w: a / (b * b + 1.0),
    lambda a, b, w: 1.0 - a,
    lambda a, b, w: (a.tanh() * 0.5).exp() + b,
    lambda a, b, w: (a * a + 0.1).log() - b.sum(),
    lambda a, b, w: (a * a + 0.5).sqrt() ** 3,
    lambda a, b, w: ((a + w) @ (b + w)).tanh(),
    lambda a, b, w: (a @ w + w[1]).tanh() if a.shape[1] == 4 else a + w,  # the layer w
    lambda a, b, w: a + b.mean(),
    lambda a, b, w: a.sum(0, keepdims=True) * b,
    lambda a, b, w: (a + w)[[2, 0, 2], 1:].mean() * b,
    lambda a, b, w: (a + w).reshape((2, 8))[:, 1::2].T.sum(1, keepdims=True),
]


def random_program(leaves, seed):
    """15 random steps; any value may be used again, and w is shared by several kinds of step."""
    rng = np.random.default_rng(seed)
    values = list(leaves)
    for _ in range(15):
        a, b = (values[i] for i in rng.integers(len(values), size=2))
        values.append(STEPS[rng.integers(len(STEPS))](a, b, leaves[0]))
    return (values[-1] @ values[0].T if values[-1].shape[1] == 4 else values[-1]).tanh().sum()


def test_gradients_of_random_graphs_equal_pytorchs():
    torch = pytest.importorskip("torch")
    for seed in range(40):
        arrays = [draw(*s, seed=seed + 50 * i) for i, s in enumerate([(4, 4), (1, 4), (4, 1)])]
        ours = [Tensor(x, requires_grad=True) for x in arrays]
        theirs = [torch.tensor(x, requires_grad=True) for x in arrays]
        y, z = random_program(ours, seed), random_program(theirs, seed)
        y.backward()
        z.backward()
        assert y.item() == pytest.approx(z.item(), rel=1e-10)
        for a, b in zip(ours, theirs, strict=True):
            expected = np.zeros(a.shape) if b.grad is None else b.grad.numpy()
            got = np.zeros(a.shape) if a.grad is None else a.grad
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(got / scale, expected / scale, rtol=1e-10, atol=1e-10)


def test_diamonds_have_gradient_four_and_every_rule_runs_once():
    calls, x = [], Tensor(3.0, requires_grad=True)
    a = counted(x, calls)
    b = counted(a + a, calls)
    (b + b).backward()
    assert x.grad == 4 and [float(dy) for dy in calls] == [2, 4]


def test_chain_of_20000_operations_runs_backward():
    x = Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y + x
    y.backward()
    assert x.grad == 20_001


def test_chain_of_20000_operations_is_freed_without_backward():
    y = leaf(1)
    first = y = y + 1.0
    gone = weakref.ref(first.data)
    for _ in range(20_000):
        y = y * 1.0
    del first, y
    assert gone() is None


def test_second_backward_is_refused():
    loss = leaf(3).exp().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()


def test_freed_part_that_two_losses_share_is_refused():
    x = leaf(3)
    shared = x.exp()
    a, b = shared.sum(), (shared * 2.0).sum()
    a.backward()
    with pytest.raises(RuntimeError, match="exp was freed by an earlier"):
        b.backward()


def test_refused_backward_leaves_the_rest_of_the_graph_usable():
    x, y = leaf(3), leaf(3)
    older = y * 2.0
    freed = x.exp()
    freed.sum().backward()
    with pytest.raises(RuntimeError):
        (older + freed).sum().backward()
    older.sum().backward()
    assert y.grad.tolist() == [2, 2, 2]


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_backward_frees_the_arrays_of_the_graph_while_the_loss_lives(no_collector):
    x = leaf(100_000)
    tracemalloc.start()
    loss = (x.exp().tanh() * x).sum()
    held = tracemalloc.get_traced_memory()[0]
    loss.backward()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held > 2 * x.data.nbytes and left < 1.01 * x.grad.nbytes and loss.node


def test_intermediate_array_dies_with_backward_or_with_the_loss(no_collector):
    for end in ("backward", "drop"):
        h = leaf(5).exp()
        array, loss = weakref.ref(h.data), h.sum()
        del h
        assert array() is not None
        loss = loss.backward() if end == "backward" else None
        assert loss is None and array() is None


@pytest.mark.parametrize("traced", [False, True])
def test_a_dropped_rule_keeps_no_array_alive(traced, no_collector):
    x = leaf(3) + 1.0
    array, w = weakref.ref(x.data), Tensor(draw(3), requires_grad=traced)
    y = x * w  # dw = x dy: the array of x is needed for w alone
    del x
    assert (array() is not None) == traced and y.requires_grad


def test_loss_keeps_no_leaf_alive_after_backward(no_collector):
    x = leaf(3)
    gone, loss = weakref.ref(x), x.exp().sum()
    loss.backward()
    del x
    assert gone() is None and loss.node


def calls_of_everything():
    """(name, function, arguments) of every row of both tables."""
    ops = ((f"op {name}", f, args) for name, (f, _, *args) in ROWS.items())
    return [*ops, *((case, definition(case), args) for case, args in CASES.items())]


def traced(f, args, wrap):
    y = f(*(wrap(x) if is_float(x) else x for x in args))
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("end", ["backward", "drop"])
def test_no_graph_has_a_reference_cycle(end, no_collector):
    for _, f, args in calls_of_everything():
        ys = traced(f, args, lambda x: Tensor(x, requires_grad=True))
        if end == "backward":
            ys[0].backward(ys[0].data)
    del ys
    assert gc.collect() == 0


@pytest.mark.parametrize("context", [plain, no_grad])  # no_grad: the fast pairs
def test_float32_stays_float32_with_constants(context):
    for name, f, args in calls_of_everything():
        with context():
            ys = traced(f, args, lambda x: Tensor(x.astype(np.float32)))
        assert {y.dtype for y in ys} == {np.dtype(np.float32)}, name


@pytest.mark.parametrize("fast", [True, False])
def test_gradients_of_float32_travel_as_float32(fast, monkeypatch):
    monkeypatch.setattr(mode, "fast", fast)
    for name, f, args in calls_of_everything():
        calls = []
        ys = traced(f, args, lambda x, c=calls: counted(Tensor(x.astype(np.float32), True), c))
        ys[0].backward(ys[0].data)
        assert {dy.dtype for dy in calls} == {np.dtype(np.float32)}, name


def test_each_leaf_has_its_own_gradient():
    a, b = leaf(3), leaf(3)
    (a + b).sum().backward()
    assert not np.shares_memory(a.grad, b.grad)


def test_gradients_add_up_in_an_existing_buffer():
    flat = np.zeros(10, np.float32)
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    x.grad = flat[2:5]
    for _ in range(2):
        (x * 1.5).sum().backward()
    assert flat.tolist() == [0, 0, 3, 3, 3, 0, 0, 0, 0, 0] and np.shares_memory(x.grad, flat)


def test_gradient_of_a_leaf_has_the_dtype_of_the_leaf():
    w = Tensor(np.ones(3, np.float32), requires_grad=True)
    (w * draw(3)).sum().backward()
    assert w.grad.dtype == np.float32


def test_leaf_that_is_not_used_or_not_required_has_no_gradient():
    x, unused, constant = leaf(3), leaf(3), Tensor(draw(3))
    (x * constant).sum().backward()
    assert unused.grad is None and constant.grad is None


def forbidden(*dys):
    raise AssertionError("the rule of an input that needs no gradient ran")


@pytest.mark.parametrize("untraced", [draw(3), 2.0, Tensor(draw(3))])
def test_no_rule_of_an_untraced_input_runs(untraced):
    x = leaf(3)
    y = record(x.data * 1.0, (untraced, forbidden), (x, lambda dy: dy), (untraced, forbidden))
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    with no_grad():
        assert record(x.data, (x, forbidden)).node is None


@pytest.mark.parametrize("context", [plain, nullcontext])
def test_gradient_of_an_input_alone_is_its_gradient_among_the_others(context):
    for name, f, args in calls_of_everything():
        places = [i for i, x in enumerate(args) if is_float(x)]
        with context():
            expected = run(f, *args)[1]
            for i, dx in zip(places, expected, strict=True):

                def alone(x, i=i, f=f, args=args):
                    return f(*args[:i], x, *args[i + 1 :])

                np.testing.assert_array_equal(run(alone, args[i])[1][0], dx, name)


def test_detached_value_is_a_constant():
    x = leaf(3)
    (x * x.detach()).sum().backward()
    np.testing.assert_array_equal(x.grad, x.data)


@pytest.mark.parametrize("context, flag", [(no_grad, "grad"), (plain, "fast")])
def test_mode_ends_with_its_block_even_by_an_exception(context, flag):
    with pytest.raises(KeyError), context():
        with context():
            assert not getattr(mode, flag)
        assert not getattr(mode, flag)
        raise KeyError
    assert getattr(mode, flag)


def test_no_grad_holds_for_its_own_thread_only():
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append(leaf(2).exp().requires_grad))
        thread.start()
        thread.join()
        assert seen == [True] and not leaf(2).exp().requires_grad


@pytest.mark.parametrize("error, match, act", [
    (TypeError, r"item\(\).*where", lambda t: bool(t)),
    (RuntimeError, r"where\(\).*t\.data", lambda t: t.__setitem__(0, 1.0)),
    (RuntimeError, r"t\.detach\(\)", lambda t: np.asarray(t)),
    (RuntimeError, r"t\.detach\(\)", lambda t: np.from_dlpack(t)),
    (RuntimeError, r"t\.numpy\(\).*t\.detach\(\)", lambda t: t.numpy()),
    (ValueError, "size 1", lambda t: float(t)),
    (ValueError, r"shape \(3,\), got none; sum\(\)", lambda t: t.backward()),
    (ValueError, r"gradient of shape \(3,\), got \(2,\)", lambda t: t.backward(np.ones(2))),
    (RuntimeError, "requires_grad=True", lambda t: t.detach().sum().backward()),
])  # fmt: skip
def test_traced_tensor_refuses_and_names_the_way_out(error, match, act):
    with pytest.raises(error, match=match):
        act(leaf(3).exp())


def test_asarray_of_a_constant_is_its_array():
    x = leaf(2, 3).detach()
    assert np.asarray(x) is x.data and np.shares_memory(np.from_dlpack(x), x.data)


def test_numpy_of_a_constant_is_its_array():
    x = leaf(2, 3)
    assert x.detach().numpy() is x.data


def test_a_tensor_of_one_element_is_written_and_converted_as_its_number():
    for shape in ((), (1,), (1, 1)):
        x = Tensor(np.full(shape, 2.34567), requires_grad=True)
        assert float(x) == 2.34567 and f"{x:.3f} {x:8.1e}" == "2.346  2.3e+00"
        assert f"{x}" == str(x) == repr(x)
    assert f"{leaf(2):>60}" == str(leaf(2)).rjust(60)
    with pytest.raises(ValueError, match=r"one element for the format '.3f', got shape \(2,\); "):
        f"{leaf(2):.3f}"


def test_a_loop_over_a_tensor_meets_its_rows_and_one_over_a_number_is_refused():
    x = leaf(3, 2)
    first, *_, last = x
    (first * 2.0 + last).sum().backward()
    assert x.grad.tolist() == [[2, 2], [0, 0], [1, 1]]
    for f in (iter, len, list):
        with pytest.raises(TypeError, match=r"a number has no rows.*t\.item\(\)"):
            f(x.sum())


def test_a_tensor_of_pytorchs_keeps_its_memory_and_its_kind_of_floats():
    torch = pytest.importorskip("torch")
    for dtype, ours in ((torch.float32, np.float32), (torch.float64, np.float64)):
        data = torch.ones(2, 3, dtype=dtype)
        x = Tensor(data)
        data[1, 2] = 42.0
        assert x.dtype == ours and x.data[1, 2] == 42
    assert Tensor(torch.arange(3)).dtype == np.float32
    for strange in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="float32, float64 or integers"):
            Tensor(torch.ones(2, dtype=strange))
    with pytest.raises(RuntimeError, match="requires grad"):
        Tensor(torch.ones(2, requires_grad=True))


def test_pytorch_shares_the_memory_of_a_constant():
    torch = pytest.importorskip("torch")
    x = leaf(2, 3).detach()
    torch.from_dlpack(x)[1, 2] = 42.0
    assert x.data[1, 2] == 42


@pytest.mark.parametrize("data", [[1, 2], np.arange(2), 3, True, np.ones(2, bool)])
def test_what_is_no_float_array_becomes_float32(data):
    assert Tensor(data).dtype == np.float32


NO_NUMBERS = [None, [1, None], "3", ["3", 4], b"3", [1, "x"], {1: 2}, [2j], [[1], [2, 3]], object()]


@pytest.mark.parametrize("data", [*NO_NUMBERS, np.array([1, None]), np.str_("3")])
def test_what_is_no_number_is_refused_and_never_nan_or_a_guess(data):
    with pytest.raises(TypeError, match="^Tensor: expected .*(numbers|integers).*; "):
        Tensor(data)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_no_gradient_and_no_element_either(value):
    x = Tensor(np.ones(2), True)
    if value is not None:  # the default
        with pytest.raises(TypeError, match="expected numbers"):
            (x * 2).backward(value)
    with pytest.raises(TypeError, match="expected numbers"):
        x.detach()[:] = value


def test_numbers_in_lists_are_read_in_the_type_of_the_tensor_they_go_to():
    x = Tensor(np.ones(2), True)
    (x * 2.0).backward([0.1, 1])
    assert x.grad.tolist() == [0.2, 2]
    x = x.detach()
    x[:] = [0.1, Tensor(3.0)]
    assert x.data.tolist() == [0.1, 3]
    x[0] = Tensor(0.5)
    assert x.data.tolist() == [0.5, 3]


def test_repr_names_shape_dtype_device_and_operation():
    x = Tensor(np.zeros((2, 3), np.float32), requires_grad=True)
    assert repr(x).endswith("shape=(2, 3), dtype=float32, device=cpu, requires_grad=True)")
    assert repr(x.exp()).endswith("shape=(2, 3), dtype=float32, device=cpu, op=exp)")
