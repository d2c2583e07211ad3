"""Convolution, pooling and recurrence against PyTorch, without and with the fast pairs."""

import contextlib

import numpy as np
import pytest
from gradcheck import draw, run

from minigpt.engine import convolution, recurrence
from minigpt.engine.autograd import plain

torch = pytest.importorskip("torch")
F = torch.nn.functional

both = pytest.mark.parametrize("mode", [plain, contextlib.nullcontext])


def tensors(arrays):
    return [torch.tensor(x, requires_grad=True) for x in arrays]


def gradients(ys, leaves):
    """PyTorch's gradients of leaves, for the projection of the outputs ys that `run` takes"""
    weights = [torch.from_numpy(draw(*y.shape, seed=99 + i)) for i, y in enumerate(ys)]
    loss = sum((y * w).sum() for y, w in zip(ys, weights, strict=True))
    return [dx.numpy() for dx in torch.autograd.grad(loss, leaves)]


def assert_equal(got, ys, grads):
    """What `run` returned is PyTorch's, but for rounding."""
    expected = [*(y.detach().numpy() for y in ys), *grads]
    for y, e in zip(sum(got, []), expected, strict=True):
        assert y.shape == e.shape
        np.testing.assert_allclose(y, e, rtol=1e-10, atol=1e-12)


# x (B, Y, X, C), then w (I, J, C, O), then stride, padding, dilation
CONV2D = {
    "plain": ((2, 7, 6, 3), (3, 2, 3, 5)),
    "of each pixel": ((2, 3, 4, 3), (1, 1, 3, 5)),
    "stride": ((2, 8, 7, 3), (3, 3, 3, 4), 2),
    "stride wider than the window": ((2, 9, 8, 2), (2, 2, 2, 3), 3),
    "padding": ((2, 5, 4, 3), (3, 3, 3, 4), 1, 1),
    "padding wider than the image": ((2, 2, 1, 3), (4, 5, 3, 2), 1, 3),
    "dilation": ((2, 9, 8, 2), (3, 3, 2, 4), 1, 0, 2),
    "pairs": ((2, 9, 8, 2), (3, 2, 2, 4), (2, 3), (1, 4), (3, 2)),
    "all": ((3, 11, 9, 4), (3, 2, 4, 6), (2, 1), (2, 0), (2, 3)),
}
CONV1D = {  # x (B, T, C), then w (K, C, O)
    "plain": ((2, 7, 3), (3, 3, 5)),
    "stride and padding": ((2, 8, 3), (4, 3, 2), 2, 3),
    "all": ((3, 11, 4), (3, 4, 6), 2, 4, 3),
}
CONVOLUTIONS = {
    **{f"conv2d: {case}": row for case, row in CONV2D.items()},
    **{f"conv1d: {case}": row for case, row in CONV1D.items()},
}


@both
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_equals_pytorchs(case, biased, mode):
    name, (shape, w_shape, *options) = case.split(":")[0], CONVOLUTIONS[case]
    arrays = [draw(*shape), draw(*w_shape, seed=1), draw(w_shape[-1], seed=2)][: 2 + biased]
    x, w, *b = leaves = tensors(arrays)
    x, w = x.movedim(-1, 1), w.movedim((-1, -2), (0, 1))  # (O, C, ...)
    y = getattr(F, name)(x, w, *(b or [None]), *options).movedim(1, -1)
    with mode():
        got = run(getattr(convolution, name), *arrays, *([] if biased else [None]), *options)
    assert_equal(got, [y], gradients([y], leaves))


# x (B, Y, X, C), then size, stride, padding
POOLS = {
    "side by side": ((2, 6, 8, 3), 2),
    "rows left over": ((2, 7, 5, 3), 2),
    "overlap": ((2, 7, 6, 3), 3, 1),
    "stride wider than the window": ((2, 7, 6, 3), 2, 3),
    "padding": ((2, 6, 5, 3), 3, 2, 1),
    "pairs": ((2, 7, 6, 3), (3, 2), (1, 2), (1, 0)),
    "whole": ((2, 4, 5, 3), (4, 5)),
}


def assert_pools_alike(x, options, mode):
    [leaf] = tensors([x])
    y = F.max_pool2d(leaf.movedim(-1, 1), *options).movedim(1, -1)
    with mode():
        got = run(convolution.max_pool2d, x, *options)
    assert_equal(got, [y], gradients([y], [leaf]))


@both
@pytest.mark.parametrize("case", POOLS)
def test_pooling_equals_pytorchs(case, mode):
    shape, *options = POOLS[case]
    assert_pools_alike(draw(*shape), options, mode)


@both
@pytest.mark.parametrize("case", POOLS)
def test_of_equal_values_the_first_gets_the_gradient_as_in_pytorch(case, mode):
    shape, *options = POOLS[case]
    x = np.random.default_rng(0).integers(-1, 2, shape).astype(float)  # three values: many ties
    assert_pools_alike(x, options, mode)


NETWORKS = {  # the definition, and PyTorch's class
    "rnn": (recurrence.rnn, torch.nn.RNN),
    "lstm": (recurrence.lstm, torch.nn.LSTM),
    "gru": (recurrence.gru, torch.nn.GRU),
}
SIZES = {"many": (3, 5, 4, 6), "one": (1, 1, 1, 1), "one step": (3, 1, 2, 5), "long": (2, 40, 3, 4)}


def twins(name, B, T, C, H):
    """PyTorch's network; x, first states and its weights as our definition takes them; the same as
    tensors: x and first states, and its parameters"""
    torch.manual_seed(0)
    net = NETWORKS[name][1](C, H, batch_first=True, dtype=torch.float64)
    inputs = [draw(B, T, C), *(draw(B, H, seed=i) for i in range(1, 3 if name == "lstm" else 2))]
    weights = [p.detach().numpy().T.copy() for p in net.parameters()]  # w_ih, w_hh, b_ih, b_hh
    return net, [*inputs, *weights], tensors(inputs), list(net.parameters())


def called(net, x, states):
    """-> y, and a list of the last states (B, H)"""
    states = tuple(h[None] for h in states)
    y, last = net(x, states if len(states) == 2 else states[0])
    return y, [h[0] for h in (last if len(states) == 2 else [last])]


def with_last_states(name, mask=None):
    """Our definition as a function of arrays -> y, 0 where the mask is, and the last states"""
    f, _ = NETWORKS[name]

    def call(*args):
        y = f(*args, mask)
        y, c = y if isinstance(y, tuple) else (y, None)
        seen = y if mask is None else y * mask[..., None].astype(float)
        return (seen, y[:, -1]) if c is None else (seen, y[:, -1], c)

    return call


def assert_networks_alike(got, ys, leaves, parameters):
    grads = gradients(ys, leaves + parameters)
    n = len(leaves)
    assert_equal(got, ys, [*grads[:n], *(dw.T for dw in grads[n:])])  # theirs are (out, in)


@both
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_recurrence_equals_pytorchs_in_outputs_last_states_and_gradients(name, size, mode):
    net, arrays, leaves, parameters = twins(name, *SIZES[size])
    y, states = called(net, leaves[0], leaves[1:])
    with mode():
        got = run(with_last_states(name), *arrays)
    assert_networks_alike(got, [y, *states], leaves, parameters)


LENGTHS = np.array([3, 5, 1, 4])


@both
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_padding_on_the_right_equals_pytorchs_packed_sequences(name, mode):
    net, arrays, leaves, parameters = twins(name, 4, 5, 3, 2)
    rnn = torch.nn.utils.rnn
    packed = rnn.pack_padded_sequence(leaves[0], LENGTHS.tolist(), True, enforce_sorted=False)
    y, states = called(net, packed, leaves[1:])
    y, _ = rnn.pad_packed_sequence(y, batch_first=True)
    with mode():
        got = run(with_last_states(name, np.arange(5) < LENGTHS[:, None]), *arrays)
    assert_networks_alike(got, [y, *states], leaves, parameters)


@both
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_padded_on_the_left_equal_the_rows_alone(name, mode):
    _, arrays, leaves, _ = twins(name, 4, 5, 3, 2)
    n, starts = len(leaves), 5 - LENGTHS
    with mode():
        [y, *states], _ = run(with_last_states(name, np.arange(5) >= starts[:, None]), *arrays)
        for b, start in enumerate(starts):
            x, *first = (a[b : b + 1] for a in arrays[:n])
            alone, _ = run(with_last_states(name), x[:, start:], *first, *arrays[n:])
            for part, e in zip([y[b, start:], *(s[b] for s in states)], alone, strict=True):
                np.testing.assert_allclose(part, e[0], rtol=1e-10, atol=1e-12)
